#!/bin/bash
# Checks on a GPU, at most eight minutes; from the folder that make gpu-bundle
# makes.  A line for each says what passed; what fails is shown, and the rest
# goes on.  Each test is a process of its own, several at once.
#
#     check.sh [sanitize] [NAME...]    NAME: gpu_gemm, or gpu_gemm:test_tiles
#
#     sanitize      with compute-sanitizer: memcheck and racecheck
#     JOBS=N        how many at once, 8 by default
#     LIMIT=SECONDS of all, 470 by default

here=$(cd "$(dirname "$0")" && pwd) || exit 1
cd "$here" || exit 1

. ./libraries.sh

if [ "$1" = answer ]; then
    a=$(bin/llm-engine generate --model wordnet-tiny --backend cuda \
        "What is a falcon?") || exit 1
    b=$(bin/llm-engine generate --model wordnet-tiny --backend cpu \
        --compute bf16 "What is a falcon?") || exit 1
    echo "cuda: $a"
    echo "cpu:  $b"
    [ "$a" = "$b" ]
    exit
fi

if [ "$1" = unlisted ]; then
    echo "it did not list its tests"
    exit 1
fi

# One of them: check.sh one TITLE LIMIT COMMAND…

if [ "$1" = one ]; then
    title=$2
    limit=$3
    shift 3
    began=$(date +%s)
    left=$((CHECK_END - began))
    [ "$limit" -le $left ] || limit=$left
    out=$CHECK_DIR/${title//[ \/:]/_}

    if [ "$limit" -le 5 ]; then
        echo "left out: $title (no time)"
        echo "$title" >> "$CHECK_DIR/failed"
        exit 0
    fi

    timeout -k 5 "$limit" "$@" > "$out" 2>&1
    rc=$?

    if [ $rc = 0 ]; then
        echo "ok: $title ($(($(date +%s) - began)) s)"
    else
        echo "FAILED: $title (status $rc)
$(tail -n "${LINES_SHOWN:-30}" "$out" | sed 's/^/    /')"
        echo "$title" >> "$CHECK_DIR/failed"
    fi

    exit 0
fi

tools=()

if [ "$1" = sanitize ]; then
    tools=(memcheck racecheck)
    shift
fi

CHECK_DIR=${OUT:-$(mktemp -d)}/check
CHECK_END=$(($(date +%s) + ${LIMIT:-470}))
export CHECK_DIR CHECK_END
mkdir -p "$CHECK_DIR"
rm -f "$CHECK_DIR"/*

nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader

# Lines of: title, limit, command

jobs_of() {
    local p name names

    for p in bin/gpu_*; do

        if ! names=$("$p" --list) || [ -z "$names" ]; then
            echo "'${p#bin/}, its tests' 60 $here/check.sh unlisted"
            continue
        fi

        for name in $names; do
            if [ $# != 0 ] \
               && [[ " $* " != *" ${p#bin/} "* ]] \
               && [[ " $* " != *" ${p#bin/}:$name "* ]]
            then
                continue
            fi

            if [ ${#tools[@]} = 0 ]; then
                echo "'${p#bin/} $name' 90 $p $name"
            fi

            for t in "${tools[@]}"; do
                echo "'$t ${p#bin/} $name' 200 compute-sanitizer" \
                     "--tool $t --error-exitcode 9 $p $name"
            done
        done
    done

    if [ ${#tools[@]} = 0 ] && [ $# = 0 ]; then
        echo "'the answer of the shipped model' 60 $here/check.sh answer"
        echo "'log-probabilities beside float64' 240 python3" \
             "reference/compare.py bin/llm-engine --compute bf16" \
             "--fp8-inputs -- --backend cuda"
    fi
}

jobs_of "$@" | xargs -P "${JOBS:-8}" -L 1 "$here/check.sh" one

! [ -e "$CHECK_DIR/failed" ]
