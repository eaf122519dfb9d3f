"""What each site gets: a scheme, or nothing and why. Plain data that a person can read and edit."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from onnx_attnq.atomic import replacing
from onnx_attnq.errors import AttnqError, InvalidPlan, InvalidScheme
from onnx_attnq.find import Sites, left_out
from onnx_attnq.reading import check_fields, parse_json, read_regular
from onnx_attnq.scheme import HeadSchemes, QuantScheme, SiteScheme, left_alone, schemes_of

FORMAT: Final = 2
"""Version of the JSON form. Version 1 called the structure hash "model"."""


@dataclasses.dataclass(frozen=True)
class SitePlan:
    """What one site gets.

    Attributes:
        site: Id of the site.
        scheme: The scheme, one for each head, or None to leave the site as it is.
        reason: Why it is left; empty where there is a scheme.
        left: Why heads of a site that is rewritten are left alone, by their numbers. One op serves all heads, so such
            a head has a scheme, too, that hardly changes it: `scheme.left_alone`.
    """

    site: str
    scheme: SiteScheme | None
    reason: str = ""
    left: tuple[tuple[int, str], ...] = ()

    def __post_init__(self) -> None:
        if (self.scheme is None) == (self.reason == ""):
            raise InvalidPlan(f"site {self.site!r} needs a scheme, or null and a reason, and not both")
        heads = schemes_of(self.scheme) if isinstance(self.scheme, HeadSchemes) else ()
        for head, reason in self.left:
            if not 0 <= head < len(heads) or heads[head] != left_alone(heads[head]) or not reason:
                raise InvalidPlan(f"site {self.site!r}: head {head} is left, and has no reason or another scheme")


@dataclasses.dataclass(frozen=True)
class Plan:
    """What every site of one model gets.

    Attributes:
        structure_hash: `onnx_attnq.structure_hash` of the model that the plan was made for.
        sites: One entry for each site, in the order of the graph.

    Raises:
        InvalidPlan: A site has two entries.

    >>> from onnx_attnq.scheme import preset
    >>> plan = Plan("c0ffee", (SitePlan("a", preset()), SitePlan("b", None, "excluded")))
    >>> Plan.from_json(plan.to_json()) == plan
    True
    """

    structure_hash: str
    sites: tuple[SitePlan, ...]

    def __post_init__(self) -> None:
        seen: set[str] = set()
        for entry in self.sites:
            if entry.site in seen:
                raise InvalidPlan(f"site {entry.site!r} is listed twice in the plan")
            seen.add(entry.site)

    @classmethod
    def giving(cls, sites: Sites, schemes: Mapping[str, SiteScheme], otherwise: str) -> Plan:
        """A plan that gives sites these schemes by their ids, and leaves the others for one reason."""
        entries = (SitePlan(s.id, schemes.get(s.id), "" if s.id in schemes else otherwise) for s in sites.sites)
        return cls(sites.exposed.structure_hash, tuple(entries))

    def leaving(self, reasons: Mapping[str, str]) -> Plan:
        """The plan without schemes for these sites, whose reasons are given."""
        entries = (SitePlan(e.site, None, reasons[e.site]) if e.site in reasons else e for e in self.sites)
        return Plan(self.structure_hash, tuple(entries))

    def scheme_of(self, site: str) -> SiteScheme | None:
        """The scheme or schemes of a site, None when it is left as it is."""
        return next((entry.scheme for entry in self.sites if entry.site == site), None)

    @property
    def hash(self) -> str:
        """SHA-256 of the model's structure hash and what each site gets, without the reasons for leaving others."""
        given = [(entry.site, entry.scheme.to_json()) for entry in self.sites if entry.scheme is not None]
        return hashlib.sha256(json.dumps([self.structure_hash, given], sort_keys=True).encode()).hexdigest()

    def check(self, structure_hash: str, sites: Iterable[str]) -> None:
        """Make sure that the plan belongs to a model and covers each of its sites.

        Raises:
            InvalidPlan: Another model's plan, a site that the model does not have, or one without entry.
        """
        if self.structure_hash != structure_hash:
            raise InvalidPlan(
                f"the plan was made for the model {self.structure_hash[:12]}…, this one is {structure_hash[:12]}…"
            )
        planned, present = [entry.site for entry in self.sites], list(sites)
        if len(set(present)) != len(present):
            raise InvalidPlan("two sites have the same id")
        for site in planned:
            if site not in present:
                raise InvalidPlan(f"the plan names the site {site!r}, which the model does not have")
        for site in present:
            if site not in planned:
                raise InvalidPlan(f"the plan has no entry for the site {site!r}")

    def to_json(self) -> dict[str, Any]:
        """JSON values; each scheme is listed once, under a name; a site refers to one, or to one for each of its heads.

        A head that is left alone has null in place of a name, and its reason in the site's ``left``.
        """
        names: dict[QuantScheme, str] = {}
        for entry in self.sites:
            for scheme in _named(entry):
                if scheme not in names:
                    numbered = (f"{scheme.name}-{number}" for number in itertools.count(2))
                    names[scheme] = next(n for n in itertools.chain([scheme.name], numbered) if n not in names.values())

        def spelled(entry: SitePlan) -> str | list[str | None]:
            assert entry.scheme is not None
            if not isinstance(entry.scheme, HeadSchemes):
                return names[entry.scheme]
            left = dict(entry.left)
            return [None if head in left else names[one] for head, one in enumerate(entry.scheme.heads)]

        def reasons(entry: SitePlan) -> dict[str, Any]:
            return {"left": {str(head): reason for head, reason in entry.left}} if entry.left else {}

        return {
            "format": FORMAT,
            "structure_hash": self.structure_hash,
            "schemes": {name: scheme.to_json() for scheme, name in names.items()},
            "sites": [
                {"id": e.site, "scheme": None, "reason": e.reason}
                if e.scheme is None
                else {"id": e.site, "scheme": spelled(e), **reasons(e)}
                for e in self.sites
            ],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Plan:
        """The inverse of `to_json`.

        Raises:
            InvalidPlan: Something is missing, unknown or of the wrong type; the message says where.
        """
        if isinstance(data, Mapping) and data.get("format") == 1 and "model" in data:
            data = {**data, "format": FORMAT, "structure_hash": data["model"]}
            del data["model"]
        _expect(data, "the plan", {"format": int, "structure_hash": str, "schemes": dict, "sites": list})
        if data["format"] != FORMAT:
            raise InvalidPlan(f"the plan has format {data['format']}; this version reads formats 1 and {FORMAT}")
        schemes: dict[str, QuantScheme] = {}
        for name, fields in data["schemes"].items():
            try:
                schemes[name] = QuantScheme.from_json(fields)
            except AttnqError as error:
                raise InvalidPlan(f"scheme {name!r} of the plan: {error}") from None
        entries = []
        for index, item in enumerate(data["sites"]):
            what = f"site {index} of the plan"
            _expect(item, what, {"id": str}, optional=("scheme", "reason", "left"))
            named, reason = item.get("scheme"), item.get("reason", "")
            if not isinstance(reason, str):
                raise InvalidPlan(f"'reason' of {what} must be of type str")
            for name in named if isinstance(named, list) else [] if named is None else [named]:
                if name is None:  # a head that is left alone
                    continue
                if not isinstance(name, str) or name not in schemes:
                    raise InvalidPlan(
                        f"site {item['id']!r} refers to the scheme {name!r}, which the plan does not define"
                    )
            try:
                by_head = _by_head(named, schemes) if isinstance(named, list) else None
            except InvalidScheme as error:
                raise InvalidPlan(f"site {item['id']!r}: {error}") from None
            given = by_head if named is None or by_head is not None else schemes[named]
            entries.append(SitePlan(item["id"], given, reason, _left(item, named)))
        return cls(data["structure_hash"], tuple(entries))


def uniform_plan(
    structure_hash: str,
    sites: Sequence[str],
    scheme: QuantScheme,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
) -> Plan:
    """The same scheme for every site, or for those that the patterns choose.

    Args:
        structure_hash: `onnx_attnq.structure_hash` of the model.
        sites: Ids of the model's sites.
        scheme: The scheme.
        include: Ids or shell patterns; if there are any, only sites that match one are rewritten.
        exclude: Ids or shell patterns of sites to leave as they are.

    Raises:
        InvalidPlan: A pattern matches no site.

    >>> from onnx_attnq.scheme import preset
    >>> plan = uniform_plan("c0ffee", ["layer.0", "layer.1"], preset(), exclude=["*.0"])
    >>> [entry.scheme is None for entry in plan.sites]
    [True, False]
    """
    left = left_out(sites, include, exclude)
    return Plan(structure_hash, tuple(SitePlan(s, None if s in left else scheme, left.get(s, "")) for s in sites))


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


def _named(entry: SitePlan) -> list[QuantScheme]:
    """The schemes of a site that the file names: not those of heads that are left alone."""
    heads, left = () if entry.scheme is None else schemes_of(entry.scheme), dict(entry.left)
    return [scheme for head, scheme in enumerate(heads) if head not in left]


def _by_head(names: Sequence[str | None], schemes: Mapping[str, QuantScheme]) -> HeadSchemes:
    family = next((schemes[name] for name in names if name is not None), None)
    if family is None and names:
        raise InvalidScheme("every head is left alone; write null and a reason for the site")
    return HeadSchemes(tuple(left_alone(family) if name is None and family else schemes[name or ""] for name in names))


def _left(item: Mapping[str, Any], named: object) -> tuple[tuple[int, str], ...]:
    """The reasons of heads that are left alone; each head with null has one, and no other."""
    left = item.get("left", {})
    heads = {str(i): i for i, n in enumerate(named) if n is None} if isinstance(named, list) else {}
    if (
        not isinstance(left, Mapping)
        or set(left) != set(heads)
        or not all(isinstance(r, str) and r for r in left.values())
    ):
        raise InvalidPlan(
            f"site {item['id']!r}: 'left' must have a reason for each head whose scheme is null, and for no other"
        )
    return tuple((heads[key], left[key]) for key in sorted(heads, key=int))


def _expect(data: object, what: str, fields: Mapping[str, type], optional: Sequence[str] = ()) -> None:
    try:
        check_fields(data, what, fields, optional)
    except ValueError as error:
        raise InvalidPlan(str(error)) from None
