"""Models of a few nodes, made on the spot."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.external_data_helper
import onnx.parser

ATTENTION = """
<ir_version: 8, opset_import: ["" : 17], producer_name: "tests", metadata_props: ["zebra": "1", "ant": "2"]>
attention (float[batch, length, 8] x) => (float[batch, length, 8] y)
<float[8, 8] weight, float[8] bias>
{
    query = MatMul(x, weight)
    key = Transpose<perm = [0, 2, 1]>(x)
    scores = MatMul(query, key)
    probabilities = Softmax<axis = -1>(scores)
    context = MatMul(probabilities, x)
    y = Add(context, bias)
}
"""

BERT = """
<ir_version: 8, opset_import: ["" : 17]>
bert (int64[batch, length] input_ids, int64[batch, length] attention_mask, int64[batch, length] token_type_ids)
    => (float[batch, length, 8] y)
<float[100, 8] words, float[2, 8] segments>
{
    word = Gather(words, input_ids)
    segment = Gather(segments, token_type_ids)
    x = Add(word, segment)
    visible = Cast<to = 1>(attention_mask)
    axis = Constant<value_ints = [1]>()
    column = Unsqueeze(visible, axis)
    one = Constant<value_float = 1.0>()
    far = Constant<value_float = -10000.0>()
    hidden = Sub(one, column)
    bias = Mul(hidden, far)
    key = Transpose<perm = [0, 2, 1]>(x)
    scores = MatMul(x, key)
    masked = Add(scores, bias)
    probabilities = Softmax<axis = -1>(masked)
    y = MatMul(probabilities, x)
}
"""


def parse(text: str, **weights: np.ndarray) -> onnx.ModelProto:
    """A model from ONNX text; what its header declares becomes an initializer, random unless given."""
    proto = onnx.parser.parse_model(text)
    random = np.random.default_rng(0)
    for info in proto.graph.value_info:
        shape = tuple(dim.dim_value for dim in info.type.tensor_type.shape.dim)
        array = weights.get(info.name, random.standard_normal(shape).astype(np.float32))
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, info.name))
    del proto.graph.value_info[:]
    return proto


def attention() -> onnx.ModelProto:
    return parse(ATTENTION)


def write(proto: onnx.ModelProto, path: Path) -> Path:
    path.write_bytes(proto.SerializeToString())
    return path


def write_external(proto: onnx.ModelProto, path: Path, location: str = "weights.bin") -> Path:
    """Write the model with every initializer in one file beside it."""
    proto = onnx.ModelProto.FromString(proto.SerializeToString())
    onnx.external_data_helper.convert_model_to_external_data(proto, location=location, size_threshold=0)
    onnx.save(proto, path)
    return path


def in_hub_cache(path: Path, location: str) -> Path:
    """Move a model and its data to where the cache of the Hugging Face hub has them: behind symbolic links."""
    blobs, snapshot = path.parent / "blobs", path.parent / "snapshots" / "main"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    for number, file in enumerate((path, path.with_name(location))):
        file.rename(blobs / str(number))
        (snapshot / file.name).symlink_to(f"../../blobs/{number}")
    return snapshot / path.name
