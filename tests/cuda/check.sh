#!/bin/sh
# Checks on a GPU, at most eight minutes; from the folder that make gpu-bundle
# makes.  Each line says what passed; what fails is shown, and the rest goes on.
#
#     check.sh [sanitize]      with compute-sanitizer: memcheck and racecheck

cd "$(dirname "$0")" || exit 1

# cuBLASLt where toolkits and python packages put it
for d in /usr/local/cuda/lib64 /usr/local/cuda/targets/x86_64-linux/lib \
    $(python3 -c 'import site; print(*site.getsitepackages())' 2>/dev/null \
      | tr ' ' '\n' | sed 's,$,/nvidia/*/lib,')
do
    [ -d "$d" ] && LD_LIBRARY_PATH=${LD_LIBRARY_PATH:+$LD_LIBRARY_PATH:}$d
done
export LD_LIBRARY_PATH

log=${OUT:-/tmp}/check-gpu.log
: > "$log"
failed=0
begin=$(date +%s)

run() {                              # NAME SECONDS COMMAND …
    name=$1
    limit=$2
    shift 2
    now=$(date +%s)
    left=$((470 - now + begin))
    [ $limit -le $left ] || limit=$left

    if [ $limit -le 5 ]; then
        echo "left out: $name (no time)"
        failed=1
        return
    fi

    if timeout $limit "$@" > "$log.one" 2>&1; then
        echo "ok: $name ($(($(date +%s) - now)) s)"
    else
        echo "FAILED: $name (status $?)"
        tail -n 30 "$log.one"
        failed=1
    fi

    echo "== $name" >> "$log"
    cat "$log.one" >> "$log"
}

nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader

if [ "$1" = sanitize ]; then
    for p in bin/gpu_*; do
        run "memcheck ${p#bin/}" 120 \
            compute-sanitizer --tool memcheck --error-exitcode 9 "$p"
        run "racecheck ${p#bin/}" 120 \
            compute-sanitizer --tool racecheck --error-exitcode 9 "$p"
    done
    exit $failed
fi

for p in bin/gpu_*; do
    run "${p#bin/}" 90 "$p"
done

run "answer of the shipped model" 60 sh -c '
    a=$(bin/llm-engine generate --model wordnet-tiny --backend cuda \
        "What is a falcon?") || exit 1
    b=$(bin/llm-engine generate --model wordnet-tiny --backend cpu \
        --compute bf16 "What is a falcon?") || exit 1
    echo "cuda: $a"; echo "cpu:  $b"; [ "$a" = "$b" ]'

run "log-probabilities against float64" 240 \
    python3 reference/compare.py bin/llm-engine --compute bf16 --fp8-inputs \
    -- --backend cuda

exit $failed
