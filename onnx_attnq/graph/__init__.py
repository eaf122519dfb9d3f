"""Questions about an onnx_ir graph that any part of the package may ask, and ways to change it and back."""

from onnx_attnq.graph.constants import constant, number_of
from onnx_attnq.graph.dataflow import Dataflow, subgraphs
from onnx_attnq.graph.extra_outputs import END_ROW, FIRST_ROW, probe, some_rows
from onnx_attnq.graph.fused_ops import (
    FUSED_SIGNATURES,
    FusedSignature,
    Holds,
    Mismatch,
    Shapes,
    input_holds,
    signature_of,
)
from onnx_attnq.graph.nodes import Naming, NodeBuilder
from onnx_attnq.graph.ops import OWN_DOMAIN, domain_and_op, known_op, standard_opset
from onnx_attnq.graph.suffix import Suffix, suffix
from onnx_attnq.graph.tokens import same_tokens, token_operands
from onnx_attnq.graph.types import (
    Types,
    axes_of,
    axis_from_end,
    branch_outputs,
    certain_rank_of,
    dimension,
    dtype_of,
    rank_of,
    same_size,
    size_of,
    width_of,
)
from onnx_attnq.graph.undo import Snapshot, apply
from onnx_attnq.graph.undo_record import Undo

__all__ = [
    "END_ROW",
    "FIRST_ROW",
    "FUSED_SIGNATURES",
    "OWN_DOMAIN",
    "Dataflow",
    "FusedSignature",
    "Holds",
    "Mismatch",
    "Naming",
    "NodeBuilder",
    "Shapes",
    "Snapshot",
    "Suffix",
    "Types",
    "Undo",
    "apply",
    "axes_of",
    "axis_from_end",
    "branch_outputs",
    "certain_rank_of",
    "constant",
    "dimension",
    "domain_and_op",
    "dtype_of",
    "input_holds",
    "known_op",
    "number_of",
    "probe",
    "rank_of",
    "same_size",
    "same_tokens",
    "signature_of",
    "size_of",
    "some_rows",
    "standard_opset",
    "subgraphs",
    "suffix",
    "token_operands",
    "width_of",
]
