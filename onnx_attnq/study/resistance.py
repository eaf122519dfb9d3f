"""Why a head resists a scheme, and under which of the measured schemes it is safe."""

from __future__ import annotations

import dataclasses
from typing import Any, Final

import numpy as np

from onnx_attnq.scheme import Pruned, QuantScheme, Reference, spell_scheme
from onnx_attnq.study.conclusions import Finding, Head, findings
from onnx_attnq.study.model_study import Study
from onnx_attnq.study.site_statistics import EDGES

_MUCH: Final = 0.1
"""Share of the rows' mass from which on pruning is what changes a head: what is kept then is 1.1 times as large."""


@dataclasses.dataclass(frozen=True)
class Resistance:
    """A head that is not safe under a scheme.

    Attributes:
        head: Which, with its error.
        mass: Share of the rows' mass in values below the scheme's threshold, 0 to 1.
        why: In words.
        remedy: What would make it safe, in words.
        safe_with: The schemes that were measured under which it is safe, the fewest bits first.
    """

    head: Head
    mass: float
    why: str
    remedy: str
    safe_with: tuple[QuantScheme, ...]

    def __str__(self) -> str:
        """One line: "layer.3/Softmax head 7 (0.41): …; …"."""
        return f"{self.head}: {self.why}; {self.remedy}"

    def to_json(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "layer": self.head.layer,
            "site": self.head.site,
            "head": self.head.head,
            "context_error": self.head.error,
            "mass_below_threshold": self.mass,
            "why": self.why,
            "remedy": self.remedy,
            "safe_with": [spell_scheme(scheme) for scheme in self.safe_with],
        }


def resistances(study: Study, finding: Finding) -> tuple[Resistance, ...]:
    """Every head that is not safe under a scheme, the worst first.

    Args:
        study: Any study.
        finding: Of one of its schemes.
    """
    others = {(f.scheme, h.site, h.head): h.error for f in findings(study, finding.limit) for h in f.heads}
    found = []
    for head in finding.resisting:
        safe = [s for s in study.schemes if s.bits is not None and others[s, head.site, head.head] <= finding.limit]
        mass = _mass_below(study, head, finding.scheme)
        fewest = tuple(sorted(safe, key=lambda s: (s.bits or 0, -s.threshold)))
        found.append(Resistance(head, mass, _why(finding.scheme, mass), _remedy(finding.scheme, mass, fewest), fewest))
    return tuple(found)


def _mass_below(study: Study, head: Head, scheme: QuantScheme) -> float:
    site = next(site for site in study.sites if site.site == head.site)
    lost = site.mass_lost(relative=scheme.reference is Reference.ROW_MAX)[head.head]
    return float(lost[min(int(np.searchsorted(EDGES, scheme.threshold * (1.0 + 1e-9))), len(lost) - 1)])


def _why(scheme: QuantScheme, mass: float) -> str:
    if mass >= _MUCH:
        verb = "spreads evenly" if scheme.pruned is Pruned.MEAN else "prunes"
        return f"the scheme {verb} {mass:.0%} of its mass, which many small values hold"
    levels = "one level" if scheme.bits == 1 else f"{scheme.levels} levels" if scheme.bits else "no levels"
    return f"{1.0 - mass:.0%} of its mass is in values above the threshold, for which {levels} are too coarse"


def _remedy(scheme: QuantScheme, mass: float, safe: tuple[QuantScheme, ...]) -> str:
    if safe:
        return f"safe with {spell_scheme(safe[0])}"
    if mass < _MUCH:
        change = "more bits"
    else:
        change = "a lower threshold" if scheme.pruned is Pruned.MEAN else "a lower threshold, or pruned=mean"
    return f"no scheme that was measured makes it safe: measure {change}, or leave it alone in a plan"


__all__ = ["Resistance", "resistances"]
