"""What a quantization scheme is, and what it does to attention probabilities (`numerics`, in numpy and float64)."""

from onnx_attnq.scheme import numerics
from onnx_attnq.scheme.head_schemes import (
    HeadSchemes,
    SiteScheme,
    for_heads,
    left_alone,
    schemes_of,
    site_scheme_from_json,
    split_heads,
    table_shape,
)
from onnx_attnq.scheme.numerics import FloatArray
from onnx_attnq.scheme.presets import PRESETS, preset
from onnx_attnq.scheme.quant_scheme import TAIL_NATS, Normalize, Pruned, QuantScheme, Reference, Rounding, Spacing
from onnx_attnq.scheme.spelling import GRAMMAR, parse_scheme, spell_scheme

__all__ = [
    "GRAMMAR",
    "PRESETS",
    "TAIL_NATS",
    "FloatArray",
    "HeadSchemes",
    "Normalize",
    "Pruned",
    "QuantScheme",
    "Reference",
    "Rounding",
    "SiteScheme",
    "Spacing",
    "for_heads",
    "left_alone",
    "numerics",
    "parse_scheme",
    "preset",
    "schemes_of",
    "site_scheme_from_json",
    "spell_scheme",
    "split_heads",
    "table_shape",
]
