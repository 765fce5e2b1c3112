#!/bin/bash
# A sweep in one Slurm allocation:  sbatch --nodes 5 cluster/slurm.sh SPEC [KEY=VALUE ...]      scancel ends it
# The first node steers, the others hold trials. Submit it again to continue after the time limit: nothing that was
# finished is repeated. `storage` must be on the file system that the nodes share. Ray's token lies in your home folder.
#SBATCH --job-name=pmray
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --time=04:00:00
#SBATCH --signal=B:TERM@120
set -euo pipefail
spec=${1:?usage: sbatch cluster/slurm.sh SPEC [KEY=VALUE ...]}
shift
overrides=()
for one in "$@"; do overrides+=(--set "$one"); done

export PATH="$PWD/.venv/bin:$PATH" RAY_AUTH_MODE=token
ray get-auth-token --generate >/dev/null
# Nodes of a shared machine: Ray's files of other jobs may lie in /tmp.
export RAY_TMPDIR="${TMPDIR:-/tmp}/pmray-$SLURM_JOB_ID"

mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
head=${nodes[0]}
port=$((20000 + SLURM_JOB_ID % 20000))
head_cpus=0
[ "${#nodes[@]}" -gt 1 ] || head_cpus=$SLURM_CPUS_PER_TASK
address="$(srun --nodes=1 --ntasks=1 -w "$head" hostname --ip-address | awk '{print $1}'):$port"

srun --nodes=1 --ntasks=1 --overlap -w "$head" bash -c 'mkdir -p "$RAY_TMPDIR"; exec ray start --head --block \
    --disable-usage-stats --port '"$port"' --num-cpus '"$head_cpus"' --include-dashboard false' &
for _ in $(seq 60); do
    srun --nodes=1 --ntasks=1 --overlap -w "$head" ray health-check --address "$address" 2>/dev/null && break
    sleep 2
done
for node in "${nodes[@]:1}"; do
    srun --nodes=1 --ntasks=1 --overlap -w "$node" bash -c 'mkdir -p "$RAY_TMPDIR"; exec ray start --block \
        --disable-usage-stats --address '"$address"' --num-cpus '"$SLURM_CPUS_PER_TASK"' \
        --num-gpus '"${SLURM_GPUS_ON_NODE:-0}" &
done

# The driver gets Slurm's warning, and leaves in good order.
srun --nodes=1 --ntasks=1 --overlap -w "$head" pmray sweep "$spec" --address "$address" "${overrides[@]}" &
driver=$!
trap 'kill -TERM $driver' TERM
wait $driver || true
wait $driver
