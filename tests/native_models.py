"""Models of one node of domain ``onnx_attnq``, without the function: they need the native library."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper

from onnx_attnq.rewriting import bodies
from onnx_attnq.run import native_library
from onnx_attnq.scheme import QuantScheme

KERNELS = ("scalar", "avx2", "avx512", "amx", "neon")
ROUGH_KERNELS = ("avx2", "avx512", "neon")
"""Those that compute scores roughly in some calls only, or in none, unless told."""


def session(model: onnx.ModelProto, *, kernels: str | None = None, threads: int = 1) -> onnxruntime.InferenceSession:
    """A session with the library registered; ``kernels`` forces an instruction set, "avx2 rough" rough scores too."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    isa, _, rough = (kernels or "").partition(" ")
    with environment(ONNX_ATTNQ_ISA=isa, ONNX_ATTNQ_ROUGH_SCORES="1" if rough else ""):
        options.register_custom_ops_library(str(native_library()))
        return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


@contextlib.contextmanager
def environment(**variables: str) -> Iterator[None]:
    """Environment variables that the library reads, for a while; empty is as if they were not set."""
    previous = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in previous.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value


def model_of(node: onnx.NodeProto, inputs: Sequence[str], element_type: int = TensorProto.FLOAT) -> onnx.ModelProto:
    """A model of one node whose inputs have any shape and rank."""
    graph = helper.make_graph(
        [node],
        "one_node",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in inputs],
        [helper.make_tensor_value_info(node.output[0], element_type, None)],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid(bodies.DOMAIN, 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def tensor(name: str, values: Any) -> onnx.TensorProto:
    array = np.asarray(values, np.float32)
    return helper.make_tensor(name, TensorProto.FLOAT, array.shape, array.ravel())


def scheme_attributes(schemes: Sequence[QuantScheme]) -> dict[str, onnx.TensorProto]:
    """The attributes of one scheme, or of one scheme per head: the same but for their numbers."""
    fields = ["threshold"] + (["step", "offset", "levels"] if schemes[0].bits is not None else [])
    columns = {field: np.array([getattr(scheme, field) for scheme in schemes]) for field in fields}
    return {
        field: tensor(field, column if len(schemes) == 1 else column[:, None, None])
        for field, column in columns.items()
    }


def rows_model(kind: str, *schemes: QuantScheme) -> onnx.ModelProto:
    """``softmax`` or ``probabilities``: x to y."""
    name = {"softmax": bodies.softmax_op, "probabilities": bodies.probabilities_op}[kind](schemes[0])
    node = helper.make_node(name, ["x"], ["y"], domain=bodies.DOMAIN, **scheme_attributes(schemes))
    return model_of(node, ["x"])


def attention_model(
    *schemes: QuantScheme,
    scale: float = 1.0,
    rank: int = 4,
    q_perm: Sequence[int] | None = None,
    k_perm: Sequence[int] | None = None,
    v_perm: Sequence[int] | None = None,
    out_perm: Sequence[int] | None = None,
    row_max_floor: float = -np.inf,
    qk: int = 0,
) -> onnx.ModelProto:
    """Attention of q, k, v and mask. Unless told, all have shape (..., L, D)."""
    straight = list(range(rank))
    node = helper.make_node(
        bodies.attention_op(schemes[0]),
        ["q", "k", "v", "mask"],
        ["y"],
        domain=bodies.DOMAIN,
        scale=tensor("scale", [scale]),
        row_max_floor=tensor("row_max_floor", [row_max_floor]),
        q_perm=straight if q_perm is None else q_perm,
        k_perm=[*straight[:-2], rank - 1, rank - 2] if k_perm is None else k_perm,
        v_perm=straight if v_perm is None else v_perm,
        out_perm=straight if out_perm is None else out_perm,
        qk=qk,
        **scheme_attributes(schemes),
    )
    return model_of(node, ["q", "k", "v", "mask"])


def run_attention(
    model: onnx.ModelProto,
    query: np.ndarray,
    key: np.ndarray,
    value: np.ndarray,
    mask: Any = 0.0,
    *,
    kernels: str | None = None,
    threads: int = 1,
) -> np.ndarray:
    feeds = {"q": query, "k": key, "v": value, "mask": np.asarray(mask, np.float32)}
    return np.asarray(session(model, kernels=kernels, threads=threads).run(None, feeds)[0])


def kernel_name(kernels: str | None = None) -> str:
    """Which kernels a session runs that is opened now."""
    node = helper.make_node("KernelName", [], ["y"], domain=bodies.DOMAIN)
    return bytes(session(model_of(node, [], TensorProto.UINT8), kernels=kernels).run(None, {})[0]).decode()


@functools.cache
def available_kernels() -> tuple[str, ...]:
    """What this machine can be made to run: the kernels, and those with rough scores in every call that can have them.

    Empty without the library.
    """
    if native_library() is None:
        return ()
    names = []
    for name in KERNELS:
        try:
            names.append(kernel_name(name))
        except Exception as error:
            if "ONNX_ATTNQ_ISA" not in str(error):
                raise
    return tuple(names) + tuple(f"{name} rough" for name in names if name in ROUGH_KERNELS)
