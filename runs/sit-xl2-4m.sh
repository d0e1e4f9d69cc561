#!/usr/bin/env bash
# Continues the run of sit-xl2-400k.sh to 4,000,000 steps, from its last checkpoint.
set -euo pipefail
exec torchrun --nproc-per-node "${GPUS:-8}" -m repa_pipe.cli train --store "${STORE:-imagenet256}" \
    --recipe repa --enc-type dinov2-vit-b \
    --max-train-steps 4000000 --milestone-steps 100000 --keep-checkpoints 1 --exp-name sit-xl2-dinov2-b "$@"
