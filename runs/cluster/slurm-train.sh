#!/usr/bin/env bash
# Trains on all GPUs of one node: `sbatch runs/cluster/slurm-train.sh --store /shared/imagenet256 --exp-name first`.
# The arguments are those of `repa-pipe train`. Ten minutes before the time limit the run writes a checkpoint, and the
# job returns to the queue, where it resumes. Adapt the lines below to your cluster, and activate your environment.
#SBATCH --job-name=repa-train
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --signal=B:USR1@600
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
set -uo pipefail

torchrun --standalone --nproc-per-node "$SLURM_GPUS_ON_NODE" -m repa_pipe.cli train "$@" &
launcher=$!
requeue=

# The ranks get the signal themselves, since torchrun kills ranks that take longer than 30 seconds for their checkpoint.
stop() { pkill -TERM -P "$launcher"; }
trap 'requeue=1; stop' USR1 # the time limit is near
trap stop TERM              # canceled, or preempted: then Slurm itself requeues the job

while kill -0 "$launcher" 2> /dev/null; do wait "$launcher"; done # a trap ends `wait` early
wait "$launcher"
status=$?
if [[ $requeue && $status -ne 0 ]]; then scontrol requeue "$SLURM_JOB_ID"; fi
exit "$status"
