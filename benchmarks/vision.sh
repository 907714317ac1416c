#!/usr/bin/env bash
# The small video model, what memories are worth to it, and the picture of docs/vision.md: about two hours on two cores.
#   [SAMPLES=60] benchmarks/vision.sh [namm] [folder]
# Needs the files of Fashion-MNIST (apt install dataset-fashion-mnist, or IMAGES=folder). Stopped, it goes on.
set -euo pipefail
cd "$(dirname "$0")/.."
namm=${1:-namm} out=${2:-runs/vision}
images=(${IMAGES:+--images "$IMAGES"})
export OMP_NUM_THREADS=1

"$namm" vision train --out "$out/model" --threads 1 "${images[@]}"
"$namm" vision eval --model "$out/model" --out "$out/rows" --threads 1 --samples "${SAMPLES:-60}" "${images[@]}" \
  --seconds 48 --budget 0.5 --budget 0.25 --budget 0.125 --budget own
"$namm" vision show --model "$out/model" --out docs/vision.png "${images[@]}" \
  --policy streaming --policy h2o --policy kvzip --policy builtin:universal
xz -9 -c "$out/rows/rows.jsonl" > benchmarks/results/vision.jsonl.xz
"${namm%namm}python" benchmarks/vision.py
