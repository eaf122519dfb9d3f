"""What a tuning run has measured so far, on disk: a line of JSON for each unit, appended when the unit is done.

A run that is interrupted, or killed, loses the units it was in the middle of and nothing else; the same command with
``--resume`` measures the rest, and arrives at the same plan.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from onnx_attnq.errors import AttnqError, CannotWrite, InvalidData
from onnx_attnq.inputs import Sample
from onnx_attnq.reading import parse_json, read_regular
from onnx_attnq.scheme import QuantScheme
from onnx_attnq.tune.sensitivity import Trial, Unit

FORMAT: Final = 2


@dataclasses.dataclass(frozen=True)
class Purpose:
    """What was measured; a journal of another purpose is not resumed.

    Attributes:
        model: SHA-256 of the model's file.
        data: SHA-256 of the samples.
        candidates: SHA-256 of the schemes that are tried.
    """

    model: str
    data: str
    candidates: str

    @classmethod
    def of(cls, model: str, samples: Sequence[Sample], candidates: Sequence[QuantScheme]) -> Purpose:
        """The purpose of measuring these."""
        data = hashlib.sha256()
        for sample in samples:
            for name in sorted(sample):
                array = np.ascontiguousarray(sample[name])
                data.update(f"{name} {array.dtype.str} {array.shape}".encode())
                data.update(array.tobytes() if array.dtype.kind != "O" else repr(array.tolist()).encode())
        schemes = json.dumps([scheme.to_json() for scheme in candidates], sort_keys=True)
        return cls(model, data.hexdigest(), hashlib.sha256(schemes.encode()).hexdigest())


class Lines:
    """A file of JSON, one object a line, the first of which says what the others are of.

    Args:
        path: The file; made at once, unless it is resumed.
        header: What the lines are of.
        resume: Read the lines that the file has, which must have the same header.

    Raises:
        InvalidData: The file to resume has another header, or is no such file.
        CannotWrite: There is a file already that is not to be resumed, or it cannot be written.
    """

    def __init__(self, path: str | os.PathLike[str], header: Mapping[str, Any], *, resume: bool = False) -> None:
        self.path = Path(path)
        self.lines: list[Any] = []
        if resume and self.path.exists():
            self._read({"format": FORMAT, **header})
            return
        try:
            with self.path.open("x", encoding="utf-8") as file:
                file.write(json.dumps({"format": FORMAT, **header}) + "\n")
        except FileExistsError:
            raise CannotWrite(
                f"{self.path} holds an earlier run; continue it with --resume, or remove it to start again"
            ) from None
        except OSError as error:
            raise CannotWrite(f"{self.path}: {error.strerror or error}") from None

    def add(self, entry: Mapping[str, Any]) -> None:
        """Write a line; after this call it is on disk."""
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(entry) + "\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise CannotWrite(f"{self.path}: {error.strerror or error}") from None
        self.lines.append(entry)

    def _read(self, header: Mapping[str, Any]) -> None:
        try:
            text = read_regular(self.path).decode()
        except (OSError, UnicodeDecodeError) as error:
            raise InvalidData(f"{self.path}: not a journal of a tuning run ({error})") from None
        whole = text[: text.rfind("\n") + 1]
        lines = whole.splitlines()
        try:
            if not lines or parse_json(lines[0]) != header:
                raise InvalidData(
                    f"{self.path} is of another model, other samples or other candidates; remove it to start again"
                )
            self.lines = [parse_json(line) for line in lines[1:]]
        except ValueError as error:
            raise InvalidData(f"{self.path}: not a journal of a tuning run ({error})") from None
        if whole != text:  # a line that was being written when the run was killed
            self.path.write_text(whole, encoding="utf-8")


class Journal:
    """The units of a run that are done.

    Args:
        path: The file, as of `Lines`.
        purpose: What is measured.
        resume: Read the units that the file has, which must be of the same purpose.

    Raises:
        InvalidData: As by `Lines`, or a line is no unit.
        CannotWrite: As by `Lines`.
    """

    def __init__(self, path: str | os.PathLike[str], purpose: Purpose, *, resume: bool = False) -> None:
        self._lines = Lines(path, dataclasses.asdict(purpose), resume=resume)
        try:
            self.done = {
                Unit(**entry["unit"]): tuple(Trial.from_json(trial) for trial in entry["trials"])
                for entry in self._lines.lines
            }
        except (AttnqError, ValueError, TypeError, KeyError) as error:
            raise InvalidData(f"{path}: not a journal of a tuning run ({error})") from None

    def add(self, unit: Unit, trials: Sequence[Trial]) -> None:
        """Write a unit down; after this call it is on disk."""
        self._lines.add({"unit": dataclasses.asdict(unit), "trials": [trial.to_json() for trial in trials]})
        self.done[unit] = tuple(trials)


__all__ = ["Journal", "Lines", "Purpose"]
