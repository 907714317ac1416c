#!/usr/bin/env bash
# The runs behind builtin:universal: its preset with several seeds, one after another, each some hours on two
# cores. Stopped, the same command goes on.
#   benchmarks/evolution.sh GEMMA [namm] [folder]
# GEMMA: a folder or GGUF file of Gemma-3-270M. The curves are copied to benchmarks/results at the end, and drawn.
set -euo pipefail
cd "$(dirname "$0")/.."
gemma=$1 namm=${2:-namm} out=${3:-runs/evolution}
export OMP_NUM_THREADS=1
mkdir -p "$out"

for seed in 0 1; do
  resume=()
  if [ -e "$out/seed-$seed/run.json" ]; then resume=(--resume); fi
  "$namm" evolve --preset universal --out "$out/seed-$seed" "${resume[@]}" --workers 2 \
    --set "models.1.name=$gemma" --set "seed=$seed"
done
"${namm%namm}python" benchmarks/evolution.py "$out"
