"""`repa-pipe demo`: encode, train and sample on real photographs, offline, in minutes on two CPU cores.

Everything goes through the same stages as a real run, with a small VAE, a small encoder and a small SiT. The report
starts with what the store saves: the same training step, measured from the store and with the encoder online.
"""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

from ..config import EncodeConfig, SampleConfig, TrainConfig
from ..sources.demo_images import make_crops
from ..stores import open_store
from . import encode, report, sample, train
from .artifacts.run_folder import RunFolder
from .plan import IMAGENET
from .reporting.demo_sections import alignment_section, codec_section
from .reporting.steps import step_section
from .training.online import WARM_UP, compare_steps

logger = logging.getLogger(__name__)

VAE = "tiny-kl-f8"
ENCODER = "efficientnet-lite0"
MODEL = "SiT-T/2"
STEPS = 300
PROJ_COEFF = 0.5
COMPARED_STEPS = WARM_UP + 12
RUN = "repa"
PAGE = "report.html"

# Settings that two cores can train: REPA's, with a larger learning rate, a faster EMA and fewer extreme times.
TRAINING: dict[str, Any] = {
    "model": MODEL,
    "encoder_depth": 2,
    "projector_embed_dims": 256,
    "weighting": "lognormal",
    "batch_size": 8,
    "learning_rate": 1e-3,
    "ema_decay": 0.99,
    "checkpointing_steps": 100,
    "keep_checkpoints": 1,
    "log_steps": 10,
}
SAMPLING: dict[str, Any] = {
    "num_fid_samples": 40,
    "per_proc_batch_size": 20,
    "num_steps": 20,
    "cfg_scale": 2.0,
    "labels": "balanced",
}
NOTE = (
    f"This is a demonstration sized for two CPU cores: minutes of training of {MODEL} on crops of 20 photographs. The "
    "generated images are rough, and a model this small does not show what alignment gains on ImageNet."
)


def run(out: Path, steps: int | None = None) -> Path:
    """Write everything below `out` and return the path of the report. Finished work is not repeated."""
    start = time.monotonic()
    images, store = out / "images", out / "store"
    if not images.exists():
        count = make_crops(images)
        logger.info("cut %d crops from foolbox's 20 photographs", count)
    encoding = EncodeConfig(source=str(images), store=str(store), vae=VAE, encoder=(ENCODER,))
    training = TrainConfig(
        store=str(store),
        output_dir=str(out),
        exp_name=RUN,
        max_train_steps=steps or STEPS,
        proj_coeff=PROJ_COEFF,
        **TRAINING,
    )
    run_folder = RunFolder(out / RUN)
    sampling = SampleConfig(checkpoint=str(run_folder.path), **SAMPLING)

    encode.run(encoding)
    logger.info("comparing training steps from the store with the encoder online")
    comparison = compare_steps(training, COMPARED_STEPS)
    if train.run(training).interrupted:
        raise KeyboardInterrupt
    grid = sample.run(sampling).grid
    with open_store(store) as opened:
        sections = [
            step_section(comparison, MODEL, ENCODER),
            codec_section(opened, VAE, ENCODER, IMAGENET),
            alignment_section(run_folder),
        ]
    page = report.run(
        [str(run_folder.path)],
        str(out / PAGE),
        title="repa-pipe demo",
        notes=[NOTE],
        commands=[config.command() for config in (encoding, training, sampling)],
        sections=sections,
    )
    _print_summary(page, store, grid, time.monotonic() - start)
    return page


def _print_summary(page: Path, store: Path, grid: str, seconds: float) -> None:
    print(f"\nthe demo took {seconds / 60:.1f} minutes\n")
    print(f"report   {page}\nstore    {store}\nsamples  {grid}")
    print(
        "\nTo run it on your own images (a folder of class folders), with the published VAE and DINOv2:\n"
        "  repa-pipe encode --source YOUR/IMAGES --store mystore --encoder dinov2-vit-b\n"
        "  repa-pipe train --store mystore --model SiT-B/2 --exp-name first\n"
        "  repa-pipe sample --checkpoint exps/first --num-fid-samples 64"
    )
