"""The four executions that every numeric test runs on; each takes scores or probabilities and a scheme."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np
import onnx
import onnx.parser
import onnx.reference
import onnx_ir as ir
import onnxruntime
import pytest

from onnx_attnq.rewriting import bodies
from onnx_attnq.scheme import QuantScheme, numerics

Execution = Callable[[str, np.ndarray, QuantScheme], np.ndarray]


def one_op_model(kind: str, scheme: QuantScheme, opset: int = 17, rank: int = 3) -> ir.Model:
    """A model that is nothing but ``softmax`` or ``probabilities`` quantized."""
    make = {"softmax": bodies.softmax_function, "probabilities": bodies.probabilities_function}[kind]
    body = make(scheme, opset)
    shape = ir.Shape([f"d{i}" for i in range(rank)])
    x = ir.Value(name="x", shape=shape, type=ir.TensorType(ir.DataType.FLOAT))
    node = ir.Node(bodies.DOMAIN, body.name, [x], bodies.scheme_attributes(scheme), name="site")
    y = node.outputs[0]
    y.name, y.type, y.shape = "y", ir.TensorType(ir.DataType.FLOAT), shape
    graph = ir.Graph([x], [y], nodes=[node], opset_imports={"": opset, bodies.DOMAIN: 1}, name="g")
    return ir.Model(graph, ir_version=8, functions=[body])


def inlined(model: onnx.ModelProto) -> onnx.ModelProto:
    import onnx.inliner

    return onnx.inliner.inline_local_functions(model)


def require_opset(opset: int) -> None:
    """Skip a test where the installed onnxruntime is older than the opset."""
    model = onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["": {opset}]> g (float x) => (float y) {{y = Neg(x)}}'
    )
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    try:
        onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # each version raises another
        if "opset" not in str(error).lower():
            raise
        pytest.skip(f"onnxruntime {onnxruntime.__version__} does not take opset {opset}")


def run_onnxruntime(model: onnx.ModelProto, x: np.ndarray, *, optimize: bool = True) -> np.ndarray:
    return run_feeds(model, {"x": x}, optimize=optimize)


def run_feeds(model: onnx.ModelProto, feeds: dict[str, np.ndarray], *, optimize: bool = True) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    if not optimize:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, feeds)[0])


def _numpy(kind: str, x: np.ndarray, scheme: QuantScheme) -> np.ndarray:
    compute = {"softmax": numerics.quantize_scores, "probabilities": numerics.quantize_probabilities}[kind]
    return compute(x, scheme)


def _proto(kind: str, x: np.ndarray, scheme: QuantScheme) -> onnx.ModelProto:
    model = ir.to_proto(one_op_model(kind, scheme, rank=x.ndim))
    onnx.checker.check_model(model)
    return model


def _reference(kind: str, x: np.ndarray, scheme: QuantScheme) -> np.ndarray:
    with np.errstate(all="ignore"):
        return onnx.reference.ReferenceEvaluator(_proto(kind, x, scheme)).run(None, {"x": x})[0]


def _with_function(kind: str, x: np.ndarray, scheme: QuantScheme) -> np.ndarray:
    return run_onnxruntime(_proto(kind, x, scheme), x)


def _inlined(kind: str, x: np.ndarray, scheme: QuantScheme) -> np.ndarray:
    return run_onnxruntime(inlined(_proto(kind, x, scheme)), x)


EXECUTIONS: Final[dict[str, Execution]] = {
    "numpy": _numpy,
    "reference": _reference,
    "onnxruntime": _with_function,
    "onnxruntime-inlined": _inlined,
}
