#!/bin/sh
# Engines on emulated devices, of two processes as if on two nodes, with the
# stand-in for NCCL between them: answers are those of one process with all the
# ranks, byte for byte, asked at either node, while tokens are guessed and steps
# go in two micro-batches and, with LONG set, while experts move; a node that is
# killed or hangs ends the other one's step with words.
#
#     nodes_cuda.sh BUILD MODEL-DIR

set -eu

build=$1
model=$2

starts=900
ends=600
. "${0%/*}/nodes_lib.sh"

# what ranks share is named there
TMPDIR=$dir
export TMPDIR

# serve LOG SOCKET OPTION...
serve()
{
    log=$1
    socket=$2
    shift 2
    "$build/tests/cuda/llm-engine" serve --backend cuda --deterministic \
        --model "$model" --socket "$dir/$socket" --max-context 256 \
        --max-batch 4 --prefill-chunk 32 --kv-memory 16M --grace 1 \
        --log-level info "$@" 2>"$dir/$log" &
    pid=$!
    pids="$pids $pid"
}

# pair OPTION...: nodes 0 and 1
pair()
{
    port
    serve log0 s0 --nodes 2 --node-rank 0 --rendezvous "$at" \
        --join-timeout 60 "$@"
    pid0=$pid
    serve log1 s1 --nodes 2 --node-rank 1 --rendezvous "$at" \
        --join-timeout 60 "$@"
    pid1=$pid
    ready log0 log1
}

# ask SOCKET KIND OPTION...
ask()
{
    socket=$1
    kind=$2
    shift 2
    "$build/tests/chan_client" --socket "$dir/$socket" --vary --dump \
        --timeout 120 "$@" >"$dir/$kind.$socket" 2>>"$dir/figures"
}

short()
{
    ask "$1" greedy --total 3 --concurrent 3 --prompt-tokens 40 --max-tokens 5
    ask "$1" seeded --total 3 --concurrent 3 --prompt-tokens 40 \
        --max-tokens 5 --temperature 0.9 --top-p 0.95 --seed 1
}

# loads are counted every 64 steps
long()
{
    ask "$1" long --total 2 --concurrent 2 --prompt-tokens 40 --max-tokens 90 \
        --ignore-eos
}

# One process of two ranks.

CU_EMU_DEVICES=2 serve log one --ranks 2
ready log
short one
test -z "${LONG:-}" || long one
kill $pid
wait $pid
pids=

moved=
if test -n "${LONG:-}"; then
    pair --redundant-experts 3 --balance-interval 0.05 --balance-gain 0
    long s0
    compare s0 "experts moved, node 1 without work" long

    # the balancer has what processor time is left, and moves between steps

    i=0
    until moved=$(grep -c 'balance: layer' "$dir/log0"); do
        i=$((i + 1))
        test $i -lt 10 || fail "no layer moved"
        sleep 1
        short s0
    done
    moved=", experts moved in $moved layers"
    short s1
    compare s1 "experts moved" greedy seeded
    stop
fi

pair --speculate 2 --speculate-always --overlap 8
short s0 &
asking=$!
short s1
wait $asking || fail "node 0, with guesses and micro-batches"
compare s0 "guesses, micro-batches, both at once" greedy seeded
compare s1 "guesses, micro-batches, both at once" greedy seeded
stop
guessed

# A long answer runs while the other node is killed, or stopped.

pair
busy --total 1 --concurrent 1 --prompt-tokens 40 --max-tokens 200
kill -9 "$pid1"
ended "$pid0"
says log0 "node 1 is gone"
idle
wait "$pid1" || :
pids=

pair --node-timeout 6
busy --total 1 --concurrent 1 --prompt-tokens 40 --max-tokens 200
kill -STOP "$pid1"
ended "$pid0"
says log0 "within 6000 ms"
idle
kill -CONT "$pid1"
ended "$pid1"
says log1 "node 0: \|NCCL: "
pids=

echo "ok: $n runs on two nodes with emulated devices equal one process," \
     "$right guesses right$moved; killed and stopped nodes are told of"
