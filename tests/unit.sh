#!/bin/sh
# Runs one unit test, so that several may go on at once: a line if it passes,
# what it printed if not.  One that hangs is killed, with the stacks of its
# threads where gdb is installed.
#
#     unit.sh PROGRAM LOGDIR
#
#     UNIT_LIMIT=SECONDS  how long it may take, 900 by default

log=$2/${1##*/}.log
limit=${UNIT_LIMIT:-900}

"$1" > "$log" 2>&1 &
pid=$!

(
    trap 'kill $!; exit' TERM
    sleep "$limit" &
    wait $!

    echo "killed: not done within $limit s"
    gdb -p $pid -batch -ex 'thread apply all backtrace' 2>/dev/null
    kill -KILL $pid
) >> "$log" 2>&1 &
watch=$!

wait $pid
status=$?
kill $watch 2>/dev/null

if [ $status = 0 ]; then
    echo "ok ${1##*/}: $(sed -n 's/.*\(\[  PASSED  \]\) \(.*\)\./\2/p' "$log")"
    exit 0
fi

echo "FAILED ${1##*/}: status $status"
cat "$log"
exit 255                             # and xargs stops
