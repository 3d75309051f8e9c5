#!/bin/sh
# Serves a model on 127.0.0.1:8080 from a build tree until Ctrl-C: llm-engine
# and nginx with nginx-conf/minimal.conf, both below build/run.
#
#   nginx-conf/run.sh BUILD MODEL [engine option...]

set -eu

build=$1
model=$2
shift 2

top=$(cd "$(dirname "$0")/.." && pwd)
run=$build/run
url=http://127.0.0.1:8080
question=${QUESTION:-What is a falcon?}
engine=
nginx=

stop()
{
    trap - INT TERM EXIT
    [ -z "$nginx" ] || kill -QUIT "$nginx" 2>/dev/null || :
    [ -z "$engine" ] || kill -TERM "$engine" 2>/dev/null || :
    wait
    echo
}

trap stop EXIT
trap 'exit 0' INT TERM

mkdir -p "$run/modules" "$run/run" "$run/logs" "$run/tmp"
run=$(cd "$run" && pwd)
install -m 755 "$build/ngx_http_llm_module.so" "$run/modules/"

"$build/llm-engine" serve --model "$model" --socket "$run/run/engine.sock" \
    "$@" 2>"$run/logs/engine.log" &
engine=$!

n=0
until "$build/llm-engine" status --socket "$run/run/engine.sock" \
    >/dev/null 2>&1
do
    if ! kill -0 "$engine" 2>/dev/null; then
        engine=
        echo "llm-engine did not start:" >&2
        cat "$run/logs/engine.log" >&2
        exit 1
    fi
    n=$((n + 1))
    [ $n != 50 ] || echo "loading $model ..."
    sleep 0.1
done

# Root's workers would be nobody's and could not reach the engine's socket.
user=
[ "$(id -u)" != 0 ] || user="user root;"

PATH=$PATH:/usr/sbin
nginx -p "$run" -c "$top/nginx-conf/minimal.conf" -e logs/error.log \
    -g "daemon off; $user" &
nginx=$!

n=0
until curl -sf -o /dev/null "$url/v1/models"; do
    if ! kill -0 "$nginx" 2>/dev/null || [ $n -ge 100 ]; then
        echo "nginx did not start:" >&2
        cat "$run/logs/error.log" >&2
        exit 1
    fi
    n=$((n + 1))
    sleep 0.1
done

body='{"messages":[{"role":"user","content":"'$question'"}],'
body=$body'"temperature":0,"stream":true}'

cat <<TEXT

nginx serves $url/v1 (logs in $run/logs), for example:

  curl -N $url/v1/chat/completions -H 'Content-Type: application/json' \\
    -d '$body'

and in a browser $url/playground and $url/status.

> $question
TEXT

curl -sSN "$url/v1/chat/completions" -H 'Content-Type: application/json' \
    -d "$body" | perl -ne '
    BEGIN { $| = 1; binmode STDOUT, ":utf8"; }
    die $_ if /"error"/;
    next unless /"content":"((?:[^"\\]|\\.)*)"/;
    $t = $1; utf8::decode($t);
    %e = (n => "\n", t => "\t", r => "\r", b => "\b", f => "\f");
    $t =~ s/\\(?:u([0-9a-fA-F]{4})|(.))/
        defined $1 ? chr hex $1 : $e{$2} \/\/ $2/ge;
    print $t;
'

printf '\n\nCtrl-C stops both.\n'
wait "$nginx"
