"""The decoder that we ship is the one that we reviewed."""

from pathlib import Path

MODELS = Path(__file__).parent.parent / "models"


def test_graph_is_the_reviewed_one(assert_rewrite):
    assert_rewrite(MODELS / "decoder.onnx", "../golden/decoder.txt")
