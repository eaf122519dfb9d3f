// Run a compressed encoder in WebAssembly: node run.mjs MODEL BATCH TOKENS ID...
// In a browser the same lines work with a URL in place of the file. There is nothing to build: without a native
// library the ops of the model are computed by the functions that it carries.
import { readFile } from "node:fs/promises";
import * as ort from "onnxruntime-web";

const [path, batch, tokens, ...ids] = process.argv.slice(2);
ort.env.wasm.numThreads = 1;
const session = await ort.InferenceSession.create(await readFile(path), { executionProviders: ["wasm"] });
const values = {
  input_ids: ids.map(BigInt),
  attention_mask: ids.map(() => 1n),
  token_type_ids: ids.map(() => 0n),
};
const feeds = {};
for (const name of session.inputNames) {
  feeds[name] = new ort.Tensor("int64", BigInt64Array.from(values[name]), [Number(batch), Number(tokens)]);
}
const outputs = await session.run(feeds);
console.log(Array.from(outputs[session.outputNames[0]].data).join(" "));
