"""What sharing costs in standard ops: encoders of BERT-base, rewritten with pruned values zero and mean, no native library.

    python benchmarks/portable.py

The original, `row-log` (3 bits, threshold .01) and `row-log-mean` (the default), all in turn, one thread; medians of process CPU time,
and the quotients. --layers 12 is the whole of BERT-base; the quotients hardly depend on it.
"""

from __future__ import annotations

import argparse
import statistics
import time

import numpy as np
import onnx_ir as ir
import onnxruntime
from bert import bert

from onnx_attnq.find import expose, find_sites
from onnx_attnq.rewriting import rewrite, uniform_plan
from onnx_attnq.scheme import QuantScheme, preset


def session(model: ir.Model) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    content = ir.to_proto(model).SerializeToString()
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def rewritten(original: ir.Model, scheme: QuantScheme) -> ir.Model:
    model = original.clone()
    sites = find_sites(expose(model))
    plan = uniform_plan(sites.exposed.structure_hash, [site.id for site in sites.sites], scheme)
    rewrite(model, sites, plan)
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--opset", type=int, default=17)
    parser.add_argument("--lengths", type=int, nargs="+", default=[128, 255, 256, 384, 512])
    given = parser.parse_args()
    original = ir.from_proto(bert(layers=given.layers, vocabulary=1000, opset=given.opset))
    contenders = {
        "original": session(original),
        "row-log": session(rewritten(original, preset("row-log"))),
        "row-log-mean": session(rewritten(original, preset("row-log-mean"))),
    }
    print(f"{'tokens':>8}" + "".join(f"{name:>14}" for name in contenders) + f"{'mean / zero':>14}")
    for length in given.lengths:
        ids = np.random.default_rng(0).integers(1000, size=(1, length))
        feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
        spent: dict[str, list[float]] = {name: [] for name in contenders}
        for _ in range(given.repeats):
            for name, contender in contenders.items():
                start = time.process_time()
                contender.run(None, feeds)
                spent[name].append(time.process_time() - start)
        medians = {name: statistics.median(times) for name, times in spent.items()}
        quotient = medians["row-log-mean"] / medians["row-log"]
        print(
            f"{length:8}" + "".join(f"{1e3 * m:11.1f} ms" for m in medians.values()) + f"{quotient:14.3f}", flush=True
        )


if __name__ == "__main__":
    main()
