"""`repa-pipe demo`: the complete pipeline on real photographs, offline, in minutes on two CPU cores.

Everything goes through the same stages as a real run, with a small VAE, a small encoder and a small SiT.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..config import AblateConfig, EncodeConfig
from ..errors import RepaPipeError
from ..models.encoders import load_encoder
from ..sources import decode_crop, open_source, records_of
from ..sources.demo_images import make_crops
from ..stores import open_store
from ..stores.layout import features_group
from . import ablate, encode
from .artifacts.metrics_log import read_metrics
from .artifacts.run_folder import RunFolder

logger = logging.getLogger(__name__)

VAE = "tiny-kl-f8"
ENCODER = "efficientnet-lite0"
MODEL = "SiT-T/2"
STEPS = 500
PROJ_COEFF = 0.5
CHECKED_IMAGES = 16
RUNS = ("repa", "no-alignment")

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
SWEEP = f"""\
# The two runs of the demo, for 'repa-pipe ablate'.

[train]
{"".join(f"{name} = {json.dumps(value)}{chr(10)}" for name, value in TRAINING.items())}max_train_steps = {{steps}}

[[runs]]
exp_name = "{RUNS[0]}"
proj_coeff = {PROJ_COEFF}

[[runs]]
exp_name = "{RUNS[1]}"
proj_coeff = 0.0

[sample]
num_fid_samples = 40
per_proc_batch_size = 20
num_steps = 20
cfg_scale = 2.0
labels = "balanced"
precision = "bf16"

[evaluate]
detector = ["{ENCODER}"]
"""


def run(out: Path, steps: int | None = None) -> Path:
    """Write everything below `out` and return the path of the report. Finished work is not repeated."""
    start = time.monotonic()
    steps = steps or STEPS
    images, store = out / "images", out / "store"
    if not images.exists():
        count = make_crops(images)
        logger.info("cut %d crops from foolbox's 20 photographs", count)
    encoding = EncodeConfig(source=str(images), store=str(store), vae=VAE, encoder=(ENCODER,))
    encode.run(encoding)
    notes = [_check_tokens(store)]
    sweep = out / "sweep.toml"
    sweep.write_text(SWEEP.format(steps=steps))
    config = AblateConfig(sweep=str(sweep), store=str(store), out=str(out), ray=False)
    result = ablate.run(config, "repa-pipe demo", lambda runs: notes + _compare(runs), [encoding.command()])
    if result.failed:
        raise RepaPipeError(f"{result.failed[0].name} failed in {result.failed[0].stage}: {result.failed[0].error}")
    page = Path(str(result.page))
    _print_summary(page, store, [RunFolder(out / name) for name in RUNS], time.monotonic() - start)
    return page


def _check_tokens(store_path: Path) -> str:
    """Encode a few images online and compare with the stored tokens."""
    with open_store(store_path) as store:
        group = features_group(ENCODER)
        rows = store.valid_indices([group])[:: max(1, len(store) // CHECKED_IMAGES)][:CHECKED_IMAGES]
        source = open_source(store.manifest.source["path"])
        records = records_of(store.samples.take(rows))
        crops = [decode_crop(source.read(record), store.manifest.resolution) for record in records]
        stored = torch.from_numpy(store.read([group], rows)[f"{group}/tokens"]).float()
    online = load_encoder(ENCODER)(torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2)).patch_tokens
    cosine = torch.nn.functional.cosine_similarity(online, stored, dim=-1)
    difference = ((online - stored).abs() / online.abs().clamp(min=1e-3)).max()
    return (
        f"Stored tokens compared with the encoder run online on {len(rows)} images: largest relative difference "
        f"{difference:.1e} (float16 rounds by up to 4.9e-04), smallest cosine {cosine.min():.7f}."
    )


def _compare(runs: Sequence[str]) -> list[str]:
    notes = [
        f"This is a demonstration sized for two CPU cores: a few minutes of training of {MODEL} on crops of 20 "
        "photographs. The images are rough; the numbers show that the pipeline works, not how good REPA is."
    ]
    for run_dir in runs:
        rows = read_metrics(RunFolder(Path(run_dir)))
        tenth = max(1, len(rows) // 10)
        first, last = rows[:tenth], rows[-tenth:]
        losses = [
            f"{name} loss {np.mean([row[key] for row in first]):.3f} at the start, "
            f"{np.mean([row[key] for row in last]):.3f} at the end"
            for name, key in (("denoising", "denoising_loss"), ("alignment", "alignment_loss"))
            if any(row[key] for row in rows)
        ]
        notes.append(f"{Path(run_dir).name}: {'; '.join(losses)} (means over the first and last tenth of the run).")
    return notes


def _print_summary(page: Path, store: Path, runs: Sequence[RunFolder], seconds: float) -> None:
    grids = [str(path) for run in runs for path in sorted(run.samples.glob("*.png"))]
    print(f"\nthe demo took {seconds / 60:.1f} minutes\n")
    print(f"report   {page}\nstore    {store}\nsamples  " + "\n         ".join(grids))
    print(
        "\nTo run it on your own images (a folder of class folders), with the published VAE and DINOv2:\n"
        "  repa-pipe encode --source YOUR/IMAGES --store mystore --encoder dinov2-vit-b\n"
        "  repa-pipe train --store mystore --model SiT-B/2 --exp-name first\n"
        "  repa-pipe sample --checkpoint exps/first --num-fid-samples 64"
    )
