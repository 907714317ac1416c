#!/usr/bin/env bash
# Starts and search spaces at equal evaluations, as docs/evolve.md compares them: half an hour a pair on two quiet cores.
# The shipped memories are those of `echo` and `once`.
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

search echo & # each of two takes one core
running=$!
search zeros 'start.scoring={}' search.sigma=0.065 stages.0.generations=24
wait $running
search warm start.from=warm 'start.scoring={}' search.sigma=0.3 stages.0.generations=18 &
running=$!
search once start.from=warm 'start.scoring={}' search.sigma=0.3 stages.0.generations=6 start.warm.samples=2 \
  memory.features=extended 'objective.budgets=[0.5, 0.25]'
wait $running
"${namm%namm}python" benchmarks/evolution.py "$out"
