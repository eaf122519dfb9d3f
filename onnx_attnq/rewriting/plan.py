"""What each site gets: a scheme, or nothing and why. Plain data that a person can read and edit."""

from __future__ import annotations

import dataclasses
import fnmatch
import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from onnx_attnq.atomic import replacing
from onnx_attnq.errors import AttnqError, InvalidPlan
from onnx_attnq.reading import check_fields, parse_json, read_regular
from onnx_attnq.scheme import QuantScheme

FORMAT: Final = 1
"""Version of the JSON form."""


@dataclasses.dataclass(frozen=True)
class SitePlan:
    """What one site gets.

    Attributes:
        site: Id of the site.
        scheme: The scheme, or None to leave the site as it is.
        reason: Why it is left; empty where there is a scheme.
    """

    site: str
    scheme: QuantScheme | None
    reason: str = ""

    def __post_init__(self) -> None:
        if (self.scheme is None) == (self.reason == ""):
            raise InvalidPlan(f"site {self.site!r} needs a scheme, or null and a reason, and not both")


@dataclasses.dataclass(frozen=True)
class Plan:
    """What every site of one model gets.

    Attributes:
        model: Fingerprint of the model that the plan was made for.
        sites: One entry for each site, in the order of the graph.

    Raises:
        InvalidPlan: A site has two entries.

    >>> from onnx_attnq.scheme import preset
    >>> plan = Plan("c0ffee", (SitePlan("a", preset()), SitePlan("b", None, "excluded")))
    >>> Plan.from_json(plan.to_json()) == plan
    True
    """

    model: str
    sites: tuple[SitePlan, ...]

    def __post_init__(self) -> None:
        seen: set[str] = set()
        for entry in self.sites:
            if entry.site in seen:
                raise InvalidPlan(f"site {entry.site!r} stands twice in the plan")
            seen.add(entry.site)

    def scheme_of(self, site: str) -> QuantScheme | None:
        """The scheme of a site, None when it is left as it is."""
        return next((entry.scheme for entry in self.sites if entry.site == site), None)

    @property
    def hash(self) -> str:
        """SHA-256 of the model's fingerprint and what each site gets; why others are left plays no part."""
        given = [(entry.site, entry.scheme.to_json()) for entry in self.sites if entry.scheme is not None]
        return hashlib.sha256(json.dumps([self.model, given], sort_keys=True).encode()).hexdigest()

    def check(self, model: str, sites: Iterable[str]) -> None:
        """Make sure that the plan belongs to a model and covers each of its sites.

        Raises:
            InvalidPlan: Another model's plan, a site that the model does not have, or one without entry.
        """
        if self.model != model:
            raise InvalidPlan(f"the plan was made for the model {self.model[:12]}…, this one is {model[:12]}…")
        planned, present = [entry.site for entry in self.sites], list(sites)
        for site in planned:
            if site not in present:
                raise InvalidPlan(f"the plan names the site {site!r}, which the model does not have")
        for site in present:
            if site not in planned:
                raise InvalidPlan(f"the plan has no entry for the site {site!r}")

    def to_json(self) -> dict[str, Any]:
        """JSON values; each scheme stands once, under a name, and the sites refer to it."""
        names: dict[QuantScheme, str] = {}
        for entry in self.sites:
            if entry.scheme is not None and entry.scheme not in names:
                taken = sum(scheme.name == entry.scheme.name for scheme in names)
                names[entry.scheme] = entry.scheme.name + (f"-{taken + 1}" if taken else "")
        return {
            "format": FORMAT,
            "model": self.model,
            "schemes": {name: scheme.to_json() for scheme, name in names.items()},
            "sites": [
                {"id": e.site, "scheme": None, "reason": e.reason}
                if e.scheme is None
                else {"id": e.site, "scheme": names[e.scheme]}
                for e in self.sites
            ],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Plan:
        """The inverse of `to_json`.

        Raises:
            InvalidPlan: Something is missing, unknown or of the wrong type; the message says where.
        """
        _expect(data, "the plan", {"format": int, "model": str, "schemes": dict, "sites": list})
        if data["format"] != FORMAT:
            raise InvalidPlan(f"the plan has format {data['format']}; this version reads format {FORMAT}")
        schemes: dict[str, QuantScheme] = {}
        for name, fields in data["schemes"].items():
            try:
                schemes[name] = QuantScheme.from_json(fields)
            except AttnqError as error:
                raise InvalidPlan(f"scheme {name!r} of the plan: {error}") from None
        entries = []
        for index, item in enumerate(data["sites"]):
            what = f"site {index} of the plan"
            _expect(item, what, {"id": str}, optional=("scheme", "reason"))
            name, reason = item.get("scheme"), item.get("reason", "")
            if not isinstance(reason, str):
                raise InvalidPlan(f"'reason' of {what} must be of type str")
            if name is not None and (not isinstance(name, str) or name not in schemes):
                raise InvalidPlan(f"site {item['id']!r} refers to the scheme {name!r}, which the plan does not define")
            entries.append(SitePlan(item["id"], None if name is None else schemes[name], reason))
        return cls(data["model"], tuple(entries))


def uniform_plan(
    model: str,
    sites: Sequence[str],
    scheme: QuantScheme,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
) -> Plan:
    """The same scheme for every site, or for those that the patterns choose.

    Args:
        model: Fingerprint of the model.
        sites: Ids of the model's sites.
        scheme: The scheme.
        include: Shell patterns; if there are any, only sites that match one are rewritten.
        exclude: Shell patterns of sites to leave as they are.

    Raises:
        InvalidPlan: A pattern matches no site.

    >>> from onnx_attnq.scheme import preset
    >>> plan = uniform_plan("c0ffee", ["layer.0", "layer.1"], preset(), exclude=["*.0"])
    >>> [entry.scheme is None for entry in plan.sites]
    [True, False]
    """
    for option, patterns in (("--include", include), ("--exclude", exclude)):
        for pattern in patterns:
            if not fnmatch.filter(sites, pattern):
                raise InvalidPlan(f"{option} {pattern!r} matches no site; the sites are {', '.join(sites) or 'none'}")

    def entry(site: str) -> SitePlan:
        for pattern in exclude:
            if fnmatch.fnmatchcase(site, pattern):
                return SitePlan(site, None, f"excluded by {pattern!r}")
        if include and not any(fnmatch.fnmatchcase(site, pattern) for pattern in include):
            return SitePlan(site, None, "not included")
        return SitePlan(site, scheme)

    return Plan(model, tuple(entry(site) for site in sites))


def load_plan(path: str | os.PathLike[str]) -> Plan:
    """Read a plan from a JSON file.

    Raises:
        InvalidPlan: The file cannot be read or is not a plan; the message names it.
    """
    try:
        return Plan.from_json(parse_json(read_regular(path)))
    except OSError as error:
        raise InvalidPlan(f"{path}: {error.strerror or error}") from None
    except (ValueError, InvalidPlan) as error:
        raise InvalidPlan(f"{path}: {error}") from None


def save_plan(plan: Plan, path: str | os.PathLike[str]) -> None:
    """Write a plan as JSON, two spaces of indentation."""
    with replacing(Path(path)) as file:
        file.write((json.dumps(plan.to_json(), indent=2) + "\n").encode())


def _expect(data: object, what: str, fields: Mapping[str, type], optional: Sequence[str] = ()) -> None:
    try:
        check_fields(data, what, fields, optional)
    except ValueError as error:
        raise InvalidPlan(str(error)) from None
