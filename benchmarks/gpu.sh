#!/bin/sh
# What pixart does on this machine's GPU, in at most five minutes: sh benchmarks/gpu.sh [OUTPUT FOLDER]
# Needs torch with CUDA, transformers, accelerate, safetensors, numpy, and pixart's own dependencies; no weights.
cd "$(dirname "$0")/.." || exit 1
PYTHONPATH="$PWD/src:$PWD/tests:$PYTHONPATH" exec python benchmarks/gpu.py --out "${1:-${OUT:-gpu}}"
