#!/usr/bin/env bash
# What docs/results.md shows of one model: every memory on the same samples, at equal bytes.
#   benchmarks/evidence.sh smollm2|qwen|gemma MODEL [namm] [folder]
# MODEL: a folder, GGUF file or hub id, by the same name each time. ROUNDS=1 in the environment stops after
# so many rounds. Two processes of one thread share the work. Stopped, the same command goes on, also on another machine
# from the rows in benchmarks/results. Samples come in rounds, so that what there is is even: after each
# round the rows are copied there. Hours on two cores.
set -euo pipefail
cd "$(dirname "$0")/.."
suite=$1 model=$2 namm=${3:-namm}
out=${4:-runs/evidence/$suite} kept=benchmarks/results/$suite
export OMP_NUM_THREADS=1
mkdir -p "$out"
if [ ! -e "$out/run.json" ] && [ -e "$kept.json" ]; then
  cp "$kept.json" "$out/run.json"
  xz -dc "$kept.jsonl.xz" > "$out/rows.jsonl"
fi

rounds=${ROUNDS:-99}
measure() { # tokens, samples of each task, budgets, tasks
  [ "$((rounds--))" -gt 0 ] || return 0
  local tokens=$1 samples=$2 budgets=($3) tasks=($4) running=()
  for part in 1/2 2/2; do
    "$namm" eval --model "$model" --out "$out" --dtype bfloat16 --threads 1 --tokens "$tokens" --samples "$samples" \
      --memory kvzip@model --memory requery-calibrated "${budgets[@]/#/--budget=}" "${tasks[@]/#/--task=}" --part "$part" &
    running+=($!)
  done
  for process in "${running[@]}"; do wait "$process"; done
  cat "$out"/rows*.jsonl | xz -9 > "$kept.jsonl.xz"
  cp "$out/run.json" "$kept.json"
}

needles="passkey niah_single niah_word niah_multikey" all="$needles vartrack quote lm_code"
case $suite in
  smollm2)
    measure 1024 2 "0.5 0.25 0.125 0.0625" "$all"
    measure 2048 2 "0.25 0.125 0.0625" "$all"
    measure 4096 2 "0.25 0.125" "$needles"
    for n in 6 10 14; do measure 1024 $n "0.5 0.25 0.125 0.0625" "$all"; done
    for n in 4 7; do measure 2048 $n "0.25 0.125 0.0625" "$all"; done
    measure 4096 4 "0.25 0.125" "$needles"
    ;;
  qwen)
    measure 1024 2 "0.25 0.125 0.0625" "$all"
    measure 2048 2 "0.25 0.125 0.0625" "$needles vartrack quote"
    for n in 4 7; do measure 1024 $n "0.25 0.125 0.0625" "$all"; done
    measure 2048 4 "0.25 0.125 0.0625" "$needles vartrack quote"
    ;;
  gemma)
    for n in 2 6; do measure 1024 $n "0.5 0.25 0.125" "$needles"; done
    ;;
  *)
    echo "smollm2, qwen or gemma; got $suite" >&2
    exit 2
    ;;
esac
