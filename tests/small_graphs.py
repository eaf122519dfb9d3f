"""Models of a few lines: ONNX text in, onnx_ir out."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir


def parse(text: str, *, opset: int = 17, inferred: bool = False, functions: str = "", ir_version: int = 8) -> ir.Model:
    """A model from the text of its graph.

    Args:
        text: ``(inputs) => (outputs) { nodes }``. An input whose name starts with ``w`` becomes a weight.
        opset: Of the main graph.
        inferred: Whether the values inside carry shapes and types.
        functions: Text of model-local functions, domain ``local``.
        ir_version: Of the model.
    """
    imports = f'"" : {opset}, "com.microsoft" : 1, "local" : 1'
    proto = onnx.parser.parse_model(f"<ir_version: {ir_version}, opset_import: [{imports}]> graph {text}\n{functions}")
    random = np.random.default_rng(0)
    for value in [value for value in proto.graph.input if value.name.startswith("w")]:
        kind = value.type.tensor_type
        shape = [dim.dim_value for dim in kind.shape.dim]
        array = random.normal(0.0, 0.5, shape).astype(onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type))
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, value.name))
        proto.graph.input.remove(value)
    for node in proto.graph.node:
        node.name = node.name or f"{node.op_type}_{node.output[0]}"
    if inferred:
        proto = onnx.shape_inference.infer_shapes(proto, strict_mode=True)
    return ir.from_proto(proto)
