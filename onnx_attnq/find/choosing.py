"""Choose sites by their ids, as ``--include`` and ``--exclude`` do."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence

from onnx_attnq.errors import InvalidPlan


def left_out(sites: Sequence[str], include: Sequence[str] = (), exclude: Sequence[str] = ()) -> dict[str, str]:
    """The sites that the patterns leave out, each with the reason.

    Args:
        sites: Ids of a model's sites.
        include: Ids or shell patterns; if there are any, all sites that match none of them are left out.
        exclude: Ids or shell patterns of sites to leave out. An id stands for itself, whatever characters it has.

    Raises:
        InvalidPlan: A pattern matches no site.

    >>> left_out(["layer[0]", "layer.1"], exclude=["layer[0]"])
    {'layer[0]': "excluded by 'layer[0]'"}
    >>> left_out(["layer.0", "layer.1"], include=["*.0"])
    {'layer.1': 'not included'}
    """
    included = {site for pattern in include for site in _matching("--include", pattern, sites)}
    left = {} if not include else {site: "not included" for site in sites if site not in included}
    for pattern in reversed(exclude):  # the first that matches gives the reason
        left |= dict.fromkeys(_matching("--exclude", pattern, sites), f"excluded by {pattern!r}")
    return {site: left[site] for site in sites if site in left}


def _matching(option: str, pattern: str, sites: Sequence[str]) -> list[str]:
    if pattern in sites:
        return [pattern]
    found = [site for site in sites if fnmatch.fnmatchcase(site, pattern)]
    if not found:
        raise InvalidPlan(f"{option} {pattern!r} matches no site; the sites are {', '.join(sites) or 'none'}")
    return found


__all__ = ["left_out"]
