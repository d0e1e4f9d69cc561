#!/usr/bin/env bash
# REPA's SiT-B/2, aligned with DINOv2-B after block 4, 400,000 steps.
set -euo pipefail
exec torchrun --nproc-per-node "${GPUS:-8}" -m repa_pipe.cli train --store "${STORE:-imagenet256}" \
    --recipe repa --model SiT-B/2 --encoder-depth 4 --enc-type dinov2-vit-b \
    --max-train-steps 400000 --milestone-steps 100000 --keep-checkpoints 1 --exp-name sit-b2-dinov2-b "$@"
