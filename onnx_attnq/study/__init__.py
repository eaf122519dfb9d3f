"""What `analyze` measures: how the attention of a model is distributed, and what schemes do to each head."""

from onnx_attnq.study.analysis import analyze
from onnx_attnq.study.conclusions import SAFE_ERROR, Finding, findings, summary
from onnx_attnq.study.head_metrics import CONTEXT_ERROR, DIVERGENCE, METRICS, SCHEME_METRICS, HeadMetric, SchemeMetric
from onnx_attnq.study.mergeable_arrays import FloatArray
from onnx_attnq.study.model_study import Study, scheme_label
from onnx_attnq.study.planned import PlanFinding, plan_finding, planned_schemes
from onnx_attnq.study.resistance import Resistance, resistances
from onnx_attnq.study.settings import DEFAULT_SCHEMES, StudySettings
from onnx_attnq.study.site_shapes import with_shapes
from onnx_attnq.study.site_statistics import EDGES, MAJORITIES, SiteStats
from onnx_attnq.study.token_labels import load_token_labels, separator_ids
from onnx_attnq.study.verdict import MADE_UP, Verdict, advised_plan, fewer_safe_with_less_error, is_made_up, verdict

__all__ = [
    "CONTEXT_ERROR",
    "DEFAULT_SCHEMES",
    "DIVERGENCE",
    "EDGES",
    "MADE_UP",
    "MAJORITIES",
    "METRICS",
    "SAFE_ERROR",
    "SCHEME_METRICS",
    "Finding",
    "FloatArray",
    "HeadMetric",
    "PlanFinding",
    "Resistance",
    "SchemeMetric",
    "SiteStats",
    "Study",
    "StudySettings",
    "Verdict",
    "advised_plan",
    "analyze",
    "fewer_safe_with_less_error",
    "findings",
    "is_made_up",
    "load_token_labels",
    "plan_finding",
    "planned_schemes",
    "resistances",
    "scheme_label",
    "separator_ids",
    "summary",
    "verdict",
    "with_shapes",
]
