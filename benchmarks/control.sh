#!/usr/bin/env bash
# Offline data, Decision Transformers and their returns, as docs/control.md shows them.
#   [ENVIRONMENTS="Hopper-v5 ..."] [SEEDS=10] benchmarks/control.sh [namm] [folder]
# Stopped, the same command goes on. The rows are copied to benchmarks/results at the end.
set -euo pipefail
cd "$(dirname "$0")/.."
namm=$(realpath "$(command -v "${1:-namm}")") out=${2:-runs/control} results=$PWD/benchmarks/results
export OMP_NUM_THREADS=1
mkdir -p "$out" && cd "$out" # MuJoCo writes its warnings where it runs

for environment in ${ENVIRONMENTS:-Hopper-v5 HalfCheetah-v5}; do
  name=${environment%-v*} name=${name,,}
  [ -d "data/$name/expert-v0" ] || "$namm" rl data --env "$environment" --out data --size 100000 --threads 1
  for kind in medium medium-replay expert; do
    model=models/$name-$kind
    "$namm" rl train --data "data/$name/$kind-v0" --env "$environment" --out "$model" --batch 32 --updates 2500 --threads 1
    "$namm" rl eval --model "$model" --out rows --seeds "${SEEDS:-10}" --budget 20 --budget own --threads 1
  done
done
xz -9 --stdout rows/rows.jsonl > "$results/control.jsonl.xz"
