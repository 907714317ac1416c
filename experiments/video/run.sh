#!/usr/bin/env bash
# The small video model, what memories are worth to it, and the picture of docs/vision.md: about two hours on two cores.
#   [SAMPLES=60] experiments/video/run.sh [python] [folder]
# Needs the files of Fashion-MNIST (apt install dataset-fashion-mnist, or IMAGES=folder). Stopped, it goes on.
set -euo pipefail
cd "$(dirname "$0")/../.."
python=${1:-python} steps=experiments/video out=${2:-runs/vision}
images=(${IMAGES:+--images "$IMAGES"})
export OMP_NUM_THREADS=1

"$python" "$steps/train.py" --out "$out/model" --threads 1 "${images[@]}"
"$python" "$steps/evaluate.py" --model "$out/model" --out "$out/rows" --threads 1 --samples "${SAMPLES:-60}" "${images[@]}" \
  --seconds 48 --budget 0.5 --budget 0.25 --budget 0.125 --budget own
"$python" "$steps/show.py" --model "$out/model" --out docs/vision.png "${images[@]}" \
  --policy streaming --policy h2o --policy kvzip --policy builtin:universal
xz -9 -c "$out/rows/rows.jsonl" > benchmarks/results/vision.jsonl.xz
"$python" "$steps/tables.py"
