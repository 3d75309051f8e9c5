#!/bin/sh
# Figures of a GPU, at most eight minutes; from the folder that make gpu-bundle
# makes.  What is printed goes to $OUT/bench-gpu.txt, too, if OUT is set.

cd "$(dirname "$0")" || exit 1

. ./libraries.sh

begin=$(date +%s)

{
    date -u +%Y-%m-%d
    nvidia-smi --query-gpu=name,driver_version,memory.total \
        --format=csv,noheader

    for p in bin/bench_*; do
        [ -x "$p" ] || continue
        echo
        echo "== ${p#bin/bench_}"
        left=$((470 - $(date +%s) + begin))
        [ $left -gt 5 ] || { echo "left out: no time"; continue; }
        [ $left -lt 150 ] || left=150
        timeout $left "$p" || echo "FAILED: status $?"
    done
} 2>&1 | tee "${OUT:-/tmp}/bench-gpu.txt"
