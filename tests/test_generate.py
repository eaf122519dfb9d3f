"""Inputs made up from a signature: onnxruntime takes them, and they are what the model's parts expect."""

from __future__ import annotations

import hashlib

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import small_models
from hypothesis import given
from hypothesis import strategies as st

from onnx_attnq.errors import InvalidData
from onnx_attnq.inputs import Sample, check_sample, generate_samples, model_inputs
from onnx_attnq.inputs.made_up import PADDING, PAST_LENGTH

DECODER = """
<ir_version: 8, opset_import: ["" : 17]>
decoder (int64[batch, n] input_ids, int64[batch, total] attention_mask, int64[batch, n] position_ids,
         float[batch, 2, past, 4] past_key, float[batch, 2, past, 4] past_value)
    => (float[batch, 2, n, 4] y, float[batch, 2, total, 4] present_key)
<float[50, 8] words, float[20, 8] positions>
{
    word = Gather(words, input_ids)
    place = Gather(positions, position_ids)
    x = Add(word, place)
    split = Constant<value_ints = [0, 0, 2, 4]>()
    heads = Reshape(x, split)
    query = Transpose<perm = [0, 2, 1, 3]>(heads)
    present_key = Concat<axis = 2>(past_key, query)
    present_value = Concat<axis = 2>(past_value, query)
    key = Transpose<perm = [0, 1, 3, 2]>(present_key)
    scores = MatMul(query, key)
    visible = Cast<to = 1>(attention_mask)
    axes = Constant<value_ints = [1, 2]>()
    row = Unsqueeze(visible, axes)
    logarithm = Log(row)
    masked = Add(scores, logarithm)
    probabilities = Softmax<axis = -1>(masked)
    y = MatMul(probabilities, present_value)
}
"""

GROUPED = """
<ir_version: 8, opset_import: ["" : 17, "com.microsoft" : 1]>
grouped (float[batch, n, 32] q, float[batch, n, 16] k, float[batch, n, 16] v, float[batch, 1, past, 16] past_key,
         float[batch, 1, past, 16] past_value, int32[batch] lengths, int32 total)
    => (float[batch, n, 32] y, float[batch, 1, t, 16] present_key, float[batch, 1, t, 16] present_value)
{
    y, present_key, present_value = com.microsoft.GroupQueryAttention<num_heads = 2, kv_num_heads = 1>
        (q, k, v, past_key, past_value, lengths, total)
}
"""

PATCHES = """
<ir_version: 8, opset_import: ["" : 17]>
patches (float[batch, channels, height, width] pixel_values) => (float[batch, 8, n] y)
<float[8, 3, 4, 4] kernel, float[1, 8, 36] positions, float[1, 37, 8] table>
{
    cut = Conv<strides = [4, 4]>(pixel_values, kernel)
    flat = Constant<value_ints = [0, 8, -1]>()
    rows = Reshape(cut, flat)
    y = Add(rows, positions)
}
"""

SIGNAL = """
<ir_version: 8, opset_import: ["" : 17]>
signal (float[batch, n] input_values) => (float[batch, 8, frames] y)
<float[8, 1, 10] first, float[8, 8, 3] second>
{
    axis = Constant<value_ints = [1]>()
    channel = Unsqueeze(input_values, axis)
    a = Conv<strides = [5]>(channel, first)
    b = Relu(a)
    y = Conv<strides = [2], dilations = [2]>(b, second)
}
"""

IN_FUNCTION = """
<ir_version: 8, opset_import: ["" : 17, "local" : 1]>
outer (int32[batch, n] tokens) => (float[batch, n, 4] y)
<float[11, 4] words>
{
    y = local.embed(words, tokens)
}
<domain: "local", opset_import: ["" : 17]>
embed (table, ids) => (y)
{
    wide = Cast<to = 7>(ids)
    y = Gather(table, wide)
}
"""


def generate(proto: onnx.ModelProto, **arguments: int) -> tuple[Sample, ...]:
    return generate_samples(ir.from_proto(proto), **arguments)


def run(proto: onnx.ModelProto, sample: Sample) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    return [np.asarray(output) for output in session.run(None, dict(sample))]


@pytest.mark.parametrize(
    "text",
    [small_models.ATTENTION, small_models.BERT, DECODER, GROUPED, PATCHES, SIGNAL, IN_FUNCTION],
    ids=["attention", "bert", "decoder", "grouped", "patches", "signal", "in-function"],
)
def test_onnxruntime_takes_every_sample(text: str) -> None:
    proto = small_models.parse(text)
    inputs = model_inputs(ir.from_proto(proto))
    for sample in generate(proto):
        check_sample(sample, inputs, "generated")
        assert all(np.isfinite(output).all() for output in run(proto, sample))


def test_the_mask_covers_past_and_tokens_and_hides_something() -> None:
    for sample in generate(small_models.parse(DECODER)):
        mask = sample["attention_mask"]
        past = sample["past_key"].shape[2]
        assert mask.shape[1] == past + sample["input_ids"].shape[1]
        assert mask[:-1].all()
        hidden = PADDING if mask.shape[1] > PADDING + 1 else 0
        visible = [1] * (mask.shape[1] - hidden)
        assert mask[-1].tolist() == ([0] * hidden + visible if past else visible + [0] * hidden)


def test_a_past_is_followed_by_one_token_and_by_several() -> None:
    lengths = [sample["input_ids"].shape[1] for sample in generate(small_models.parse(DECODER))]
    assert 1 in lengths
    assert max(lengths) > 1


def test_there_are_pasts_of_no_token_of_one_and_of_many() -> None:
    pasts = [sample["past_key"].shape[2] for sample in generate(small_models.parse(DECODER))]
    assert pasts == [PAST_LENGTH, PAST_LENGTH, 0, 1]


def test_positions_go_on_where_the_past_ends_and_stay_in_their_table() -> None:
    for sample in generate(small_models.parse(DECODER)):
        tokens = sample["input_ids"].shape[1]
        expected = np.minimum(sample["past_key"].shape[2] + np.arange(tokens), 19)
        np.testing.assert_array_equal(sample["position_ids"], np.tile(expected, (len(sample["input_ids"]), 1)))


def test_ids_are_below_the_size_of_the_vocabulary_wherever_it_is_looked_up() -> None:
    ids = np.concatenate([sample["tokens"].ravel() for sample in generate(small_models.parse(IN_FUNCTION), count=50)])
    assert ids.dtype == np.int32
    assert set(ids) == {4, 5, 6, 7, 8, 9, 10}


def test_the_table_of_positions_tells_the_size_of_an_image() -> None:
    (sample,) = generate(small_models.parse(PATCHES), count=1)
    assert sample["pixel_values"].shape == (2, 3, 24, 24)


def test_a_signal_is_as_long_as_its_convolutions_need() -> None:
    proto = small_models.parse(SIGNAL)
    (sample,) = generate(proto, count=1)
    assert run(proto, sample)[0].shape == (2, 8, 8)


def test_lengths_that_the_model_fixes_are_kept() -> None:
    proto = small_models.parse(DECODER.replace("int64[batch, n] input_ids", "int64[1, 5] input_ids"))
    for sample in generate(proto):
        assert sample["input_ids"].shape == (1, 5)
        assert sample["attention_mask"].shape == (len(sample["past_key"]), sample["past_key"].shape[2] + 5)


def test_a_mask_with_an_axis_for_queries_is_added_to_the_scores() -> None:
    text = (
        '<ir_version: 8, opset_import: ["" : 17]> m (float[b, 1, n, n] mask) => (float[b, 1, n, n] y) { y = Neg(mask) }'
    )
    (sample,) = generate(small_models.parse(text), count=1)
    assert set(np.unique(sample["mask"])) == {-1e4, 0.0}


def test_a_merged_decoder_is_switched_on_and_off() -> None:
    text = DECODER.replace("int64[batch, n] input_ids", "int64[batch, n] input_ids, bool[1] use_cache_branch")
    switches = [bool(sample["use_cache_branch"][0]) for sample in generate(small_models.parse(text))]
    assert switches == [False, True, False, True]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "double", "float"])
def test_features_have_the_type_of_the_input_and_variance_one(dtype: str) -> None:
    text = f'<ir_version: 8, opset_import: ["" : 17]> m ({dtype}[64, 64] x) => ({dtype}[64, 64] y) {{ y = Neg(x) }}'
    (item,) = model_inputs(ir.from_proto(small_models.parse(text)))
    (sample,) = generate(small_models.parse(text), count=1)
    assert sample["x"].dtype == item.dtype
    values = sample["x"].astype(np.float64)
    # Four standard errors, of the mean and of the mean square (variance 0.8 for the uniform distribution), of 4096.
    assert abs(values.mean()) < 4 / 64
    assert abs((values**2).mean() - 1) < 4 * 0.8**0.5 / 64


def test_the_same_seed_gives_the_same_arrays_on_every_machine() -> None:
    def digest(seed: int) -> str:
        samples = generate(small_models.parse(DECODER), seed=seed)
        return hashlib.sha256(b"".join(array.tobytes() for sample in samples for array in sample.values())).hexdigest()

    assert digest(0) == "40f36176b979bfdef8d70465d3920e533b9e932434c9c20ad6532286e1db852a"
    assert digest(1) != digest(0)


@pytest.mark.parametrize(
    "shape",
    ["1152921504606846976", "1048576, 1048576", "batch, 4611686018427387904, 0, 1073741825", ", ".join("1" * 70)],
)
def test_a_hostile_shape_is_refused_before_it_takes_memory(shape: str) -> None:
    text = f'<ir_version: 8, opset_import: ["" : 17]> m (float[{shape}] x) => (float[n] y) {{ y = Identity(x) }}'
    with pytest.raises(InvalidData, match=r"input 'x' .* is too large to be made up"):
        generate(small_models.parse(text))


DIMS = st.sampled_from(
    [None, 1, 3, "batch", "n", "past_n", "past_n + n", "total", "encoder_n", "2*n", "max_n", "n - 1"]
)
NAMES = st.sampled_from(
    ["input_ids", "attention_mask", "position_ids", "token_type_ids", "past.0.key", "past_length", "x", "use_cache"]
)
TYPES = st.sampled_from([onnx.TensorProto.INT64, onnx.TensorProto.INT32, onnx.TensorProto.FLOAT, onnx.TensorProto.BOOL])


@given(st.dictionaries(NAMES, st.tuples(TYPES, st.none() | st.lists(DIMS, max_size=4)), min_size=1))
def test_whatever_the_signature_the_samples_fit_it(
    signature: dict[str, tuple[int, list[str | int | None] | None]],
) -> None:
    infos = [onnx.helper.make_tensor_value_info(name, dtype, shape) for name, (dtype, shape) in signature.items()]
    nodes = [onnx.helper.make_node("Identity", [info.name], [f"y{index}"]) for index, info in enumerate(infos)]
    outputs = [onnx.helper.make_tensor_value_info(node.output[0], 1, None) for node in nodes]
    model = ir.from_proto(onnx.helper.make_model(onnx.helper.make_graph(nodes, "g", infos, outputs)))
    for sample in generate_samples(model):
        check_sample(sample, model_inputs(model), "generated")
