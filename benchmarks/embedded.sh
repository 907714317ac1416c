#!/usr/bin/env bash
# The embedded suite on SmolLM2, as docs/results.md shows it: two processes of one thread share the work and the folder.
#   benchmarks/embedded.sh [namm] [folder]
set -euo pipefail
cd "$(dirname "$0")/.."
namm=${1:-namm} out=${2:-runs/embedded}
export OMP_NUM_THREADS=1
tasks=(passkey niah_single niah_word niah_multikey vartrack quote lm_code)
running=()
for part in 1/2 2/2; do
  "$namm" eval --out "$out" --dtype bfloat16 --threads 1 --samples 24 --tokens 1024 --tokens 2048 \
    "${tasks[@]/#/--task=}" --part "$part" &
  running+=($!)
done
for process in "${running[@]}"; do wait "$process"; done
cat "$out"/rows*.jsonl | xz -9 > benchmarks/results/embedded.jsonl.xz
cp "$out"/run.json benchmarks/results/embedded.json
