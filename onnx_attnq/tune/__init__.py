"""Choosing a scheme for each head: as much pruned, in as few bits, as a loss allows."""

from onnx_attnq.tune.apply import plan_of
from onnx_attnq.tune.choice import Alternative, Choice, Objective, choose, frontier
from onnx_attnq.tune.cluster import dask_cluster, memory_of_worker
from onnx_attnq.tune.first_rows import first_rows
from onnx_attnq.tune.in_one_go import SAMPLES, TunedCompression, compress_tuned
from onnx_attnq.tune.loss import AGREEMENT, Agreement, FunctionLoss, Loss, Measured, Part, TaskLoss, load_function
from onnx_attnq.tune.search import Found, Goal, Step
from onnx_attnq.tune.sensitivity import Trial, Unit, measure_unit, units
from onnx_attnq.tune.sweep import Point, Sweep, grid, pareto
from onnx_attnq.tune.sweep_report import Swept, sweep_page, sweep_pictures
from onnx_attnq.tune.tuning import CANDIDATES, Effort, Tuner, Tuning

__all__ = [
    "AGREEMENT",
    "CANDIDATES",
    "SAMPLES",
    "Agreement",
    "Alternative",
    "Choice",
    "Effort",
    "Found",
    "FunctionLoss",
    "Goal",
    "Loss",
    "Measured",
    "Objective",
    "Part",
    "Point",
    "Step",
    "Sweep",
    "Swept",
    "TaskLoss",
    "Trial",
    "TunedCompression",
    "Tuner",
    "Tuning",
    "Unit",
    "choose",
    "compress_tuned",
    "dask_cluster",
    "first_rows",
    "frontier",
    "grid",
    "load_function",
    "measure_unit",
    "memory_of_worker",
    "pareto",
    "plan_of",
    "sweep_page",
    "sweep_pictures",
    "units",
]
