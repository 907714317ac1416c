#!/usr/bin/env bash
# Offline data, Decision Transformers and their returns, as docs/control.md shows them.
#   [ENVIRONMENTS="Hopper-v5 ..."] experiments/control/run.sh [python] [folder]
# Stopped, the same command goes on. The rows are copied to benchmarks/results at the end.
set -euo pipefail
cd "$(dirname "$0")/../.."
python=$(realpath --no-symlinks "$(command -v "${1:-python}")") out=${2:-runs/control}
steps=$PWD/experiments/control results=$PWD/benchmarks/results
export OMP_NUM_THREADS=1
mkdir -p "$out" && cd "$out" # MuJoCo writes its warnings where it runs

learn() { # data set, folder of the model, options
  "$python" "$steps/train.py" --data "data/$1" --env "$environment" --out "models/$2" --updates 2500 "${@:3}"
}
play() { # folder of the model, options
  "$python" "$steps/evaluate.py" --model "models/$1" --out rows "${@:2}"
}

for environment in ${ENVIRONMENTS:-Hopper-v5 HalfCheetah-v5 Walker2d-v5}; do
  name=${environment%-v*} name=${name,,}
  seeds=10
  if [ "$name" = halfcheetah ]; then seeds=5; fi # no episode ends early there, which takes long
  [ -d "data/$name/expert-v0" ] || "$python" "$steps/data.py" --env "$environment" --out data --size 100000
  for kind in medium expert medium-replay; do
    learn "$name/$kind-v0" "$name-$kind" --batch 32
    play "$name-$kind" --seeds $seeds --budget 20 --budget own
  done
done

# What another training gives, what twice the bytes do, and what a longer window in training does
environment=Hopper-v5
learn hopper/expert-v0 hopper-expert-1 --batch 32 --seed 1
play hopper-expert-1 --seeds 10 --budget 20 --budget own
play hopper-expert --seeds 10 --budget 40
learn hopper/medium-v0 hopper-medium-60 --batch 11 --context 60
play hopper-medium-60 --seeds 10 --budget 60 --budget 20
xz -9 --stdout rows/rows.jsonl > "$results/control.jsonl.xz"
