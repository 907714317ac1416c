#!/usr/bin/env bash
# Does forgetting ever help? The embedded model beyond the 8,192 tokens it was trained for, as it is and with its rotary
# positions scaled (YaRN, a factor of two): full cache and memories on the same samples.
#   benchmarks/beyond.sh [namm] [folder]
# Stopped, the same command goes on. Hours on two cores. Rows: benchmarks/results/beyond-KIND.jsonl.xz; `namm eval --report
# --out FOLDER/KIND` shows them.
set -euo pipefail
cd "$(dirname "$0")/.."
namm=${1:-namm} folder=${2:-runs/beyond}
export OMP_NUM_THREADS=1
for kind in default yarn; do
  model=$folder/models/$kind out=$folder/$kind
  [ -e "$model/config.json" ] || "$(dirname "$(command -v "$namm")")/python" - "$model" "$kind" << 'PYTHON'
import sys

import namm

folder, kind = sys.argv[1:]
model, tokenizer = namm.models.load_model(dtype="bfloat16")
config = model.config
if kind != "default":
    config.rope_parameters |= {
        "rope_type": kind, "factor": 2.0, "original_max_position_embeddings": config.max_position_embeddings,
    }
config.max_position_embeddings *= 2
model.save_pretrained(folder)
tokenizer.save_pretrained(folder)
PYTHON
  mkdir -p "$out"
  for samples in 2 6; do
    running=()
    for part in 1/2 2/2; do
      "$namm" eval --model "$model" --out "$out" --dtype bfloat16 --threads 1 --tokens 7500 --tokens 12000 \
        --samples $samples --task passkey --task niah_single --task niah_multikey --budget 0.25 --budget 0.125 \
        --policy requery --policy builtin:universal --part $part &
      running+=($!)
    done
    for process in "${running[@]}"; do wait "$process"; done
    cat "$out"/rows*.jsonl | xz -9 > "benchmarks/results/beyond-$kind.jsonl.xz"
  done
done
