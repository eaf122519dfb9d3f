"""GroupQueryAttention on float16 tensors and on caches of 8 and 4 bits, against onnxruntime's own."""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt
import pytest
from fused_case import CURRENT_KERNELS, FLOAT16_TOLERANCE, FLOAT32_TOLERANCE, Array, Case, random_array
from test_decoder_op import BOTH, NATIVE, decoding, ops, rewritten, run_shared_original, session, shared
from test_decoder_op_schemes import FLIPPED_ROWS, SCHEMES, share_of_rows_that_differ
from test_fused_group_query_attention import defined

from onnx_attnq.scheme import QuantScheme, preset

pytestmark = CURRENT_KERNELS

STEPS = {
    "decode": ((5,), 8, 1),
    "different lengths": ((9, 3), 12, 1),
    "prompt": ((40,), 64, 40),
    "chunk": ((8,), 16, 3),
    "longer than the cache": ((9,), 8, 1),
}
KINDS = ("PER_TENSOR", "PER_CHANNEL")


def cached(case: Case, bits: int, kind: str, dtype: npt.DTypeLike = np.float32) -> Case:
    """The case with tensors of a type, and with caches of so many bits (0: of that type too)."""
    rng = np.random.default_rng(bits)
    inputs: list[Array | None] = [*case.inputs, *[None] * (14 - len(case.inputs))]
    inputs = [array.astype(dtype) if array is not None and array.dtype == np.float32 else array for array in inputs]
    if not bits:
        return dataclasses.replace(case, inputs=inputs)
    past = inputs[3]
    assert past is not None
    batch, heads, capacity, size = past.shape
    width, whole = (size, np.int8) if bits == 8 else (size // 2, np.uint8)
    for place in (3, 4):
        info = np.iinfo(whole)
        inputs[place] = rng.integers(info.min, info.max + 1, (batch, heads, capacity, width)).astype(whole)
        scale = rng.random(1 if kind == "PER_TENSOR" else (1, heads, 1, size)) + 0.3
        inputs[place + 9] = (scale * (0.03 if bits == 8 else 0.4)).astype(np.float32)
    quantized = {"k_quant_type": kind, "v_quant_type": kind, "kv_cache_bit_width": bits}
    return dataclasses.replace(case, inputs=inputs, attributes={**case.attributes, **quantized})


def everything(case: Case) -> Case:
    """The case with all that changes scores."""
    rng = np.random.default_rng(1)
    query, lengths = case.inputs[0], case.inputs[5]
    assert query is not None
    assert lengths is not None
    bias = random_array(rng, (1, 4, query.shape[1], int(lengths.max()) + 1))
    inputs = [*case.inputs[:9], None, bias, random_array(rng, (4,))]
    return dataclasses.replace(case, inputs=inputs, attributes={**case.attributes, "softcap": 3.0})


def assert_same(found: list[Array], expected: list[Array], dtype: npt.DTypeLike) -> None:
    tolerance = FLOAT16_TOLERANCE if dtype == np.float16 else FLOAT32_TOLERANCE
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.dtype == theirs.dtype
        np.testing.assert_allclose(ours.astype(np.float32), theirs.astype(np.float32), rtol=0, atol=tolerance)


@BOTH
@pytest.mark.parametrize("dtype", [np.float32, pytest.param(np.float16, marks=pytest.mark.slow)])
@pytest.mark.parametrize(("bits", "kind"), [(0, ""), *((bits, kind) for bits in (8, 4) for kind in KINDS)])
def test_equals_the_kernel_of_onnxruntime(bits: int, kind: str, dtype: npt.DTypeLike, native: bool) -> None:
    """Caches are equal to the last bit, but for float16, which both sides round."""
    for name, step in STEPS.items():
        plain = decoding(*step)
        case = cached(everything(plain) if name in ("prompt", "different lengths") else plain, bits, kind, dtype)
        model, _ = rewritten(case, preset("identity"))
        assert ops(model)[0] == "PrunedGroupQueryAttention"
        runner = session(model, native=native)
        if name in ("decode", "prompt"):
            assert_same(defined(case, shared(runner, case)), defined(case, run_shared_original(case)), dtype)
        else:
            assert_same(defined(case, runner.run(None, case.feeds())), defined(case, case.original()), dtype)


@pytest.mark.parametrize("native", [NATIVE])
@pytest.mark.parametrize("scheme", [SCHEMES["zero"], SCHEMES["mean"], SCHEMES["absolute"]])
@pytest.mark.parametrize(
    ("bits", "kind"), [(8, "PER_CHANNEL"), (4, "PER_CHANNEL"), pytest.param(8, "PER_TENSOR", marks=pytest.mark.slow)]
)
def test_quantizes_as_the_body_does(bits: int, kind: str, scheme: QuantScheme, native: bool) -> None:
    for step in (((300,), 400, 1), ((290,), 290, 290), ((300, 170), 310, 1)):
        plain = decoding(*step)
        query = plain.inputs[0]
        assert query is not None
        case = cached(dataclasses.replace(plain, inputs=[query * 4, *plain.inputs[1:]]), bits, kind)
        model, _ = rewritten(case, scheme)
        found, expected = (
            defined(case, session(model, native=used).run(None, case.feeds())) for used in (native, False)
        )
        assert share_of_rows_that_differ(found, expected) <= FLIPPED_ROWS


def test_a_cache_that_onnxruntime_does_not_run_is_refused() -> None:
    case = cached(decoding((5,), 8), 8, "PER_TENSOR")
    mixed = dataclasses.replace(case, attributes={**case.attributes, "v_quant_type": "PER_CHANNEL"})
    assert "PER_CHANNEL and PER_TENSOR" in mixed.declined()
    scaled = dataclasses.replace(case, inputs=case.inputs[:12])
    assert "without scales" in scaled.declined()
