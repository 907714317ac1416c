#!/usr/bin/env bash
# The shipped memories, untouched, on another language model: the tables and picture of docs/transfer.md.
#   [SAMPLES=6] benchmarks/transfer.sh MODEL [namm] [folder]
# MODEL: a folder, GGUF file or hub id. Stopped, the same command goes on.
set -euo pipefail
model=$1 namm=${2:-namm} out=${3:-runs/transfer}
here="$(cd "$(dirname "$0")" && pwd)"
export OMP_NUM_THREADS=1

"$namm" eval --model "$model" --out "$out" --dtype bfloat16 --template raw --threads 1 --samples "${SAMPLES:-6}" \
  --tokens 1024 --budget 0.5 --budget 0.25 --memory builtin:smollm2-135m-instruct-once \
  --policy h2o --policy observed-max --policy snapkv --policy kvzip --policy builtin:smollm2-135m-instruct \
  --task passkey --task niah_single --task niah_word --task niah_multikey
cat "$out"/rows*.jsonl | xz -9 > "$here/results/transfer.jsonl.xz"
cp "$out/run.json" "$here/results/transfer.json"
"${namm%namm}python" "$here/transfer.py"
