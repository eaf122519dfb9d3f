#!/bin/sh
# The paper's sweeps over thresholds and bits, for its five models:
#   sh hub.sh
# and for any other model, of the hub or a local folder:
#   sh hub.sh MODEL FOLDER TASK --data FILE
# FOLDER is made, and gets the export, a model for each setting, and results.json.
set -eu

sweep() { # MODEL FOLDER TASK, then the options of `onnx-attnq evaluate` that name the data
  model=$1 folder=$2 task=$3
  shift 3
  onnx-attnq export "$model" -o "$folder" --task "$task"
  for threshold in 1e-5 1e-4 1e-3 1e-2 1e-1; do
    made="$folder/prune-$threshold.onnx"
    onnx-attnq "$folder/model.onnx" -o "$made" --scheme prune-only --threshold "$threshold" --no-verify
    set -- "$@" --compressed "$made"
  done
  for scheme in ji2021-linear ji2021-linear-pruned ji2021-log ji2021 row-log row-log-mean; do
    for bits in 4 3 2; do
      made="$folder/$scheme-${bits}bit.onnx"
      onnx-attnq "$folder/model.onnx" -o "$made" --scheme "$scheme" --bits "$bits" --no-verify
      set -- "$@" --compressed "$made"
    done
  done
  onnx-attnq evaluate "$folder/model.onnx" --task "$task" "$@" --json "$folder/results.json"
}

if [ $# -gt 0 ]; then
  sweep "$@"
  exit
fi
sweep csarron/roberta-base-squad-v1 roberta-squad question-answering --dataset rajpurkar/squad
sweep csarron/bert-base-uncased-squad-v1 bert-squad question-answering --dataset rajpurkar/squad
sweep textattack/roberta-base-SST-2 roberta-sst2 text-classification --dataset stanfordnlp/sst2
for name in FacebookAI/roberta-base google-bert/bert-base-uncased; do
  sweep "$name" "${name#*/}-mlm" fill-mask --dataset Salesforce/wikitext:wikitext-2-raw-v1 --split test --limit 100
done
