"""Generate text with a compressed decoder through optimum: `python generate.py FOLDER PROMPT`.

FOLDER holds model.attnq.onnx, config.json and the tokenizer, as `onnx-attnq export --compress` leaves it. The native
library is registered where it was built; without it the tokens are the same, but take longer.
"""

import sys

import onnxruntime
from optimum.onnxruntime import ORTModelForCausalLM
from transformers import AutoTokenizer, pipeline

from onnx_attnq import native_library

folder, prompt = sys.argv[1:]
options = onnxruntime.SessionOptions()
if (library := native_library()) is not None:
    options.register_custom_ops_library(str(library))
model = ORTModelForCausalLM.from_pretrained(folder, file_name="model.attnq.onnx", session_options=options)
generate = pipeline("text-generation", model=model, tokenizer=AutoTokenizer.from_pretrained(folder))
print(generate(prompt, max_new_tokens=40, do_sample=False)[0]["generated_text"])
