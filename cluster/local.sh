#!/bin/sh
# A Ray cluster of this machine:  cluster/local.sh [CPUS]      Ctrl-C ends it.
# The dashboard listens on 127.0.0.1. Ray's other ports listen on the machine's own address: a token guards them.
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
# Jobs run with the Python that the cluster was started with.
PATH="$root/.venv/bin:$PATH"
RAY_AUTH_MODE=token
export PATH RAY_AUTH_MODE
# Makes a token for this user if there is none; Ray's own programs find it.
ray get-auth-token --generate >/dev/null

cat <<TEXT
In another shell:

  cd "$root"
  export RAY_AUTH_MODE=token
  .venv/bin/pmray sweep jobs/specs/reviews.yaml --address auto

or as a job that goes on without that shell:

  .venv/bin/ray job submit --address http://127.0.0.1:8265 --working-dir . -- \\
    python jobs/sweep.py jobs/specs/reviews.yaml storage="$root/runs"

TEXT
exec ray start --head --block --disable-usage-stats \
    --port 6379 --dashboard-host 127.0.0.1 --dashboard-port 8265 --include-dashboard true \
    --num-cpus "${1:-$(getconf _NPROCESSORS_ONLN)}"
