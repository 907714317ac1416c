#!/usr/bin/env bash
# The embedded suite on SmolLM2, as docs/results.md shows it. Two processes of one thread share the work and the folder.
#   [SAMPLES=24] benchmarks/embedded.sh [namm] [folder]
# Stopped, the same command goes on. The rows are copied to benchmarks/results at the end.
set -euo pipefail
cd "$(dirname "$0")/.."
namm=${1:-namm} out=${2:-runs/embedded}
export OMP_NUM_THREADS=1

measure() { # tokens, tasks
  local tokens=$1 running=()
  shift
  for part in 1/2 2/2; do
    "$namm" eval --out "$out" --dtype bfloat16 --threads 1 --samples "${SAMPLES:-24}" --tokens "$tokens" \
      --budget 0.5 --budget 0.35 --budget 0.25 --memory builtin:smollm2-135m-instruct-once \
      "${@/#/--task=}" --part "$part" &
    running+=($!)
  done
  for process in "${running[@]}"; do wait "$process"; done
}

measure 1024 passkey niah_single niah_word niah_multikey vartrack quote lm_code
measure 2048 passkey niah_word niah_multikey quote
cat "$out"/rows*.jsonl | xz -9 > benchmarks/results/embedded.jsonl.xz
cp "$out"/run.json benchmarks/results/embedded.json
