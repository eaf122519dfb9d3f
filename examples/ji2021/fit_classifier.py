"""Put a linear classifier on an exported encoder, fitted on the first half of a file in SST-2's format.

    python examples/ji2021/fit_classifier.py minilm-onnx/model.onnx sst2-dev.tsv -o minilm-sst2

No package ships a trained classifier. The encoder stays as it is; the mean of its last hidden states goes through a
logistic regression, which becomes two nodes of the model. The other half of the file is written beside the model as
held_out.tsv, for evaluation. Where the encoder's tokenizer pads, the mean would count the padding: feed texts one by
one, as `onnx-attnq evaluate` does.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper
from sklearn.linear_model import LogisticRegression

from onnx_attnq.evaluate import TextModel, load_tokenizer
from onnx_attnq.evaluate.data import read_labelled_texts
from onnx_attnq.run import RunSettings

HIDDEN = "last_hidden_state"


def means(model: Path, texts: list[str]) -> npt.NDArray[np.float32]:
    """The mean hidden state of each text, (n, D)."""
    encoder = TextModel.load(model, load_tokenizer(model.parent), run=RunSettings(1))
    return np.stack([encoder.run(encoder.tokenizer([text]))[HIDDEN][0].mean(axis=0) for text in texts])


def with_classifier(model: onnx.ModelProto, weight: npt.NDArray[np.float32], bias: npt.NDArray[np.float32]) -> None:
    """Replace the model's outputs by logits of two classes; ``weight`` (D,) and ``bias`` (1,) give the second's."""
    graph = model.graph
    graph.node.extend(
        [
            helper.make_node("Transpose", [HIDDEN], ["features_first"], perm=[0, 2, 1]),
            helper.make_node("GlobalAveragePool", ["features_first"], ["mean"]),  # unlike ReduceMean, one in all opsets
            helper.make_node("Flatten", ["mean"], ["features"]),
            helper.make_node("Gemm", ["features", "classifier_weight", "classifier_bias"], ["logits"]),
        ]
    )
    graph.initializer.extend(
        [
            numpy_helper.from_array(np.stack([np.zeros_like(weight), weight], axis=1), "classifier_weight"),
            numpy_helper.from_array(np.concatenate([np.zeros_like(bias), bias]), "classifier_bias"),
        ]
    )
    del graph.output[:]
    graph.output.append(helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, [None, 2]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("encoder", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    options = parser.parse_args()

    examples = read_labelled_texts(options.data)
    fitted, held_out = examples[: len(examples) // 2], examples[len(examples) // 2 :]
    found = LogisticRegression(max_iter=1000).fit(
        means(options.encoder, [item.text for item in fitted]), [item.label for item in fitted]
    )
    print(f"fitted on {len(fitted)} texts, {len(held_out)} held out")

    shutil.copytree(options.encoder.parent, options.output)
    model = onnx.load(options.encoder)
    with_classifier(model, found.coef_[0].astype(np.float32), found.intercept_.astype(np.float32))
    onnx.save(model, options.output / options.encoder.name)
    rows = "".join(f"{item.text}\t{item.label}\n" for item in held_out)
    (options.output / "held_out.tsv").write_text(f"sentence\tlabel\n{rows}", encoding="utf-8")


if __name__ == "__main__":
    main()
