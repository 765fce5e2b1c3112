#!/bin/sh
# A Ray cluster of this machine, for this machine only:  cluster/local.sh [CPUS]      Ctrl-C ends it.
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
# Jobs run with the Python that the cluster was started with.
PATH="$root/.venv/bin:$PATH"
export PATH

cat <<TEXT
In another shell, from $root:

  .venv/bin/pmray sweep SPEC --address 127.0.0.1:6379

or as a job that goes on without that shell:

  .venv/bin/ray job submit --address http://127.0.0.1:8265 --working-dir . -- \\
    python jobs/sweep.py jobs/specs/reviews.yaml storage="$root/runs"

TEXT
exec ray start --head --block --disable-usage-stats \
    --node-ip-address 127.0.0.1 --port 6379 \
    --include-dashboard true --dashboard-host 127.0.0.1 --dashboard-port 8265 \
    --num-cpus "${1:-$(getconf _NPROCESSORS_ONLN)}"
