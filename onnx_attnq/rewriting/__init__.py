"""Plan the scheme of each site, insert quantized ops, record what was done, and undo it."""

from onnx_attnq.rewriting.bodies import DOMAIN, DOMAIN_VERSION
from onnx_attnq.rewriting.fused_rule import (
    fused_op_of,
    left_for_want_of_names,
    left_fused,
    slower_because,
    whole_op,
)
from onnx_attnq.rewriting.group_query import opened
from onnx_attnq.rewriting.plan import Plan, SitePlan, load_plan, save_plan, uniform_plan
from onnx_attnq.rewriting.record import Record, RewrittenSite, read_record, refuse_rewritten
from onnx_attnq.rewriting.reverter import revert
from onnx_attnq.rewriting.rewriter import rewrite
from onnx_attnq.rewriting.settings import RewriteSettings

__all__ = [
    "DOMAIN",
    "DOMAIN_VERSION",
    "Plan",
    "Record",
    "RewriteSettings",
    "RewrittenSite",
    "SitePlan",
    "fused_op_of",
    "left_for_want_of_names",
    "left_fused",
    "load_plan",
    "opened",
    "read_record",
    "refuse_rewritten",
    "revert",
    "rewrite",
    "save_plan",
    "slower_because",
    "uniform_plan",
    "whole_op",
]
