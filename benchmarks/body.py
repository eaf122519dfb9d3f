"""What the portable bodies cost beside onnxruntime's own Softmax, and what other ways to write them would.

    python benchmarks/body.py

Scores (1, 12, L, L) of standard deviation 3, one thread, full graph optimization, all contenders in turn; the figures
are medians of process CPU time divided by that of Softmax. ``naive`` compares and selects with Less and Where; ``hard
sigmoid`` makes the mask of kept values with HardSigmoid and a multiplication; ``round`` computes codes in float32,
``quantize`` as bytes, which saturate; ``dequantize`` has DequantizeLinear too, as the bodies for opset 19 and later.
With --masked, half of the scores are at the mask value, where Exp and Softmax are slow unless something saturates.
"""

from __future__ import annotations

import argparse
import statistics
import time

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
from onnx import parser

from onnx_attnq.rewriting import bodies
from onnx_attnq.scheme import PRESETS, QuantScheme, preset

STEP, LEVELS = preset("row-log").step, preset("row-log").levels
ALTERNATIVES = {
    "Softmax": "y = Softmax<axis = -1>(x)",
    "naive": f"""
        m = ReduceMax<axes = [-1]>(x)   d = Sub(x, m)
        i = Constant<value_float = {1 / STEP}>()   z = Mul(d, i)   r = Round(z)
        s = Constant<value_float = {STEP}>()   u = Mul(r, s)   e = Exp(u)
        t = Constant<value_float = 0.01>()   b = Less(e, t)   o = Constant<value_float = 0.0>()   v = Where(b, o, e)
        a = Constant<value_ints = [-1]>()   w = ReduceSum(v, a)   y = Div(v, w)""",
    "round": f"""
        m = ReduceMax<axes = [-1]>(x)   d = Sub(x, m)
        i = Constant<value_float = {1 / STEP}>()   z = Mul(d, i)   r = Round(z)
        s = Constant<value_float = {STEP}>()   u = Mul(r, s)   e = Exp(u)
        v = ThresholdedRelu<alpha = 0.01>(e)
        a = Constant<value_ints = [-1]>()   w = ReduceSum(v, a)   y = Div(v, w)""",
    "quantize": f"""
        m = ReduceMax<axes = [-1]>(x)   d = Sub(x, m)
        s = Constant<value_float = {STEP}>()   n = Constant<value = uint8 {{{LEVELS}}}>()   q = QuantizeLinear(d, s, n)
        c = Cast<to = 1>(q)   u = Mul(c, s)   e = Exp(u)   v = ThresholdedRelu<alpha = 1.0005>(e)
        a = Constant<value_ints = [-1]>()   w = ReduceSum(v, a)   y = Div(v, w)""",
    "dequantize": f"""
        m = ReduceMax<axes = [-1]>(x)   d = Sub(x, m)
        s = Constant<value_float = {STEP}>()   n = Constant<value = uint8 {{{LEVELS}}}>()   q = QuantizeLinear(d, s, n)
        u = DequantizeLinear(q, s)   e = Exp(u)   v = ThresholdedRelu<alpha = 1.0005>(e)
        a = Constant<value_ints = [-1]>()   w = ReduceSum(v, a)   y = Div(v, w)""",
    "hard sigmoid": f"""
        m = ReduceMax<axes = [-1]>(x)   d = Sub(x, m)
        i = Constant<value_float = {1 / STEP}>()   z = Mul(d, i)   r = Round(z)
        s = Constant<value_float = {STEP}>()   u = Mul(r, s)   e = Exp(u)
        k = HardSigmoid<alpha = 1.0, beta = {float(LEVELS)}>(r)   v = Mul(e, k)
        a = Constant<value_ints = [-1]>()   w = ReduceSum(v, a)   y = Div(v, w)""",
}


def session(model: onnx.ModelProto) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def alternative(text: str) -> onnx.ModelProto:
    header = '<ir_version: 8, opset_import: ["" : 17]> g (float[a,b,c,d] x) => (float[a,b,c,d] y) {'
    return parser.parse_model(header + text + "}")


def body(scheme: QuantScheme) -> onnx.ModelProto:
    made = bodies.softmax_function(scheme, 17)
    x = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(["a", "b", "c", "d"]))
    node = ir.Node(bodies.DOMAIN, made.name, [x], bodies.scheme_attributes(scheme), name="site")
    node.outputs[0].name, node.outputs[0].type, node.outputs[0].shape = "y", x.type, x.shape
    graph = ir.Graph([x], node.outputs, nodes=[node], opset_imports={"": 17, bodies.DOMAIN: 1}, name="g")
    return ir.to_proto(ir.Model(graph, ir_version=8, functions=[made]))


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--repeats", type=int, default=15)
    arguments.add_argument("--masked", action="store_true")
    parsed = arguments.parse_args()
    repeats = parsed.repeats
    sessions = {name: session(alternative(text)) for name, text in ALTERNATIVES.items()}
    sessions |= {name: session(body(preset(name))) for name in PRESETS}
    lengths = (128, 384, 512)
    figures: dict[str, list[float]] = {name: [] for name in sessions}
    for length in lengths:
        scores = np.random.default_rng(0).normal(scale=3, size=(1, 12, length, length)).astype(np.float32)
        if parsed.masked:
            scores[..., length // 2 :] = np.finfo(np.float32).min
        spent: dict[str, list[float]] = {name: [] for name in sessions}
        for _ in range(repeats):
            for name, contender in sessions.items():
                start = time.process_time()
                contender.run(None, {"x": scores})
                spent[name].append(time.process_time() - start)
        softmax = statistics.median(spent["Softmax"])
        for name in sessions:
            figures[name].append(statistics.median(spent[name]) / softmax)
    print(f"{'keys':22}" + "".join(f"{length:8}" for length in lengths))
    for name, ratios in figures.items():
        print(f"{name:22}" + "".join(f"{ratio:8.2f}" for ratio in ratios))


if __name__ == "__main__":
    main()
