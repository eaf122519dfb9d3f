"""Models of opset 9 and 10, such as paddle2onnx writes, converted to the oldest opset that the rest understands."""

from __future__ import annotations

import logging
from typing import Final

import onnx
import onnx.version_converter

from onnx_attnq.errors import InvalidModel
from onnx_attnq.model.wellformed import tensor_protos

OLDEST_OPSET: Final = 11
"""Of what is rewritten: Slice with inputs, negative axes and Range are there from opset 11 on."""

_LOG: Final = logging.getLogger(__name__)


def is_old(proto: onnx.ModelProto) -> bool:
    """Whether a model has to be converted."""
    return _version(proto) < OLDEST_OPSET


def converted(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The model in opset 11, by onnx's version converter, if its opset is older; else the model itself.

    Raises:
        InvalidModel: The converter does not manage it; the message says what to do.
    """
    version = _version(proto)
    if not is_old(proto):
        return proto
    if proto.functions or any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in tensor_protos(proto)):
        raise InvalidModel(_cannot(version, "it has functions or external data, which onnx's version converter drops"))
    try:
        result = onnx.version_converter.convert_version(proto, OLDEST_OPSET)
    except Exception as error:  # of C++, by whatever name
        raise InvalidModel(_cannot(version, str(error).strip().partition("\n")[0])) from error
    _LOG.info("converted from opset %d to %d", version, OLDEST_OPSET)
    return result


def _version(proto: onnx.ModelProto) -> int:
    return max(entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx"))


def _cannot(version: int, why: str) -> str:
    return (
        f"ai.onnx opset {version} is not supported: {OLDEST_OPSET} and later are, and it cannot be converted ({why}); "
        f"export it again with an option such as `--opset_version 13` of paddle2onnx"
    )


__all__ = ["OLDEST_OPSET", "converted", "is_old"]
