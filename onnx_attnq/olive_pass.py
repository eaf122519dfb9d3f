"""A pass for Olive (olive-ai): quantize attention in an Olive workflow. Needs the extra ``olive``.

Olive finds it by a package configuration, ``--package-config`` of ``olive run``, which `PACKAGE_CONFIG` is.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from olive.common.config_utils import ParamCategory
from olive.hardware import AcceleratorSpec
from olive.model import ONNXModelHandler
from olive.model.utils import resolve_onnx_path
from olive.passes import Pass
from olive.passes.pass_config import BasePassConfig, PassConfigParam

from onnx_attnq.errors import VerificationFailed
from onnx_attnq.inputs import load_samples
from onnx_attnq.job import compress
from onnx_attnq.model import load
from onnx_attnq.rewriting import RewriteSettings, load_plan
from onnx_attnq.scheme import PRESETS, parse_scheme
from onnx_attnq.tune import Goal, compress_tuned
from onnx_attnq.verification import Limit, Limits, VerifySettings

PACKAGE_CONFIG: Final = {
    "passes": {
        "OnnxAttentionQuantization": {
            "module_path": "onnx_attnq.olive_pass.OnnxAttentionQuantization",
            "supported_providers": ["CPUExecutionProvider"],
            "supported_accelerators": ["cpu"],
            "supported_precisions": ["*"],
        }
    }
}
"""What Olive has to be told, beside its own passes, to find this one by its name."""


class OnnxAttentionQuantization(Pass):  # type: ignore[misc] # Olive has no types
    """Prune and log-quantize the attention of an ONNX model, and verify the result in onnxruntime.

    With ``max_loss`` or ``min_pruned`` each head gets a scheme of its own, as by `tune.compress_tuned`.
    """

    @classmethod
    def _default_config(cls, accelerator_spec: AcceleratorSpec) -> dict[str, PassConfigParam]:
        def parameter(kind: Any, text: str, **more: Any) -> PassConfigParam:
            return PassConfigParam(type_=kind, description=text, **{"default_value": None, **more})

        path = {"category": ParamCategory.PATH}
        return {
            "scheme": parameter(str, "Scheme of all heads: NAME[:bits=N,threshold=T].", default_value=PRESETS[0]),
            "include": parameter(list, "Ids or shell patterns of the sites to rewrite.", default_value=[]),
            "exclude": parameter(list, "Ids or shell patterns of sites to leave.", default_value=[]),
            "plan": parameter(str | None, "Plan file, in place of a scheme.", **path),
            "data": parameter(str | None, "Samples: .npz, .npy or a folder; made up if there are none.", **path),
            "max_loss": parameter(float | None, "Largest loss of agreement, a share; needs data."),
            "min_pruned": parameter(float | None, "Least share of attention values to prune; needs data."),
            "max_deviation": parameter(list, "Bounds such as cosine>=0.98.", default_value=[]),
            "inline": parameter(bool, "Write plain ops, for runtimes without functions.", default_value=False),
        }

    def _run_for_config(
        self, model: ONNXModelHandler, config: type[BasePassConfig], output_model_path: str
    ) -> ONNXModelHandler:
        source = Path(model.model_path)
        target = Path(resolve_onnx_path(output_model_path, source.name))
        options: Any = config
        samples = None if options.data is None else load_samples(options.data, load(source))
        if options.max_loss is not None or options.min_pruned is not None:
            goal = Goal(options.max_loss, options.min_pruned)
            done = compress_tuned(source, samples or (), target, goal=goal).compression
        else:
            planned = None if options.plan is None else load_plan(options.plan)
            rewriting = RewriteSettings(
                scheme=None if planned is not None else parse_scheme(options.scheme),
                include=tuple(options.include),
                exclude=tuple(options.exclude),
                plan=planned,
                inline=options.inline,
            )
            limits = Limits(tuple(Limit.parse(text) for text in options.max_deviation))
            done = compress(source, target, rewriting=rewriting, verification=VerifySettings(samples, limits=limits))
        if done.failed and done.verification is not None:
            raise VerificationFailed("; ".join(done.verification.failures))
        return ONNXModelHandler(model_path=str(target))


__all__ = ["PACKAGE_CONFIG", "OnnxAttentionQuantization"]
