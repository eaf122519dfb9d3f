"""One fused node as a model, run by onnxruntime's own kernel and after its decomposition."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from hypothesis import settings
from onnx import helper

from onnx_attnq.find.fused import Declined, Decomposed, decompose

FLOAT32_TOLERANCE = 1e-5  # the two executions add in different order
FLOAT16_TOLERANCE = 1e-2  # and round to float16 at different places

Array = npt.NDArray[Any]

UNTIMED = settings(deadline=None)  # each example makes two sessions, and the machine may be busy

CURRENT_KERNELS = pytest.mark.skipif(
    tuple(map(int, onnxruntime.__version__.split(".")[:2])) < (1, 32),
    reason="the decompositions are those of onnxruntime 1.32; older kernels differ in corners, or crash there",
)


@dataclasses.dataclass(frozen=True)
class Case:
    """A fused node with its inputs (None is left out) and the ranks of its outputs (0 is left out)."""

    op_type: str
    inputs: Sequence[Array | None]
    attributes: Mapping[str, Any]
    outputs: Sequence[int] = (3,)
    domain: str = "com.microsoft"
    opset: int = 17
    fixed_shapes: bool = False

    def feeds(self) -> dict[str, Array]:
        return {f"i{i}": array for i, array in enumerate(self.inputs) if array is not None}

    def model(self) -> onnx.ModelProto:
        def info(name: str, array: Array) -> onnx.ValueInfoProto:
            shape = array.shape if self.fixed_shapes else [f"{name}_{axis}" for axis in range(array.ndim)]
            return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), shape)

        first = next(array for array in self.inputs if array is not None)
        names = [f"o{i}" if rank else "" for i, rank in enumerate(self.outputs)]
        node = helper.make_node(
            self.op_type,
            [f"i{i}" if array is not None else "" for i, array in enumerate(self.inputs)],
            names,
            domain=self.domain,
            **self.attributes,
        )

        def output_type(place: int) -> int:
            # A quantized cache is of another type than all else.
            quantized = self.attributes.get("kv_cache_bit_width") and place in (1, 2)
            array = self.inputs[place + 2] if quantized else first
            assert array is not None
            return helper.np_dtype_to_tensor_dtype(array.dtype)

        graph = helper.make_graph(
            [node],
            "case",
            [info(name, array) for name, array in self.feeds().items()],
            [
                helper.make_tensor_value_info(name, output_type(place), [f"{name}_{axis}" for axis in range(rank)])
                for place, (name, rank) in enumerate(zip(names, self.outputs, strict=True))
                if name
            ],
        )
        imports = [helper.make_opsetid("", self.opset), helper.make_opsetid("com.microsoft", 1)]
        return helper.make_model(graph, opset_imports=imports, ir_version=8)

    def original(self) -> list[Array]:
        return run(self.model(), self.feeds())

    def decomposed_model(self) -> onnx.ModelProto:
        model = ir.from_proto(self.model())
        outcome = decompose(model, model.graph[0])
        assert isinstance(outcome, Decomposed), outcome
        assert outcome.softmax.op_type == "Softmax"
        assert outcome.softmax.graph is model.graph
        proto = ir.to_proto(model)
        assert {node.domain for node in proto.graph.node} == {""}
        onnx.checker.check_model(proto, full_check=True)
        return proto

    def decomposed(self) -> list[Array]:
        return run(self.decomposed_model(), self.feeds())

    def declined(self) -> str:
        model = ir.from_proto(self.model())
        before = ir.to_proto(model).SerializeToString(deterministic=True)
        outcome = decompose(model, model.graph[0])
        assert isinstance(outcome, Declined), outcome
        assert ir.to_proto(model).SerializeToString(deterministic=True) == before
        assert all(len(value.uses()) == 1 for value in model.graph.inputs)
        return outcome.reason


def run(model: onnx.ModelProto, feeds: Mapping[str, Array]) -> list[Array]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return list(session.run(None, dict(feeds)))


def random_array(rng: np.random.Generator, shape: Sequence[int], dtype: npt.DTypeLike = np.float32) -> Array:
    return rng.standard_normal(shape).astype(dtype)


def assert_close(found: Sequence[Array], expected: Sequence[Array]) -> None:
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        assert a.shape == b.shape
        assert a.dtype == b.dtype
        tolerance = FLOAT16_TOLERANCE if b.dtype == np.float16 else FLOAT32_TOLERANCE
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


def assert_same(case: Case) -> None:
    """The decomposed model gives what the kernel gives."""
    assert_close(case.decomposed(), case.original())
