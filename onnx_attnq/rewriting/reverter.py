"""Give back the original graph of a rewritten model."""

from __future__ import annotations

import onnx_ir as ir

from onnx_attnq.errors import CannotRevert, InvalidModel
from onnx_attnq.graph import apply
from onnx_attnq.model import recheck, structure_hash
from onnx_attnq.rewriting.record import METADATA, Record, read_record


def revert(model: ir.Model) -> Record:
    """Undo a rewrite, in place, and make sure that it is the original graph that came back.

    The record in the model's metadata has what was removed. The result has the structure of the original: nodes,
    their names and their order, wiring, attributes, opsets and functions are what they were.
    Weights were never touched. As the record may come from anywhere, the result is checked as a file is when it is
    loaded.

    Args:
        model: A rewritten model. Undefined after an error.

    Returns:
        The record that the model carried.

    Raises:
        CannotRevert: The model was not rewritten, was changed afterwards, or its record says why it cannot be.
    """
    record = read_record(model)
    if record is None:
        raise CannotRevert("the model carries no record of a rewrite; there is nothing to revert")
    if record.undo is None:
        raise CannotRevert(f"the rewrite cannot be reverted: {record.irreversible}; take the original model")
    try:
        apply(record.undo, model)
    except Exception as error:  # whatever a damaged or forged record makes onnx_ir raise
        raise CannotRevert(_CHANGED) from error
    del model.metadata_props[METADATA]
    try:
        recheck(model)
    except InvalidModel as error:
        raise CannotRevert(f"{_CHANGED} ({error})") from None
    if structure_hash(model) != record.structure_hash:
        raise CannotRevert(_CHANGED)
    return record


_CHANGED = "the model was changed after it was rewritten, so that what was removed does not fit any more"


__all__ = ["revert"]
