"""A user's program: only public names, checked by ``mypy --strict`` against the installed package."""

from pathlib import Path

import onnx_attnq
from onnx_attnq import (
    PRESETS,
    AttentionSite,
    AttnqError,
    Compression,
    Difference,
    Exposed,
    Limit,
    Limits,
    ModelDiff,
    Plan,
    QuantScheme,
    Record,
    Rejection,
    RewriteSettings,
    RunSettings,
    SitePlan,
    Sites,
    Verification,
    VerifySettings,
)


def in_one_call(path: Path) -> Compression:
    scheme: QuantScheme = onnx_attnq.preset("row-log", bits=2)
    result = onnx_attnq.compress(
        path,
        rewriting=RewriteSettings(scheme=scheme, exclude=("*last*",)),
        verification=VerifySettings(),
        run=RunSettings(threads=1),
    )
    assert result.verification is None or isinstance(result.verification.passed, bool)
    return result


def step_by_step(path: Path, output: Path) -> Verification:
    original = onnx_attnq.load(path)
    model = original.clone()
    exposed: Exposed = onnx_attnq.expose(model)
    sites: Sites = onnx_attnq.find_sites(exposed)
    declined: list[Rejection] = list(sites.rejections)
    print(*(f"{one.node}: {one.reason}" for one in declined))
    found: list[AttentionSite] = list(sites.sites)
    ids = [site.id for site in found]
    plan: Plan = onnx_attnq.uniform_plan(onnx_attnq.structure_hash(original), ids, onnx_attnq.preset())
    onnx_attnq.save_plan(plan, output.with_suffix(".json"))
    entries: tuple[SitePlan, ...] = plan.sites
    assert len(entries) == len(ids)
    record: Record = onnx_attnq.rewrite(model, sites, onnx_attnq.load_plan(output.with_suffix(".json")))
    onnx_attnq.save(model, output)
    assert onnx_attnq.read_record(onnx_attnq.load(output)) == record
    samples = onnx_attnq.load_samples("samples", original) or onnx_attnq.generate_samples(original, 2, 0)
    print(onnx_attnq.session(output, threads=1), onnx_attnq.native_library(), onnx_attnq.__version__, *PRESETS)
    verification = onnx_attnq.verify(original, model, samples)
    onnx_attnq.revert(model)
    return verification


def differences(a: Path, b: Path) -> list[Difference]:
    left, right = onnx_attnq.load(a), onnx_attnq.load(b)
    onnx_attnq.canonicalize(left)
    result: ModelDiff = onnx_attnq.diff_models(left, right)
    print(onnx_attnq.fingerprint(left) == onnx_attnq.fingerprint(right))
    return list(result.differences)


def main() -> int:
    try:
        in_one_call(Path("model.onnx"))
        step_by_step(Path("model.onnx"), Path("out.onnx"))
    except AttnqError as error:
        return error.exit_code
    return 0


LIMITS = Limits((Limit("cosine", 0.99),))
