#!/usr/bin/env bash
# Trains one run on the GPUs of several nodes, a process for each (docs/devices.md):
#     sbatch --nodes 2 --ntasks-per-node 4 --gpus-per-node 4 slurm/several-nodes.sh RUN [OPTION ..]
# OPTIONs are those of `ofq train`. Submit it again to go on from the last checkpoint.
#SBATCH --job-name=ofq
#SBATCH --signal=TERM@120
set -euo pipefail

# the processes meet at the first node, or on its loopback if it is the only one; jobs of one node get
# ports of their own
[ "${SLURM_JOB_NUM_NODES:-0}" = 1 ] && MASTER_ADDR="${MASTER_ADDR:-127.0.0.1}"
export MASTER_ADDR="${MASTER_ADDR:-$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)}"
export MASTER_PORT="${MASTER_PORT:-$((20000 + SLURM_JOB_ID % 10000))}"

# one process that ends ends all: the others would wait for it
srun --kill-on-bad-exit=1 bash -c 'RANK="$SLURM_PROCID" LOCAL_RANK="$SLURM_LOCALID" \
    WORLD_SIZE="$SLURM_NTASKS" exec ofq train --devices "$SLURM_NTASKS" "$@"' ofq "$@"
