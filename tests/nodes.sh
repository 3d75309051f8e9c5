#!/bin/sh
# An engine of two processes on this machine, as if on two nodes: answers are
# those of one process, byte for byte, asked at either node, while experts move
# over both and while tokens are guessed; a node without work sleeps; and
# when a node dies, hangs or goes, or is another's, the others say so and end.
#
#     nodes.sh BUILD MODEL-DIR OTHER-MODEL-DIR

set -eu

build=$1
model=$2
other=$3

starts=600
ends=100
. "${0%/*}/nodes_lib.sh"

# serve LOG SOCKET OPTION...
serve()
{
    log=$1
    socket=$2
    shift 2
    "$build/llm-engine" serve --model "$model" --socket "$dir/$socket" \
        --threads 1 --prefill-chunk 64 --kv-memory 64M --grace 1 \
        --log-level info "$@" 2>"$dir/$log" &
    pid=$!
    pids="$pids $pid"
}

# pair OPTION...: nodes 0 and 1, of two ranks each
pair()
{
    port
    serve log0 s0 --ranks 2 --nodes 2 --node-rank 0 --rendezvous "$at" \
        --join-timeout 60 "$@"
    pid0=$pid
    SLURM_NTASKS=2 SLURM_PROCID=1 serve log1 s1 --ranks 2 --nodes auto \
        --rendezvous "$at" --join-timeout 60 "$@"
    pid1=$pid
    ready log0 log1
}

# both kinds of requests, at one socket
ask()
{
    client="$build/tests/chan_client --socket $dir/$1 --total 16 --concurrent 8
            --prompt-tokens 150 --vary --max-tokens 16 --dump --timeout 60"

    $client --echo --logprobs 3 >"$dir/greedy.$1" 2>>"$dir/figures"
    $client --temperature 0.9 --top-p 0.95 --seed 1 --presence-penalty 0.3 \
        >"$dir/seeded.$1" 2>>"$dir/figures"
}

# run WHAT OPTION...
run()
{
    what=$1
    shift
    pair "$@"
    ask s0 &
    asking=$!
    ask s1
    wait $asking || fail "node 0, $what"
    compare s0 "$what, both at once" greedy seeded
    compare s1 "$what, both at once" greedy seeded
    ask s1
    compare s1 "$what, the other node idle" greedy seeded
}

# One process of four ranks.

serve log one --ranks 4
ready log
ask one
kill $pid
wait $pid
pids=

run plain

# Nobody has work: no step, and next to no processor time.

steps()
{
    "$build/llm-engine" status --socket "$dir/$1" \
        | sed -n 's/^engine *step \([0-9]*\).*/\1/p'
}

cpu()
{
    awk '{ sub(/.*\) /, ""); print $12 + $13 }' "/proc/$1/stat"
}

before="$(steps s0) $(steps s1)"
ticks=$(($(cpu $pid0) + $(cpu $pid1)))
sleep 2
ticks=$(($(cpu $pid0) + $(cpu $pid1) - ticks))
test "$before" = "$(steps s0) $(steps s1)" || fail "idle nodes step"
test "$ticks" -le 20 || fail "idle nodes took $ticks ticks"
stop

run moves --redundant-experts 5 --balance-interval 0.02 --balance-gain 0
moved=$(grep -c 'balance: layer' "$dir/log0" || :)
came0=$("$build/llm-engine" status --socket "$dir/s0" \
        | awk '/^ +[0-9]/ { n += $NF } END { print n + 0 }')
came1=$("$build/llm-engine" status --socket "$dir/s1" \
        | awk '/^ +[0-9]/ { n += $NF } END { print n + 0 }')
test "$moved" -gt 0 && test "$came0" -gt 0 && test "$came1" -gt 0 \
    || fail "$moved layers moved, $came0 and $came1 experts came"
stop

run guesses --speculate 3 --speculate-always
stop
guessed

# Long answers run while a node is killed, or stopped; a stream gets an error.

pair --node-timeout 2
busy --total 4 --concurrent 4 --prompt-tokens 50 --max-tokens 1900
kill -9 "$pid1"
ended "$pid0"
says log0 "node 1 is gone"
idle
wait "$pid1" || :
pids=

pair --node-timeout 2
busy --total 4 --concurrent 4 --prompt-tokens 50 --max-tokens 1900
kill -STOP "$pid1"
ended "$pid0"
says log0 "within 2000 ms from node 1"
idle
kill -CONT "$pid1"
ended "$pid1"
says log1 "node 0"
pids=

# Killed while nobody has work.

pair --node-timeout 2
kill -9 "$pid0"
ended "$pid1"
says log1 "node 0 is gone"
wait "$pid0" || :
pids=

# Another model; other options.

port
serve log0 s0 --ranks 2 --nodes 2 --node-rank 0 --rendezvous "$at" \
    --join-timeout 3
pid0=$pid
keep=$model
model=$other
serve log1 s1 --ranks 2 --nodes 2 --node-rank 1 --rendezvous "$at"
pid1=$pid
ended "$pid1"
says log1 "refuses this one: node 1 has another model"
model=$keep
serve log2 s1 --ranks 2 --nodes 2 --node-rank 1 --rendezvous "$at" \
    --max-batch 8
ended "$pid"
says log2 'refuses this one: node 1 has "batch 8", node 0 "batch 32"'
ended "$pid0"
says log0 "node 1 did not come within 3000 ms; the last one refused: node 1"
pids=

# The command line.

usage()
{
    text=$1
    shift
    if "$build/llm-engine" generate --model "$model" "$@" x \
        2>"$dir/log0" >/dev/null
    then
        fail "accepted: $*"
    fi
    says log0 "$text"
}

usage 'nodes: "x" is neither a number from 1 to 64 nor auto' --nodes x
usage 'nodes: "65" is neither' --nodes 65
usage 'node-rank: "2" is not one of 2 nodes' --nodes 2 --node-rank 2
usage '--rendezvous HOST:PORT is needed' --nodes 2
usage '"here" has no port' --nodes 2 --rendezvous here
unset SLURM_NTASKS SLURM_PROCID SLURM_NNODES OMPI_COMM_WORLD_SIZE
usage "neither Slurm's nor Open MPI's variables are set" --nodes auto
SLURM_JOB_NODELIST='nohost-[07-09],x' SLURM_NTASKS=2 SLURM_PROCID=1 \
    usage 'nohost-07' --nodes auto --rendezvous :7000 --join-timeout 1
OMPI_COMM_WORLD_SIZE=2 OMPI_COMM_WORLD_RANK=x \
    usage 'OMPI_COMM_WORLD_RANK is "x"' --nodes auto --rendezvous :7000

echo "ok: $n runs on two nodes equal one process, experts moved in $moved" \
     "layers, $right guesses right; killed, stopped, gone and wrong nodes" \
     "are told of"
