#!/usr/bin/env bash
# Starts and search spaces at equal evaluations, as docs/evolve.md compares them: half an hour a pair on two quiet cores.
# The shipped memories are those of `warm` and `once`.
#   benchmarks/evolution.sh [namm] [folder]
# Stopped, the same command goes on. The curves are copied to benchmarks/results at the end, and drawn.
set -euo pipefail
cd "$(dirname "$0")/.."
namm=${1:-namm} out=${2:-runs/evolution}
export OMP_NUM_THREADS=1
mkdir -p "$out"

search() { # name, settings
  local name=$1 resume=()
  shift
  if [ -e "$out/$name/run.json" ]; then resume=(--resume); fi
  "$namm" evolve --preset embedded --out "$out/$name" "${resume[@]}" "${@/#/--set=}"
}

search zeros start.from=zeros search.sigma=0.065 & # each of the two takes one core
zeros=$!
search warm
wait $zeros
search once memory.features=extended 'objective.budgets=[0.5, 0.25]' start.warm.samples=2
python benchmarks/evolution.py "$out"
