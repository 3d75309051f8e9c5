# What tests of an engine on several nodes share, to be sourced: a directory
# that goes at the end with all that still runs, and what is asked of nodes.
#
#     dir     logs, sockets and answers; DIR/KIND.one holds those of one process
#     pids    what is killed at the end
#     starts  in how many tenths of a second engines get ready
#     ends    in how many a node that failed ends
#     n       comparisons so far

dir=$(mktemp -d)
pids=
n=0
trap 'test -z "$pids" || kill -9 $pids 2>/dev/null || :; rm -rf "$dir"' EXIT

fail()
{
    echo "not ok: $*"
    for f in "$dir"/log*; do
        echo "== ${f##*/}"
        tail -5 "$f"
    done
    exit 1
}

# a port where nodes can meet
port()
{
    at=127.0.0.1:$(/usr/bin/python3 -c 'import socket
s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
}

# ready LOG...: all engines that run are, and these logs say so
ready()
{
    i=0
    for log in "$@"; do
        until grep -q ready: "$dir/$log"; do
            i=$((i + 1))
            test $i -lt $starts && kill -0 $pids \
                || fail "$log does not get ready"
            sleep 0.1
        done
    done
}

# ended PID: exits in time, not with 0
ended()
{
    i=0
    while kill -0 "$1" 2>/dev/null; do
        i=$((i + 1))
        test $i -lt $ends || fail "node still there"
        sleep 0.1
    done
    if wait "$1"; then
        fail "status 0 of a node that failed"
    fi
}

# says LOG PATTERN
says()
{
    grep -q -e "$2" "$dir/$1" || fail "$1 does not say: $2"
}

# compare SOCKET WHAT KIND...
compare()
{
    from=$1
    when=$2
    shift 2
    for kind in "$@"; do
        test -s "$dir/$kind.one" || fail "no answers"
        if ! cmp -s "$dir/$kind.$from" "$dir/$kind.one"; then
            diff "$dir/$kind.one" "$dir/$kind.$from" | cut -c 1-300 | head -6
            fail "$kind at $from, $when"
        fi
        n=$((n + 1))
    done
}

# both nodes, of which the second ends as the first goes
stop()
{
    kill "$pid0"
    wait "$pid0" || fail "node 0 does not end well"
    ended "$pid1"
    says log1 "node 0: it is going down"
    pids=
}

# how many guesses both nodes had right
guessed()
{
    right=$(cat "$dir/log0" "$dir/log1" \
            | sed -n 's/.* tokens guessed, \([0-9]*\) right.*/\1/p' \
            | awk '{ n += $1 } END { print n + 0 }')
    test "$right" -gt 0 || fail "no guess was right"
}

# busy OPTION...: a client asks node 0 for long answers from now on
busy()
{
    "$build/tests/chan_client" --socket "$dir/s0" --ignore-eos --timeout 60 \
        "$@" >"$dir/busy" 2>&1 &
    client=$!
    sleep 1
}

# its requests got an error
idle()
{
    if wait $client; then
        fail "requests ended well"
    fi
}
