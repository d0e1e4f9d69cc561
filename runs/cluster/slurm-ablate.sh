#!/usr/bin/env bash
# Executes a sweep as an array of jobs: `sbatch --array=0-7 runs/cluster/slurm-ablate.sh sweep.toml --store /shared/imagenet256`.
# The arguments are those of `repa-pipe ablate`. Every job of the array executes its part of the runs, one after the
# other. Ten minutes before the time limit the current run writes a checkpoint, and the job returns to the queue, where
# it resumes. Afterwards, `repa-pipe ablate` with the same arguments writes the report.
#SBATCH --job-name=repa-ablate
#SBATCH --array=0-3
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --gpus-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --signal=B:USR1@600
#SBATCH --open-mode=append
#SBATCH --output=%x-%A_%a.log
set -uo pipefail

part="$((SLURM_ARRAY_TASK_ID - SLURM_ARRAY_TASK_MIN))/$SLURM_ARRAY_TASK_COUNT"
repa-pipe ablate "$@" --no-ray --part "$part" &
sweep=$!
requeue=

stop() { kill -TERM "$sweep"; }
trap 'requeue=1; stop' USR1 # the time limit is near
trap stop TERM              # canceled, or preempted: then Slurm itself requeues the job

while kill -0 "$sweep" 2> /dev/null; do wait "$sweep"; done # a trap ends `wait` early
wait "$sweep"
status=$?
if [[ $requeue && $status -ne 0 ]]; then scontrol requeue "$SLURM_JOB_ID"; fi
exit "$status"
