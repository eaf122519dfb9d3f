"""Samples for a model: read from files and checked, or made up from its signature and graph."""

from onnx_attnq.inputs.accepted import MadeUp, made_up_samples
from onnx_attnq.inputs.given_shapes import InputShapes, parse_input_shape
from onnx_attnq.inputs.inner_shapes import inner_shapes
from onnx_attnq.inputs.made_up import generate_samples
from onnx_attnq.inputs.sample_files import MASK_NAMES, Sample, attention_mask_of, check_sample, load_samples
from onnx_attnq.inputs.shape_check import ShapeCheck
from onnx_attnq.inputs.signature import Dim, ModelInput, model_inputs
from onnx_attnq.inputs.steps import Step, shared_buffers, step_of, step_sample, steps_of, with_defined_rows

__all__ = [
    "MASK_NAMES",
    "Dim",
    "InputShapes",
    "MadeUp",
    "ModelInput",
    "Sample",
    "ShapeCheck",
    "Step",
    "attention_mask_of",
    "check_sample",
    "generate_samples",
    "inner_shapes",
    "load_samples",
    "made_up_samples",
    "model_inputs",
    "parse_input_shape",
    "shared_buffers",
    "step_of",
    "step_sample",
    "steps_of",
    "with_defined_rows",
]
