#!/usr/bin/env bash
# iREPA: a convolution as projector, tokens normalized over the image (docs/training.md), 400,000 steps.
set -euo pipefail
exec torchrun --nproc-per-node "${GPUS:-8}" -m repa_pipe.cli train --store "${STORE:-imagenet256}" \
    --model SiT-XL/2 --enc-type "${ENCODER:-dinov2-vit-b}" --encoder-depth 8 --proj-coeff 0.5 \
    --projector conv --spatial-norm "${GAMMA:-0.6}" \
    --max-train-steps 400000 --milestone-steps 100000 --keep-checkpoints 1 --exp-name "irepa-xl2-${ENCODER:-dinov2-vit-b}" "$@"
