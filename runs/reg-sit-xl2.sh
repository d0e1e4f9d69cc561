#!/usr/bin/env bash
# REG with SiT-XL/2, 400,000 steps: the class token of DINOv2-B is denoised together with the latents.
set -euo pipefail
exec torchrun --nproc-per-node "${GPUS:-8}" -m repa_pipe.cli train --store "${STORE:-imagenet256}" \
    --recipe reg --enc-type dinov2-vit-b \
    --max-train-steps 400000 --milestone-steps 100000 --keep-checkpoints 1 --exp-name reg-xl2-dinov2-b "$@"
