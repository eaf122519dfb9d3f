"""Generate text with a compressed decoder through optimum: `python generate.py FOLDER PROMPT`."""

import sys

from optimum.onnxruntime import ORTModelForCausalLM
from transformers import AutoTokenizer, pipeline

folder, prompt = sys.argv[1:]
model = ORTModelForCausalLM.from_pretrained(folder, file_name="model.attnq.onnx")
generate = pipeline("text-generation", model=model, tokenizer=AutoTokenizer.from_pretrained(folder))
print(generate(prompt, max_new_tokens=40, do_sample=False)[0]["generated_text"])
