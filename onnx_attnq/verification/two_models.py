"""Compare what two models with the same interface compute, in onnxruntime."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnx_attnq.errors import InvalidModel, InvalidScheme, VerificationFailed
from onnx_attnq.inputs import Dim, Sample, model_inputs
from onnx_attnq.rewriting import DOMAIN, read_record
from onnx_attnq.run import Session, native_library
from onnx_attnq.verification.codes import CodeCheck
from onnx_attnq.verification.deviation import HIGHER_IS_BETTER, METRICS, Deviation, compare
from onnx_attnq.verification.rewritten_model import Progress, check_site, is_distribution

RTOL: Final = 1e-4
"""Relative tolerance where none is asked for: float32 sums of a few thousand terms in another order stay below it."""
ATOL: Final = 1e-5
"""Absolute tolerance where none is asked for, for values near zero."""

QUANTILES: Final = {"median_abs": 0.5, "p90_abs": 0.9, "p99_abs": 0.99, "p999_abs": 0.999}
"""Quantiles of the absolute differences that are reported, by name."""


@dataclasses.dataclass(frozen=True)
class Tolerance:
    """A bound on one figure.

    Attributes:
        metric: One of `deviation.METRICS` and `QUANTILES`.
        value: Upper bound; lower bound for cosine and top1_agreement.
        output: The output that it holds for; None for all.
    """

    metric: str
    value: float
    output: str | None = None

    @classmethod
    def parse(cls, text: str) -> Tolerance:
        """[OUTPUT:]METRIC>=VALUE or [OUTPUT:]METRIC<=VALUE, the sign as the metric demands.

        >>> Tolerance.parse("logits:cosine>=0.99")
        Tolerance(metric='cosine', value=0.99, output='logits')
        >>> str(Tolerance.parse("p99_abs<=1e-3"))
        'p99_abs<=0.001'
        """
        match = re.fullmatch(r"(?:(?P<output>.+):)?(?P<metric>\w+)(?P<sign>[<>]=)(?P<value>.+)", text.strip())
        try:
            value = float(match["value"]) if match is not None else float("nan")
        except ValueError:
            match = None
        names = (*METRICS, *QUANTILES)
        if match is None or match["metric"] not in names:
            raise InvalidScheme(
                f"{text!r} is no tolerance; write [OUTPUT:]METRIC>=VALUE or <=VALUE, METRIC one of {', '.join(names)}"
            )
        tolerance = cls(match["metric"], value, match["output"])
        if match["sign"] != tolerance.sign:
            raise InvalidScheme(f"{text!r} bounds nothing; write {tolerance}")
        return tolerance

    @property
    def sign(self) -> str:
        """``>=`` where higher is better, else ``<=``."""
        return ">=" if self.metric in HIGHER_IS_BETTER else "<="

    def is_met(self, figure: float | None) -> bool:
        """Whether a figure is within the bound; one that the output does not have is, and NaN is not."""
        if figure is None:
            return True
        return figure >= self.value if self.sign == ">=" else figure <= self.value

    def __str__(self) -> str:
        prefix = "" if self.output is None else f"{self.output}:"
        return f"{prefix}{self.metric}{self.sign}{self.value:g}"


@dataclasses.dataclass(frozen=True)
class OutputComparison:
    """What separates one output of two models, over all samples.

    Attributes:
        deviation: Figures of the elements that are finite in both.
        quantiles: Of their absolute differences, by the names of `QUANTILES`.
        far: Number of elements for which not |b − a| <= atol + rtol · |a|; 0 where no such bound was asked for.
        kinds: Number of elements that are NaN or infinite in one model, and not the same in the other.
    """

    deviation: Deviation
    quantiles: Mapping[str, float]
    far: int
    kinds: int

    def figure(self, metric: str) -> float | None:
        """A figure by its name; None for one that the output does not have."""
        if metric in self.quantiles:
            return self.quantiles[metric]
        value: float | None = getattr(self.deviation, metric)
        return value

    def to_json(self) -> dict[str, Any]:
        """All figures by name."""
        return {**self.deviation.to_json(), **self.quantiles, "far": self.far, "nan_or_infinite_differ": self.kinds}


@dataclasses.dataclass(frozen=True)
class Bounds:
    """What is asked of the outputs of a model; false when nothing is.

    Attributes:
        tolerances: Bounds on figures.
        rtol: Relative tolerance of each element, or None; together with ``atol`` as in numpy.isclose.
        atol: Absolute tolerance of each element, or None; None is 0 where the other is given.
    """

    tolerances: tuple[Tolerance, ...] = ()
    rtol: float | None = None
    atol: float | None = None

    def __bool__(self) -> bool:
        return bool(self.tolerances) or self.rtol is not None or self.atol is not None

    def check(self, model: ir.Model) -> None:
        """Raise InvalidScheme for a tolerance of an output that the model does not have."""
        outputs = [value.name or "" for value in model.graph.outputs]
        for tolerance in self.tolerances:
            if tolerance.output is not None and tolerance.output not in outputs:
                raise InvalidScheme(f"{tolerance}: no output is called so; the outputs are {', '.join(outputs)}")

    def violations(self, outputs: Mapping[str, OutputComparison]) -> list[str]:
        """What is not within them, a sentence each."""
        found = []
        for name, output in outputs.items():
            if output.kinds:
                found.append(f"output {name!r}: {output.kinds} elements are NaN or infinite in one model only")
            if output.far:
                bound = f"atol {self.atol or 0:g} and rtol {self.rtol or 0:g}"
                found.append(f"output {name!r}: {output.far} elements differ by more than {bound}")
            for tolerance in self.tolerances:
                figure = output.figure(tolerance.metric)
                if tolerance.output in (None, name) and not tolerance.is_met(figure):
                    found.append(f"output {name!r}: {tolerance.metric} is {figure:.6g}, not {tolerance}")
        return found

    def hold(self, outputs: Mapping[str, OutputComparison]) -> bool:
        """Whether all outputs are within them."""
        return not self.violations(outputs)


@dataclasses.dataclass(frozen=True)
class Run:
    """What one way of running the second model gave.

    Attributes:
        outputs: By name.
        sites: For a rewritten model, each site's codes compared with numerics.py.
    """

    outputs: Mapping[str, OutputComparison]
    sites: Mapping[str, CodeCheck]


@dataclasses.dataclass(frozen=True)
class Comparison:
    """What separates two models.

    Attributes:
        runs: ``standard`` ops; and ``native`` kernels, where the model has ops for them and the library was built.
        bounds: What was asked of the outputs.
        samples: Number of samples.
    """

    runs: Mapping[str, Run]
    bounds: Bounds
    samples: int

    @property
    def failures(self) -> tuple[str, ...]:
        """What did not pass, a sentence each."""
        return tuple(f"{way}: {text}" for way, run in self.runs.items() for text in self._failures(run))

    def _failures(self, run: Run) -> list[str]:
        found = [
            f"site {name!r}: {check.errors} of {check.codes} codes are wrong, {check.disagreements} more are rounded"
            for name, check in run.sites.items()
            if not check.passed
        ]
        return found + self.bounds.violations(run.outputs)

    @property
    def passed(self) -> bool:
        """True when nothing failed."""
        return not self.failures

    def to_json(self) -> dict[str, Any]:
        """The JSON form that the command line writes."""
        return {
            "passed": self.passed,
            "failures": list(self.failures),
            "samples": self.samples,
            "rtol": self.bounds.rtol,
            "atol": self.bounds.atol,
            "tolerances": [str(tolerance) for tolerance in self.bounds.tolerances],
            "runs": {
                way: {
                    "outputs": {name: output.to_json() for name, output in run.outputs.items()},
                    "sites": {name: dataclasses.asdict(check) for name, check in run.sites.items()},
                }
                for way, run in self.runs.items()
            },
        }


def compare_models(
    a: ir.Model,
    b: ir.Model,
    samples: Sequence[Sample],
    *,
    bounds: Bounds | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Comparison:
    """Run both models on the samples and compare every output; check the codes of a rewritten one.

    A rewritten ``b`` is run on the standard ops that it carries, and with the native library where that was built.
    Without bounds, two models must agree within `RTOL` and `ATOL`; a rewritten ``b`` deviates on purpose, so it
    must only be implemented right, and have no new NaN.

    Args:
        a: What should be.
        b: What is.
        samples: Inputs.
        bounds: What is asked of the outputs.
        threads: Threads inside an op.
        progress: Called after each step.

    Raises:
        InvalidModel: The models have different inputs or outputs, or onnxruntime does not take one.
        InvalidScheme: A tolerance for an output that the models do not have.
        VerificationFailed: An output has another shape.
    """
    _check_interface(a, b)
    record = read_record(b)
    bounds = bounds or (Bounds(rtol=RTOL, atol=ATOL) if record is None else Bounds())
    bounds.check(a)
    sites = () if record is None else record.sites
    ways = ["standard"]
    if DOMAIN in b.graph.opset_imports and native_library() is not None:
        ways.append("native")
    steps, done = 1 + len(ways) * (1 + len(sites)), 0

    def advance(what: str) -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(what, done, steps)

    # One model after the other: two sets of weights at a time would be one too many.
    session = Session(a, threads=threads)
    expected = [session.run(sample) for sample in samples]
    del session
    distributions = {value.name for value in a.graph.outputs if is_distribution(value)}
    advance("outputs of A")
    runs: dict[str, Run] = {}
    for way in ways:
        native = way == "native"
        session = Session(b, threads=threads, native=native)
        actual = [session.run(sample) for sample in samples]
        del session
        compared = {
            name: compare_output(
                name,
                [arrays[name] for arrays in expected],
                [arrays[name] for arrays in actual],
                name in distributions,
                bounds.rtol,
                bounds.atol,
            )
            for name in expected[0]
        }
        advance(f"outputs of B, {way}")
        checks: dict[str, CodeCheck] = {}
        for site in sites:
            checks[site.id] = check_site(b, site, samples, threads, native)
            advance(f"{site.id}, {way}")
        runs[way] = Run(compared, checks)
    return Comparison(runs, bounds, len(samples))


def compare_output(
    name: str,
    expected: Sequence[npt.NDArray[Any]],
    actual: Sequence[npt.NDArray[Any]],
    distribution: bool = False,
    rtol: float | None = None,
    atol: float | None = None,
) -> OutputComparison:
    """Compare one output over all samples.

    >>> found = compare_output("y", [np.array([1.0, np.nan, 3.0])], [np.array([1.5, np.nan, np.inf])], rtol=0.1)
    >>> found.far, found.kinds, found.quantiles["median_abs"]
    (1, 1, 0.5)
    """
    total, far, kinds = Deviation(), 0, 0
    differences: list[npt.NDArray[np.float64]] = []
    for a, b in zip(expected, actual, strict=True):
        if a.shape != b.shape:
            raise VerificationFailed(f"output {name!r} has the shape {a.shape} in A and {b.shape} in B")
        total = total.merge(compare(a, b, distribution=distribution))
        x, y = a.astype(np.float64), b.astype(np.float64)
        finite = np.isfinite(x) & np.isfinite(y)
        kinds += int((~finite & ~((x == y) | (np.isnan(x) & np.isnan(y)))).sum())
        x, difference = np.abs(x[finite]), np.abs(x[finite] - y[finite])
        if rtol is not None or atol is not None:
            far += int((difference > (atol or 0.0) + (rtol or 0.0) * x).sum())
        differences.append(difference)
    every = np.concatenate(differences) if differences else np.zeros(0)
    values = np.quantile(every, list(QUANTILES.values())) if every.size else np.zeros(len(QUANTILES))
    return OutputComparison(total, dict(zip(QUANTILES, map(float, values), strict=True)), far, kinds)


def _check_interface(a: ir.Model, b: ir.Model) -> None:
    inputs_a, inputs_b = ({item.name: item for item in model_inputs(model)} for model in (a, b))
    for kind, names_a, names_b in (
        ("input", set(inputs_a), set(inputs_b)),
        ("output", {v.name for v in a.graph.outputs}, {v.name for v in b.graph.outputs}),
    ):
        for name in sorted(map(str, names_a ^ names_b)):
            raise InvalidModel(
                f"only {'A' if name in names_a else 'B'} has the {kind} {name!r}; both must have the same"
            )
    for name, item in inputs_a.items():
        other = inputs_b[name]
        if item.dtype != other.dtype or not _fit(item.shape, other.shape):
            raise InvalidModel(f"input {name!r} is {item} in A and {other} in B")


def _fit(a: tuple[Dim, ...] | None, b: tuple[Dim, ...] | None) -> bool:
    if a is None or b is None:
        return True
    return len(a) == len(b) and all(
        x == y for x, y in zip(a, b, strict=True) if isinstance(x, int) and isinstance(y, int)
    )


__all__ = [
    "ATOL",
    "QUANTILES",
    "RTOL",
    "Bounds",
    "Comparison",
    "OutputComparison",
    "Run",
    "Tolerance",
    "compare_models",
]
