#!/bin/bash
# A GPU behind nginx: a checkpoint of V2-Lite's own sizes with random numbers,
# the engine, nginx with the module, and streams over HTTP; from the folder
# that make gpu-bundle makes.  Prints a table, and writes it to $OUT/e2e.md if
# OUT is set.
#
#     e2e.sh
#
#     BACKEND=cpu    the processor instead, to see that the script works
#     STYLE=NAME     another checkpoint (make_checkpoint.py --style list)
#     DIR=/dev/shm   where the checkpoint goes, 31 GB for V2-Lite
#     STREAMS, TOKENS, PROMPT   what is asked for
#     COPY=GB/S      of a copy on the device, read and written, measured here

here=$(cd "$(dirname "$0")" && pwd) || exit 1
cd "$here" || exit 1
. ./libraries.sh

backend=${BACKEND:-cuda}
style=${STYLE:-full-v2lite}
base=${DIR:-/dev/shm}/llm-e2e
port=${PORT:-18080}
tokens=${TOKENS:-128}
prompt=${PROMPT:-4096}
pids=

stop() {
    [ -z "$pids" ] || kill $pids 2>/dev/null
    wait 2>/dev/null
    rm -rf "$base"
}

trap stop EXIT
trap 'exit 1' INT TERM

die() {
    echo "$1"
    [ -z "$2" ] || tail -n 20 "$2"
    exit 1
}

mkdir -p "$base/nginx/logs"
began=$(date +%s.%N)
since() { echo "$(date +%s.%N) $began" | awk '{ printf "%.1f", $1 - $2 }'; }

python3 reference/make_checkpoint.py --style "$style" --quick --shards 16 \
    "$base/model" > "$base/make.log" 2>&1 || die "no checkpoint" "$base/make.log"
echo "checkpoint: $(du -sm "$base/model" | cut -f1) MB in $(since) s"

began=$(date +%s.%N)
timeout 400 bin/llm-engine serve --model "$base/model" --backend "$backend" \
    --model-name m --socket "$base/socket" --max-batch 256 \
    --max-context 8192 --prefill-chunk 4096 ${OPTIONS} > "$base/engine.log" 2>&1 &
pids=$!

cat > "$base/nginx/nginx.conf" <<CONF
daemon off;
master_process on;
worker_processes 2;
load_module $here/nginx/ngx_http_llm_module.so;
pid nginx.pid;
error_log logs/error.log notice;
events { worker_connections 2048; }
http {
    access_log off;
    keepalive_requests 1000000;
    client_max_body_size 1m;
    client_body_buffer_size 1m;
    client_body_temp_path body;
    proxy_temp_path proxy;
    fastcgi_temp_path fastcgi;
    uwsgi_temp_path uwsgi;
    scgi_temp_path scgi;
    llm_engine e unix:$base/socket;
    server {
        listen 127.0.0.1:$port;
        location /v1/ { llm_pass e; }
    }
}
CONF

[ "$(id -u)" != 0 ] || sed -i '1i user root;' "$base/nginx/nginx.conf"

LD_LIBRARY_PATH=$here/nginx:$LD_LIBRARY_PATH nginx/nginx \
    -p "$base/nginx" -c nginx.conf -e logs/error.log > "$base/nginx.log" 2>&1 &
server=$!
pids="$pids $server"

# nothing else on the machine may be there to ask with

ask() {
    python3 - "$port" <<'PY'
import http.client, sys
try:
    c = http.client.HTTPConnection('127.0.0.1', int(sys.argv[1]), timeout=2)
    c.request('GET', '/v1/models')
    sys.exit(c.getresponse().status != 200)
except OSError:
    sys.exit(1)
PY
}

for i in $(seq 150); do
    ask && break
    kill -0 ${pids%% *} 2>/dev/null || die "the engine ended" "$base/engine.log"
    kill -0 $server 2>/dev/null || die "nginx ended" "$base/nginx.log"
    sleep 0.3
done

[ $i -lt 150 ] || die "no answer" "$base/nginx/logs/error.log"
echo "loaded and serving after $(since) s"
grep -i "load\|GB/s\|memory\|KV" "$base/engine.log" | tail -n 4

# Figures.  A request's ids are made anew, so that no prompt is known.

PYTHONUNBUFFERED=1 python3 e2e.py "$port" "$tokens" "$prompt" "$base/model" \
    bin/sse_load "${STREAMS:-1 8 64 256}" "${COPY:-0}" \
    || die "no figures" "$base/nginx/logs/error.log"

grep -v '\[notice\]\|\[info\]' "$base/nginx/logs/error.log"
[ -z "$OUT" ] || cp "$base/engine.log" "$OUT/e2e-engine.log"
exit 0
