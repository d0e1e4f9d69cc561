#!/usr/bin/env bash
# iREPA with SiT-XL/2, 400,000 steps: convolutional projector and tokens normalized over the image (docs/training.md).
# ENCODER selects the encoder, GAMMA sets --spatial-norm (default: that of the recipe).
set -euo pipefail
exec torchrun --nproc-per-node "${GPUS:-8}" -m repa_pipe.cli train --store "${STORE:-imagenet256}" \
    --recipe irepa --enc-type "${ENCODER:-dinov2-vit-b}" ${GAMMA:+--spatial-norm "$GAMMA"} \
    --max-train-steps 400000 --milestone-steps 100000 --keep-checkpoints 1 --exp-name "irepa-xl2-${ENCODER:-dinov2-vit-b}" "$@"
