"""What may be asked of the outputs of a model, and how it is written."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Final

import onnx_ir as ir

from onnx_attnq.errors import InvalidScheme
from onnx_attnq.verification.deviation import FIGURES, HIGHER_IS_BETTER
from onnx_attnq.verification.outputs import QUANTILES, OutputDeviation

RTOL: Final = 1e-4
"""Relative tolerance where none is asked for: float32 sums of a few thousand terms in another order stay below it."""
ATOL: Final = 1e-5
"""Absolute tolerance where none is asked for, for values near zero."""


@dataclasses.dataclass(frozen=True)
class Limit:
    """A bound on one figure.

    Attributes:
        figure: One of `deviation.FIGURES` and `outputs.QUANTILES`.
        value: Upper bound; lower bound for cosine and top1_agreement.
        output: The output that it holds for; None for all.
    """

    figure: str
    value: float
    output: str | None = None

    @classmethod
    def parse(cls, text: str) -> Limit:
        """[OUTPUT:]FIGURE>=VALUE or [OUTPUT:]FIGURE<=VALUE, the sign as the figure demands; = stands for either.

        Raises:
            InvalidScheme: It is no limit, or one from the wrong side.

        >>> Limit.parse("logits:cosine>=0.99")
        Limit(figure='cosine', value=0.99, output='logits')
        >>> str(Limit.parse("p99_abs=1e-3"))
        'p99_abs<=0.001'
        """
        match = re.fullmatch(r"(?:(?P<output>.+):)?(?P<figure>\w+?)(?P<sign>[<>]?=)(?P<value>[^<>=]+)", text.strip())
        try:
            value = float(match["value"]) if match is not None else float("nan")
        except ValueError:
            value = float("nan")
        names = (*FIGURES, *QUANTILES)
        if match is None or value != value or match["figure"] not in names:
            raise InvalidScheme(
                f"{text!r} is no limit; write [OUTPUT:]FIGURE>=VALUE or <=VALUE, FIGURE one of {', '.join(names)}"
            )
        limit = cls(match["figure"], value, match["output"])
        if match["sign"] not in ("=", limit.sign):
            raise InvalidScheme(f"{text!r} bounds nothing; write {limit}")
        return limit

    @property
    def sign(self) -> str:
        """``>=`` where higher is better, else ``<=``."""
        return ">=" if self.figure in HIGHER_IS_BETTER else "<="

    def is_met(self, figure: float) -> bool:
        """Whether a figure is within the bound; NaN is not."""
        return figure >= self.value if self.sign == ">=" else figure <= self.value

    def __str__(self) -> str:
        prefix = "" if self.output is None else f"{self.output}:"
        return f"{prefix}{self.figure}{self.sign}{self.value:g}"


@dataclasses.dataclass(frozen=True)
class Limits:
    """What is asked of the outputs of a model; false when nothing is.

    Attributes:
        figures: Bounds on figures.
        rtol: Relative tolerance of each element, or None; together with ``atol`` as in numpy.isclose.
        atol: Absolute tolerance of each element, or None; None is 0 where the other is given.
    """

    figures: tuple[Limit, ...] = ()
    rtol: float | None = None
    atol: float | None = None

    def __bool__(self) -> bool:
        return bool(self.figures) or self.rtol is not None or self.atol is not None

    def check(self, model: ir.Model) -> None:
        """Raise InvalidScheme for a limit on an output that the model does not have."""
        outputs = [value.name or "" for value in model.graph.outputs]
        for limit in self.figures:
            if limit.output is not None and limit.output not in outputs:
                raise InvalidScheme(f"{limit}: no output is called so; the outputs are {', '.join(outputs)}")

    def violations(self, outputs: Mapping[str, OutputDeviation]) -> list[str]:
        """What is not within them, a sentence each."""
        found = []
        for name, output in outputs.items():
            limits = [limit for limit in self.figures if limit.output in (None, name)]
            if output.deviation.one_sided:
                count = output.deviation.one_sided
                found.append(f"output {name!r}: {count} elements are NaN or infinite in one model only")
            if output.far:
                bound = f"atol {self.atol or 0:g} and rtol {self.rtol or 0:g}"
                found.append(f"output {name!r}: {output.far} elements differ by more than {bound}")
            if output.shapes and (limits or self.rtol is not None or self.atol is not None):
                found.append(f"output {name!r}: {output.shapes[0]}")
            for limit in limits:
                figure = output.figure(limit.figure)
                if figure is not None and not limit.is_met(figure):
                    found.append(f"output {name!r}: {limit.figure} is {figure:.6g}, not {limit}")
        return found + self.missing(outputs)

    def missing(self, outputs: Mapping[str, OutputDeviation]) -> list[str]:
        """Limits on a figure that their output does not have, or none of the outputs does, a sentence each."""
        found = []
        for limit in self.figures:
            names = [name for name in outputs if limit.output in (None, name)]
            compared = not any(outputs[name].shapes for name in names)
            if compared and all(outputs[name].figure(limit.figure) is None for name in names):
                whose = "no output has" if limit.output is None else f"output {limit.output!r} does not have"
                found.append(f"{limit}: {whose} this figure, which is of logits and probabilities only")
        return found

    def hold(self, outputs: Mapping[str, OutputDeviation]) -> bool:
        """Whether all outputs are within them."""
        return not self.violations(outputs)


__all__ = ["ATOL", "RTOL", "Limit", "Limits"]
