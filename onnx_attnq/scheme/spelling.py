"""Schemes as the command line takes them: ``row-log:bits=2,threshold=0.1``."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Final

from onnx_attnq.errors import InvalidScheme
from onnx_attnq.scheme.presets import PRESETS, preset
from onnx_attnq.scheme.quant_scheme import QuantScheme

FIELDS: Final[Mapping[str, Callable[[str], Any]]] = MappingProxyType({"bits": int, "threshold": float, "pruned": str})
"""What may follow the name of a preset, with the type of its value: arguments of `preset`."""

GRAMMAR: Final = f"NAME[:{','.join(f'{field}={field[0].upper()}' for field in FIELDS)}]"


def parse_scheme(text: str, **more: Any) -> QuantScheme:
    """A preset with its arguments.

    Args:
        text: The name of a preset; or name, colon, and fields such as ``bits=2`` with commas between them.
        more: Arguments that are given elsewhere, such as ``bits``; None where they are not.

    Raises:
        InvalidScheme: The text is not of this form, a field is given twice, or the preset does not take it.

    >>> parse_scheme("row-log:bits=2,threshold=0.1") == preset("row-log", bits=2, threshold=0.1)
    True
    >>> parse_scheme("ji2021", bits=4).bits
    4
    """
    name, colon, rest = text.partition(":")
    if name not in PRESETS:
        raise InvalidScheme(f"unknown scheme {name!r}; known: {', '.join(PRESETS)}")
    found = {field: value for field, value in more.items() if value is not None}
    for item in rest.split(",") if colon else ():
        field, equals, value = item.partition("=")
        if field not in FIELDS or not equals:
            raise InvalidScheme(f"scheme {text!r}: {item!r} is not of the form {GRAMMAR}")
        if field in found:
            raise InvalidScheme(f"scheme {text!r}: {field} is given twice")
        try:
            found[field] = FIELDS[field](value)
        except ValueError:
            raise InvalidScheme(f"scheme {text!r}: {field} must be a number, not {value!r}") from None
    return preset(name, **found)


def spell_scheme(scheme: QuantScheme) -> str:
    """The shortest text that `parse_scheme` makes this scheme of; its name where there is none.

    >>> spell_scheme(preset("row-log", bits=2))
    'row-log:bits=2'
    """
    fields = [f"bits={scheme.bits}", f"threshold={scheme.threshold:g}", f"pruned={scheme.pruned}"]
    for some in itertools.chain(*(itertools.combinations(fields, count) for count in range(4))):
        text = ":".join([scheme.name, ",".join(some)]) if some else scheme.name
        with contextlib.suppress(InvalidScheme):
            if parse_scheme(text) == scheme:
                return text
    return scheme.name


__all__ = ["FIELDS", "GRAMMAR", "parse_scheme", "spell_scheme"]
