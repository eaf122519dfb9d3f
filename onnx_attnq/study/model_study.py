"""A study: the statistics of every site of a model over some data, with where they come from.

Studies of parts of the data merge into the study of all of it, and live in one .npz file: the arrays,
and what they describe as JSON. There is nothing pickled in it.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from onnx_attnq.atomic import replacing
from onnx_attnq.counted import counted
from onnx_attnq.errors import InvalidData, first_line
from onnx_attnq.reading import check_unpacked, open_regular, parse_json
from onnx_attnq.scheme import QuantScheme
from onnx_attnq.study.html_table import html_table
from onnx_attnq.study.mergeable_arrays import FloatArray, array_fields
from onnx_attnq.study.scheme_statistics import SchemeStats
from onnx_attnq.study.site_statistics import SiteStats

FORMAT: Final = 1
"""The version of the file format."""


@dataclasses.dataclass(frozen=True, eq=False)
class Example:
    """The attention of one short sample, for pictures.

    Attributes:
        tokens: A label for each key.
        maps: Probabilities by site id, (H, L_q, L_k); masked positions are 0.
    """

    tokens: tuple[str, ...]
    maps: Mapping[str, FloatArray]


@dataclasses.dataclass(frozen=True, eq=False)
class Study:
    """What was observed of a model.

    Attributes:
        model: File name of the model.
        sha256: Of that file.
        data: Which inputs were used, in words.
        samples: How many.
        sites: Statistics of each site, in the order of the graph.
        unobserved: Reasons why other sites are missing, by site id.
        example: One sample's attention maps.
    """

    model: str
    sha256: str
    data: str
    samples: int
    sites: tuple[SiteStats, ...]
    unobserved: Mapping[str, str] = dataclasses.field(default_factory=dict)
    example: Example | None = None

    @property
    def schemes(self) -> tuple[QuantScheme, ...]:
        """The schemes that were measured."""
        return tuple(stats.scheme for stats in self.sites[0].schemes) if self.sites else ()

    @property
    def tokens(self) -> int:
        """How many query tokens the statistics come from: the rows per head of the site with the most."""
        return max((int(site.rows.max()) for site in self.sites), default=0)

    def merge(self, other: Study) -> Study:
        """The study of both sets of samples, which must not overlap; associative, see `SiteStats.merge`.

        Raises:
            InvalidData: Another model, other sites or other schemes.
        """
        if self.sha256 != other.sha256:
            raise InvalidData(f"the studies are of two models: {self.model} and {other.model} differ in their SHA-256")
        if [site.site for site in self.sites] != [site.site for site in other.sites]:
            raise InvalidData(f"the two studies of {self.model} have different sites")
        try:
            sites = tuple(a.merge(b) for a, b in zip(self.sites, other.sites, strict=True))
        except ValueError as error:
            raise InvalidData(f"the two studies of {self.model} do not fit together: {error}") from None
        return dataclasses.replace(
            self,
            data=self.data if self.data == other.data else f"{self.data} + {other.data}",
            samples=self.samples + other.samples,
            sites=sites,
            example=self.example or other.example,
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one .npz file.

        Raises:
            CannotWrite: The folder is missing or not writable.
        """
        arrays: dict[str, npt.NDArray[Any]] = {}
        for i, site in enumerate(self.sites):
            arrays |= {f"{i}/{name}": array for name, array in array_fields(site).items()}
            for j, stats in enumerate(site.schemes):
                arrays |= {f"{i}/{j}/{name}": array for name, array in array_fields(stats).items()}
            if self.example is not None and site.site in self.example.maps:
                arrays[f"{i}/example"] = self.example.maps[site.site].astype(np.float32)
        about = {
            "format": FORMAT,
            "model": self.model,
            "sha256": self.sha256,
            "data": self.data,
            "samples": self.samples,
            "sites": [site.site for site in self.sites],
            "schemes": [scheme.to_json() for scheme in self.schemes],
            "unobserved": dict(self.unobserved),
            "example_tokens": None if self.example is None else self.example.tokens,
        }
        with replacing(path) as file:
            np.savez_compressed(file, about=np.array(json.dumps(about)), **arrays)  # type: ignore[arg-type]

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Study:
        """Read what `save` wrote.

        Raises:
            InvalidData: Not such a file, damaged, or of a later version.
        """
        try:
            with open_regular(path) as stream, np.load(stream, allow_pickle=False) as file:
                check_unpacked(file.zip, path)
                arrays = {name: file[name] for name in file.files}
            about = parse_json(str(arrays.pop("about")))
            if about["format"] != FORMAT:
                raise InvalidData(f"{path} is a study of format {about['format']}; this version reads format {FORMAT}")
            return cls._from_arrays(about, arrays)
        except FileNotFoundError:
            raise InvalidData(f"{path} does not exist") from None
        except InvalidData:
            raise
        except Exception as error:  # zip, numpy and json each have their own for a damaged file
            raise InvalidData(f"{path} is no saved study, or is damaged: {first_line(error)}") from error

    @classmethod
    def _from_arrays(cls, about: Mapping[str, Any], arrays: Mapping[str, npt.NDArray[Any]]) -> Study:
        schemes = [QuantScheme.from_json(data) for data in about["schemes"]]
        sites = []
        for i, site in enumerate(about["sites"]):
            heads = arrays[f"{i}/values"].size
            parts = []
            for j, scheme in enumerate(schemes):
                part = SchemeStats.empty(scheme, heads)
                parts.append(dataclasses.replace(part, **_read(part, arrays, f"{i}/{j}/")))
            whole = SiteStats.empty(site, heads)
            sites.append(dataclasses.replace(whole, **_read(whole, arrays, f"{i}/"), schemes=tuple(parts)))
        example = None
        if about["example_tokens"] is not None:
            maps = {
                site: arrays[f"{i}/example"].astype(np.float64)
                for i, site in enumerate(about["sites"])
                if f"{i}/example" in arrays
            }
            example = Example(tuple(about["example_tokens"]), maps)
        return cls(
            model=about["model"],
            sha256=about["sha256"],
            data=about["data"],
            samples=about["samples"],
            sites=tuple(sites),
            unobserved=about["unobserved"],
            example=example,
        )

    def _repr_html_(self) -> str:
        """A table for notebooks: a line per site."""
        rows = [
            [str(number), site.site, f"{np.mean(site.mean_entropy):.2f}"]
            + [f"{np.mean(stats.pruned_share):.1%}" for stats in site.schemes]
            for number, site in enumerate(self.sites)
        ]
        header = ["layer", "site", "entropy (bits)", *(f"pruned by {scheme_label(s)}" for s in self.schemes)]
        return html_table(
            f"{self.model}: {counted(self.samples, 'sample')}, {counted(self.tokens, 'token')} of {self.data}",
            header,
            rows,
        )


def scheme_label(scheme: QuantScheme) -> str:
    """A scheme in a few words, as figures and tables name it.

    >>> from onnx_attnq.scheme import preset
    >>> scheme_label(preset("row-log")), scheme_label(preset("prune-only"))
    ('row-log 3 bit, t=0.01', 'prune-only, t=0.001')
    """
    bits = "" if scheme.bits is None else f" {scheme.bits} bit"
    return f"{scheme.name}{bits}, t={scheme.threshold:.3g}"


def _read(stats: SiteStats | SchemeStats, arrays: Mapping[str, npt.NDArray[Any]], prefix: str) -> dict[str, Any]:
    """The arrays of a record, which must be like those of an empty one."""
    found = {name: arrays[prefix + name] for name in array_fields(stats)}
    for name, expected in array_fields(stats).items():
        if found[name].shape != expected.shape or found[name].dtype != expected.dtype:
            raise ValueError(f"array {prefix + name} is {found[name].dtype}{list(found[name].shape)}")
    return found


__all__ = ["Example", "Study", "scheme_label"]
