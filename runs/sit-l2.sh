#!/usr/bin/env bash
# REPA's comparison of encoders with SiT-L/2, 400,000 steps. ENCODER selects the encoder, for example mae-vit-l.
set -euo pipefail
exec torchrun --nproc-per-node "${GPUS:-8}" -m repa_pipe.cli train --store "${STORE:-imagenet256}" \
    --recipe repa --model SiT-L/2 --enc-type "${ENCODER:-dinov2-vit-b}" \
    --max-train-steps 400000 --milestone-steps 100000 --keep-checkpoints 1 --exp-name "sit-l2-${ENCODER:-dinov2-vit-b}" "$@"
