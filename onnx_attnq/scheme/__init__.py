"""What a quantization scheme is, and what it does to attention probabilities (`numerics`, in numpy and float64)."""

from onnx_attnq.scheme import numerics
from onnx_attnq.scheme.numerics import FloatArray
from onnx_attnq.scheme.presets import PRESETS, preset
from onnx_attnq.scheme.quant_scheme import TAIL_NATS, Normalize, Pruned, QuantScheme, Reference, Rounding, Spacing
from onnx_attnq.scheme.spelling import GRAMMAR, parse_scheme

__all__ = [
    "GRAMMAR",
    "PRESETS",
    "TAIL_NATS",
    "FloatArray",
    "Normalize",
    "Pruned",
    "QuantScheme",
    "Reference",
    "Rounding",
    "Spacing",
    "numerics",
    "parse_scheme",
    "preset",
]
