#!/bin/sh
# Runs one unit test, so that several may go on at once: a line if it passes,
# what it printed if not.
#
#     unit.sh PROGRAM LOGDIR

log=$2/${1##*/}.log

if "$1" > "$log" 2>&1; then
    echo "ok ${1##*/}: $(sed -n 's/.*\(\[  PASSED  \]\) \(.*\)\./\2/p' "$log")"
    exit 0
fi

echo "FAILED ${1##*/}: status $?"
cat "$log"
exit 255                             # and xargs stops
