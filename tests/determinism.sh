#!/bin/sh
# The same requests give the same bytes, whatever the batch, the chunking, the
# ranks and the threads, wherever experts move meanwhile, with and without
# prefix cache, with steps prepared ahead and without, and when memory is so
# short that sequences are preempted and computed again: greedy with the
# log-probabilities of prompt and answer, and seeded, through the running
# engine.  Scored prompts are computed in full; those of the seeded requests are
# found in the cache then, in part or but for the last.
#
#     determinism.sh BUILD MODEL-DIR
#
# A reduced set of settings; all of them with LONG=1.  COMPUTE=f32|bf16,
# WEIGHTS=int8 and the like and KERNELS=PATH choose what is tested, else the
# engine does.

set -eu

build=$1
model=$2

dir=$(mktemp -d)
pid=
trap 'test -z "$pid" || kill -9 $pid 2>/dev/null || :; rm -rf "$dir"' EXIT

options=
requests=32
tokens=16
set=first
if [ -n "${LONG:-}" ]; then
    ranks="1 2 3"
    threads="1 2"
    chunks="16 64 512"
    loads="1 8 32"
else
    ranks="1 3"
    threads="1 2"
    chunks="16 512"
    loads="1 32"
fi

# start RANKS THREADS CHUNK KV-MEMORY; the very first without prefix cache, and
# every other one with steps prepared ahead
cache=off
ahead=on
start()
{
    if [ $ahead = on ]; then ahead=off; else ahead=on; fi
    "$build/llm-engine" serve --model "$model" --socket "$dir/s" \
        --ranks "$1" --threads "$2" --prefill-chunk "$3" --kv-memory "$4" \
        --prefix-cache $cache --ahead $ahead \
        --compute "${COMPUTE:-auto}" --weights "${WEIGHTS:-auto}" \
        ${KERNELS:+--kernels "$KERNELS"} \
        $options \
        2>"$dir/log" &
    pid=$!
    what="ranks $1, threads $2, chunk $3, KV $4, cache $cache, ahead $ahead"
    what="$what $options"
}

stop()
{
    kill $pid
    if ! wait $pid; then
        echo "not ok: the engine failed ($what)"
        cat "$dir/log"
        exit 1
    fi
    pid=

    c=$(sed -n 's/.*, \([0-9]*\) of [0-9]* prompt tokens cached.*/\1/p' \
        "$dir/log")
    if [ $set$cache = firston ] && [ "${c:-0}" -eq 0 ]; then
        echo "not ok: nothing was cached ($what)"
        cat "$dir/log"
        exit 1
    fi
    cached=$((cached + ${c:-0}))
    cache=on
}

n=0
cached=0

# run CONCURRENT: both kinds of requests, compared with the first ones
run()
{
    client="$build/tests/chan_client --socket $dir/s --total $requests
            --concurrent $1 --prompt-tokens 150 --vary --max-tokens $tokens
            --dump --timeout 120"

    $client --echo --logprobs 3 >"$dir/greedy" 2>>"$dir/figures"
    $client --temperature 0.9 --top-p 0.95 --seed 1 --presence-penalty 0.3 \
        >"$dir/seeded" 2>>"$dir/figures"

    for kind in greedy seeded; do
        if [ ! -f "$dir/$set.$kind" ]; then
            mv "$dir/$kind" "$dir/$set.$kind"

        elif ! cmp -s "$dir/$kind" "$dir/$set.$kind"; then
            echo "not ok: $kind, $what, $1 at a time"
            diff "$dir/$set.$kind" "$dir/$kind" | cut -c 1-300 | head -6
            exit 1
        fi
        n=$((n + 1))
    done
}

for r in $ranks; do
    for t in $threads; do
        for c in $chunks; do
            start "$r" "$t" "$c" 64M
            for l in $loads; do
                run "$l"
            done
            stop
        done
    done
done

# Experts of each layer move as often as they may, with replicas and without.
moved=0
came=0
for r in 2 3; do
    for x in 0 5; do
        options="--redundant-experts $x --balance-interval 0.02
                 --balance-gain 0 --log-level info"
        start "$r" 1 64 64M
        run 8
        run 32
        "$build/llm-engine" status --socket "$dir/s" >"$dir/status"
        came=$((came + $(awk '/^ +[0-9]/ { n += $NF } END { print n + 0 }' \
                         "$dir/status")))
        stop
        moved=$((moved + $(grep -c 'balance: layer' "$dir/log" || :)))
    done
done
options=

if [ "$moved" -eq 0 ] || [ "$came" -lt "$moved" ]; then
    echo "not ok: the log tells of $moved layers whose experts moved," \
         "llm-engine status of $came experts"
    cat "$dir/status"
    exit 1
fi

if "$build/llm-engine" status --socket "$dir/s" 2>/dev/null; then
    echo "not ok: llm-engine status without an engine"
    exit 1
fi

# Tokens are guessed, by a layer that is right now and then.
guessed=0
for s in 1 3; do
    options="--speculate $s --speculate-always"
    start "$s" 1 64 64M
    run 1
    run 32
    "$build/llm-engine" status --socket "$dir/s" >"$dir/status"
    said=$(sed -n 's/^guesses.* drafts, \([0-9]*\) right.*/\1/p' \
        "$dir/status")
    stop
    right=$(sed -n 's/.* tokens guessed, \([0-9]*\) right.*/\1/p' "$dir/log")
    guessed=$((guessed + ${right:-0}))

    # It was asked when the last step may not have been told of.
    if [ "${said:-0}" -eq 0 ] || [ "$said" -gt "${right:-0}" ]; then
        echo "not ok: llm-engine status tells of ${said:-no} right guesses," \
             "the log of ${right:-none} ($what)"
        cat "$dir/status"
        exit 1
    fi
done
options=

if [ "$guessed" -eq 0 ]; then
    echo "not ok: no guess was right"
    exit 1
fi

# Ten sequences that grow to 3 to 5 blocks each, in 64 MiB and in 14 blocks.
set=grown
requests=10
tokens=150

cache=off
start 2 1 64 64M
run 1
stop
options="--speculate 2"
start 2 1 16 64M
run 10
stop
options="--speculate 4 --speculate-always"
start 1 2 64 "${SHORT_SPECULATE_KV:-640K}"
run 10
stop

# Prompts are found in the cache while sequences are preempted, with guesses
# and without, and with steps prepared ahead and without.
preempted=0
for s in 0 0 2; do
    options="--speculate $s"
    start 1 2 64 "${SHORT_CACHE_KV:-1M}"
    run 10
    run 6
    run 10
    stop
    p=$(sed -n 's/.* \([0-9]*\) preempted.*/\1/p' "$dir/log")
    if [ "${p:-0}" -eq 0 ] || [ "${c:-0}" -eq 0 ]; then
        echo "not ok: ${p:-0} times preempted, ${c:-0} tokens cached ($what)"
        cat "$dir/log"
        exit 1
    fi
    preempted=$((preempted + p))
done
options=

# In 14 blocks and a directory, and in those of the engine before.
cache=on
options="--kv-cache-dir $dir/kv"
read=0
for r in 1 2; do
    start "$r" 1 64 "${SHORT_KV:-512K}"
    run 10
    run 3
    stop
    read=$((read + $(sed -n 's/.*KV cache: .* \([0-9]*\) read.*/\1/p' \
        "$dir/log")))
    if grep -q 'KV cache: .* were written, 0 read' "$dir/log"; then
        echo "not ok: nothing came from disk ($what)"
        cat "$dir/log"
        exit 1
    fi
done
options=

if cmp -s "$dir/first.greedy" "$dir/first.seeded"; then
    echo "not ok: sampling makes no difference"
    exit 1
fi

echo "ok: $n runs, ranks $ranks, threads $threads," \
     "chunks $chunks, $loads at a time, $preempted times preempted," \
     "$cached tokens from the cache, $read blocks from disk," \
     "experts moved in $moved layers, $guessed guesses right:" \
     "equal bytes"
