#!/usr/bin/env bash
# Starts and search spaces at equal evaluations, as docs/evolve.md compares them: about an hour and a half on two cores.
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
  "$namm" evolve --config benchmarks/evolution/base.toml --out "$out/$name" "${resume[@]}" "${@/#/--set=}"
}

two_at_once() { # each of the two takes one core
  local one=$1 two=$2
  eval "search $one" & local first=$!
  eval "search $two"
  wait $first
}

two_at_once "zeros search.sigma=0.065" "warm start.from=warm"
two_at_once "peaks 'start.scoring={\"both\": 1.0}'" "warm-head start.from=warm search.space=head"
python benchmarks/evolution.py "$out"
