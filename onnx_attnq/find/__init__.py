"""Finding every attention of a graph, or the reason why a softmax is not one."""

from onnx_attnq.find.axis_walk import Product
from onnx_attnq.find.choosing import left_out
from onnx_attnq.find.exposed import Exposed
from onnx_attnq.find.fused import FusedOp
from onnx_attnq.find.hidden import LEFT_FUSED, expose
from onnx_attnq.find.score_ops import Added, Bounded, Filled
from onnx_attnq.find.sites import AttentionSite, Form, Rejection, Sites, find_sites
from onnx_attnq.find.whole_attention import Attention

__all__ = [
    "LEFT_FUSED",
    "Added",
    "Attention",
    "AttentionSite",
    "Bounded",
    "Exposed",
    "Filled",
    "Form",
    "FusedOp",
    "Product",
    "Rejection",
    "Sites",
    "expose",
    "find_sites",
    "left_out",
]
