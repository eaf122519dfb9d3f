"""Finding every attention of a graph, or saying why a softmax is none."""

from onnx_attnq.find.axis_walk import Product
from onnx_attnq.find.hidden import expose, original_fingerprint, original_snapshot
from onnx_attnq.find.sites import AttentionSite, Form, Rejection, Sites, find_sites
from onnx_attnq.find.whole_attention import Added, Attention, Bounded, Filled

__all__ = [
    "Added",
    "Attention",
    "AttentionSite",
    "Bounded",
    "Filled",
    "Form",
    "Product",
    "Rejection",
    "Sites",
    "expose",
    "find_sites",
    "original_fingerprint",
    "original_snapshot",
]
