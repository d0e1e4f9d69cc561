"""`repa-pipe demo`: the whole pipeline on real photographs, offline, on two CPU cores, in minutes.

Everything goes through the same stages as a real run, only small: a small VAE, a small encoder, a small SiT.
"""

from __future__ import annotations

import json
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
from .runtime.progress import say

VAE = "tiny-kl-f8"
ENCODER = "efficientnet-lite0"
MODEL = "SiT-T/2"
STEPS = 500
PROJ_COEFF = 0.5
CHECKED_IMAGES = 16
RUNS = ("repa", "no-alignment")

# What two cores can train: REPA's recipe, a larger learning rate, a faster average, fewer extreme times.
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
# The demo's two runs, for 'repa-pipe ablate'.

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
    """Make everything below `out`; the path of the page. What is there already is not made again."""
    start = time.monotonic()
    steps = steps or STEPS
    images, store = out / "images", out / "store"
    if not images.exists():
        say(f"cutting {make_crops(images)} crops from foolbox's 20 photographs")
    encoding = EncodeConfig(source=str(images), store=str(store), vae=VAE, encoder=(ENCODER,))
    encode.run(encoding)
    notes = [_check_tokens(store)]
    sweep = out / "sweep.toml"
    sweep.write_text(SWEEP.format(steps=steps))
    comparing = AblateConfig(sweep=str(sweep), store=str(store), out=str(out), ray=False)
    result = ablate.run(comparing, "repa-pipe demo", lambda runs: notes + _compare(runs), [encoding.command()])
    if result.failed:
        raise RepaPipeError(f"{result.failed[0].name} failed in {result.failed[0].stage}: {result.failed[0].error}")
    page = Path(str(result.page))
    _farewell(page, store, [str(out / name) for name in RUNS], time.monotonic() - start)
    return page


def _check_tokens(store_path: Path) -> str:
    """Encode a few images again, online, and compare with what the store holds."""
    store = open_store(store_path)
    group = features_group(ENCODER)
    rows = store.valid_indices([group])[:: max(1, len(store) // CHECKED_IMAGES)][:CHECKED_IMAGES]
    source = open_source(store.manifest.source["path"])
    crops = [
        decode_crop(source.read(record), store.manifest.resolution) for record in records_of(store.samples.take(rows))
    ]
    images = torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2)
    online = load_encoder(ENCODER)(images).patch_tokens
    stored = torch.from_numpy(store.read([group], rows)[f"{group}/tokens"]).float()
    cosine = torch.nn.functional.cosine_similarity(online, stored, dim=-1)
    difference = ((online - stored).abs() / online.abs().clamp(min=1e-3)).max()
    return (
        f"Stored tokens against the encoder run online on {len(rows)} images: largest relative difference "
        f"{difference:.1e} (float16 rounds by up to 4.9e-04), smallest cosine {cosine.min():.7f}."
    )


def _compare(runs: Sequence[str]) -> list[str]:
    notes = [
        f"This is a demonstration sized for two CPU cores: {MODEL} with a few minutes of training on crops of 20 "
        "photographs. The pictures are rough, and the numbers show that the pipeline works, not how good REPA is."
    ]
    for run_dir in runs:
        rows = read_metrics(Path(run_dir))
        tenth = max(1, len(rows) // 10)
        first, last = rows[:tenth], rows[-tenth:]
        words = [
            f"{name} loss {np.mean([row[key] for row in first]):.3f} at the start, "
            f"{np.mean([row[key] for row in last]):.3f} at the end"
            for name, key in (("denoising", "denoising_loss"), ("alignment", "alignment_loss"))
            if any(row[key] for row in rows)
        ]
        notes.append(f"{Path(run_dir).name}: {'; '.join(words)} (means over the first and last tenth of the run).")
    return notes


def _farewell(page: Path, store: Path, runs: list[str], seconds: float) -> None:
    samples = [str(path) for run_dir in runs for path in sorted((Path(run_dir) / "samples").glob("*.png"))]
    print(f"\nthe demo took {seconds / 60:.1f} minutes\n")
    print(f"page     {page}\nstore    {store}\nsamples  " + "\n         ".join(samples))
    print(
        "\nThe same on your own images (a folder of class folders), with the published VAE and DINOv2:\n"
        "  repa-pipe encode --source YOUR/IMAGES --store mystore --encoder dinov2-vit-b\n"
        "  repa-pipe train --store mystore --model SiT-B/2 --exp-name first\n"
        "  repa-pipe sample --checkpoint exps/first --num-fid-samples 64"
    )
