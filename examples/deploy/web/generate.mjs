// Generate with a compressed decoder in WebAssembly: node generate.mjs MODEL COUNT ID...
// Prints the COUNT most likely tokens after the given ones. Each run is fed the keys and values of those before it.
import { readFile } from "node:fs/promises";
import * as ort from "onnxruntime-web";

const [path, count, ...prompt] = process.argv.slice(2);
ort.env.wasm.numThreads = 1;
const session = await ort.InferenceSession.create(await readFile(path), { executionProviders: ["wasm"] });
const integers = (values) => new ort.Tensor("int64", BigInt64Array.from(values, BigInt), [1, values.length]);

const past = {};
for (const { name, shape } of session.inputMetadata) {
  if (name.startsWith("past_key_values")) {
    past[name] = new ort.Tensor("float32", [], [1, shape[1], 0, shape[3]]);
  }
}
const generated = [];
let tokens = prompt.map(Number);
let seen = 0;
while (generated.length < Number(count)) {
  const positions = tokens.map((_, i) => seen + i);
  seen += tokens.length;
  const known = {
    input_ids: integers(tokens),
    attention_mask: integers(Array(seen).fill(1)),
    position_ids: integers(positions),
  };
  const feeds = Object.fromEntries(session.inputNames.map((name) => [name, known[name] ?? past[name]]));
  const outputs = await session.run(feeds);
  for (const name of Object.keys(past)) {
    past[name] = outputs[name.replace("past_key_values", "present")];
  }
  const vocabulary = outputs.logits.dims[2];
  const last = outputs.logits.data.slice(-vocabulary);
  tokens = [last.indexOf(Math.max(...last))];
  generated.push(tokens[0]);
}
console.log(generated.join(" "));
