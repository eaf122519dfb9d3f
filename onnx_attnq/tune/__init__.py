"""Choosing a scheme for each head: as much pruned, in as few bits, as a loss allows."""

from onnx_attnq.tune.choice import Choice, Objective, choose, frontier
from onnx_attnq.tune.cluster import dask_cluster
from onnx_attnq.tune.loss import Agreement, FunctionLoss, Loss, Measured, Part, TaskLoss, load_function
from onnx_attnq.tune.sensitivity import Trial, Unit, measure_unit, units
from onnx_attnq.tune.tuning import CANDIDATES, Effort, Goal, Step, Tuner, Tuning

__all__ = [
    "CANDIDATES",
    "Agreement",
    "Choice",
    "Effort",
    "FunctionLoss",
    "Goal",
    "Loss",
    "Measured",
    "Objective",
    "Part",
    "Step",
    "TaskLoss",
    "Trial",
    "Tuner",
    "Tuning",
    "Unit",
    "choose",
    "dask_cluster",
    "frontier",
    "load_function",
    "measure_unit",
    "units",
]
