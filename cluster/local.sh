#!/bin/sh
# A Ray cluster of this machine:  cluster/local.sh [WORKERS [CPUS_OF_EACH]]      Ctrl-C ends it.
# A head that steers and WORKERS further nodes, each a raylet of its own; with 0 workers the head works too.
# PORT (6379) and DASHBOARD_PORT (8265) are those of the head. The dashboard listens on 127.0.0.1. Ray's other ports
# listen on the machine's own address: a token guards them.
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
workers=${1:-0}
cores=$(getconf _NPROCESSORS_ONLN)
case "$workers${2:-1}" in *[!0-9]*) echo "usage: $0 [WORKERS [CPUS_OF_EACH]]" >&2; exit 2 ;; esac
if [ "$workers" -eq 0 ]; then head_cpus=${2:-$cores}; else head_cpus=0; fi
each=${2:-$(( cores > workers && workers > 0 ? cores / workers : 1 ))}
port=${PORT:-6379} dashboard=${DASHBOARD_PORT:-8265}
# Jobs run with the Python that the cluster was started with.
PATH="$root/.venv/bin:$PATH"
PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
RAY_AUTH_MODE=token
export PATH PYTHONPATH RAY_AUTH_MODE
# Makes a token for this user if there is none; Ray's own programs find it.
ray get-auth-token --generate >/dev/null

# A folder for each node, as on a machine of its own: where nodes share one, each that unpacks a job's working directory
# deletes the one that the others are in. A short path, for sockets.
scratch=$(mktemp -d /tmp/ray-XXXXXX)
pids=""
stop() {
    trap - INT TERM EXIT
    # Workers first, so that none reports the loss of its head.
    for pid in $pids; do kill "$pid" 2>/dev/null || :; done
    wait
    rm -rf "$scratch"
}
trap 'stop; exit 130' INT TERM
trap stop EXIT

# Agents listen on any free port: at a fixed one they would meet those of another Ray of this machine, and take no jobs.
ray start --head --block --disable-usage-stats --port "$port" --num-cpus "$head_cpus" \
    --dashboard-host 127.0.0.1 --dashboard-port "$dashboard" --include-dashboard true \
    --dashboard-agent-listen-port 0 >/dev/null &
head=$!
pids=$head
n=0
until ray health-check --address "127.0.0.1:$port" >/dev/null 2>&1; do
    n=$((n + 1))
    kill -0 "$head" 2>/dev/null || { echo "the head did not start; is port $port taken? (PORT=6380 $0)" >&2; exit 1; }
    [ "$n" -lt 60 ] || { echo "the head does not answer" >&2; exit 1; }
    sleep 1
done
n=0
while [ "$n" -lt "$workers" ]; do
    ray start --block --disable-usage-stats --address "127.0.0.1:$port" --num-cpus "$each" \
        --dashboard-agent-listen-port 0 --temp-dir "$scratch/$((n + 1))" >"$scratch/$((n + 1)).log" &
    pids="$! $pids"
    n=$((n + 1))
done
# Whoever looks at the cluster next should see all of it.
waited=0
while [ "$n" -gt 0 ]; do
    if grep -q "Ray runtime started" "$scratch/$n.log"; then
        n=$((n - 1))
        continue
    fi
    waited=$((waited + 1))
    [ "$waited" -lt 120 ] || { echo "a worker does not start:" >&2; cat "$scratch/$n.log" >&2; exit 1; }
    sleep 1
done

cat <<TEXT
A cluster of $workers workers with $each CPUs each. In another shell:

  cd "$root"
  export RAY_AUTH_MODE=token
  .venv/bin/pmray doctor --address 127.0.0.1:$port
  .venv/bin/pmray submit sweep jobs/specs/reviews.yaml --address http://127.0.0.1:$dashboard --follow

Ctrl-C ends the cluster.
TEXT
wait "$head"
