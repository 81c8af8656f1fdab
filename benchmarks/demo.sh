#!/usr/bin/env bash
# The whole pipeline on a synthetic data set: bash benchmarks/demo.sh <folder with olivine> <folder to work in>
set -euo pipefail
bin=$(cd "$1" && pwd)
mkdir -p "$2"
cd "$2"
start=$SECONDS
step() { printf '\n$ olivine %s\n' "$*"; "$bin/olivine" "$@"; }

[ -f data/nuscenes/synthetic.json ] || step synth --out data/nuscenes
step labelgen --dataset nuscenes
step build-pairs
step pretrain
step probe
step report
printf '\nThe demo took %d s. Pictures: %s\n' $((SECONDS - start)) "$(basename "$2")/report/index.html"
