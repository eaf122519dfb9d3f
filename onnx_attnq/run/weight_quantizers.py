"""Quantized weights: onnxruntime's own quantizers, with the choices that its documentation makes for transformers."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Final, Literal, TypeAlias

import onnx

from onnx_attnq.errors import InvalidModel
from onnx_attnq.model import load, save
from onnx_attnq.run.quiet import without_warnings

Weights: TypeAlias = Literal["int8", "int4"]

WEIGHTS: Final = ("int8", "int4")

_BLOCK: Final = 32
"""Weights that share a scale in 4 bits: the block size that onnxruntime-genai's builder takes."""

_INT8_ACTIVATIONS: Final = 4
"""Level of accuracy of MatMulNBits at which it multiplies in int8, the fastest on CPUs."""


def quantize_weights(source: str | os.PathLike[str], output: str | os.PathLike[str], weights: str) -> None:
    """Write a model with quantized weights.

    ``int8`` is dynamic quantization: unsigned 8-bit weights of MatMul and Gemm, one scale for each column, activations
    quantized when the model runs; embeddings (Gather) in 8 bits, too. ``int4`` is MatMulNBits: symmetric, blocks of 32.
    Products of two values that depend on inputs, such as those of attention, stay in floating point.

    Args:
        source: A model file that `load` accepts.
        output: A new file.
        weights: ``int8`` or ``int4``.

    Raises:
        InvalidModel: The quantizer does not take the model, or finds no weights to quantize.
    """
    model = _whole(Path(source))
    try:
        with without_warnings():
            if weights == "int8":
                _int8(model, Path(output))
            else:
                _int4(model, Path(output))
    except Exception as error:  # any exception of the quantizer becomes one line for the user
        raise InvalidModel(f"{source}: onnxruntime's quantizer for {weights} weights fails: {error}") from error
    domains = {"int8": ("MatMulInteger", "DynamicQuantizeMatMul", "DequantizeLinear"), "int4": ("MatMulNBits",)}
    ops = {node.op_type for node in onnx.load(output, load_external_data=False).graph.node}
    if not ops & set(domains[weights]):
        raise InvalidModel(f"{source}: onnxruntime's quantizer finds no weights to make {weights}")


def _whole(source: Path) -> onnx.ModelProto:
    """The model with its weights: of a file, the quantizer would write a copy beside it.

    onnx refuses data behind symbolic links, such as the cache of the Hugging Face hub has; it reads a copy.
    """
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / source.name
        save(load(source), copy)
        return onnx.load(copy)


def _int8(model: onnx.ModelProto, output: Path) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    # What follows an op that onnx does not know, such as a fused attention, has no type; it is that of the weights.
    floats = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16)
    matrices = [t.data_type for t in model.graph.initializer if len(t.dims) == 2 and t.data_type in floats]
    quantize_dynamic(
        model,
        output,
        op_types_to_quantize=["MatMul", "Gemm", "Gather"],
        per_channel=True,
        weight_type=QuantType.QUInt8,  # int8 by uint8 saturates on x86 without VNNI: cosine .66 in place of .9997
        extra_options={"MatMulConstBOnly": True, "DefaultTensorType": matrices[0] if matrices else floats[0]},
    )


def _int4(model: onnx.ModelProto, output: Path) -> None:
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    quantizer = MatMulNBitsQuantizer(
        model, bits=4, block_size=_BLOCK, is_symmetric=True, accuracy_level=_INT8_ACTIVATIONS
    )
    quantizer.process()
    quantizer.model.save_model_to_file(os.fspath(output), use_external_data_format=False)


__all__ = ["WEIGHTS", "Weights", "quantize_weights"]
