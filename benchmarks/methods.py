"""Measure what a training step of each method costs relative to REPA's, and how many bytes it reads per image.

    python benchmarks/methods.py                                  # half an hour on 2 cores
    python benchmarks/methods.py --model SiT-S/2 --steps 3        # minutes

The methods are the runs of runs/sweeps/methods.toml, with their settings except for the model and the batch, and the
recipes of OTHERS, whose latents or models differ: they are compared with REPA on the same latents. The store holds
random numbers in the shapes of the latents and of the encoder: the values do not affect speed. The encoder's weights,
of which aligned attention runs four blocks, are random too. One batch in memory serves all steps. In each round, a step
of REPA and one of the method take turns; the ratio is the median over rounds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from arguments import at_least
from synthetic import LATENTS_GROUP, features_template, fill_group, new_store, random_weights

from repa_pipe.config import TrainConfig, read_recipe
from repa_pipe.models.encoders.last_blocks import load_last_blocks
from repa_pipe.models.vae_files import PIXELS_BIAS, PIXELS_SCALE
from repa_pipe.pipeline.ablation.sweep import read_sweep
from repa_pipe.pipeline.training.online import make_trainer
from repa_pipe.pipeline.training.setup import resolve
from repa_pipe.stores import open_store
from repa_pipe.stores.layout import FIXED, ArraySpec, GroupSpec

SWEEP = Path(__file__).parents[1] / "runs" / "sweeps" / "methods.toml"
REPA = "recipe=repa"
WARM_UP = 2
F16D32 = GroupSpec(
    path="latents/f16d32",
    arrays=(ArraySpec(name=FIXED, sample_shape=(32, 16, 16), dtype="float32"),),
    attributes={"vae": "f16d32", "array": FIXED, "fingerprint": {}, "scale": [1.0] * 32, "bias": [0.0] * 32},
)
PIXELS = GroupSpec(
    path="latents/pixels",
    arrays=(ArraySpec(name=FIXED, sample_shape=(3, 256, 256), dtype="uint8"),),
    attributes={
        "vae": "pixels",
        "array": FIXED,
        "fingerprint": {},
        "scale": list(PIXELS_SCALE),
        "bias": list(PIXELS_BIAS),
    },
)
OTHERS = {  # recipe: its latents, and what it is compared with, besides REPA's settings
    "sr-dit": {"vae": "f16d32", "model": "SiT-{size}/1", "legacy": False},
    "irepa-jit": {"vae": "pixels", "model": "JiT-{size}/16", "legacy": False},
}


def make_store(path: Path, encoder: str, count: int) -> str:
    """Create a store for all methods; return the file with the encoder's weights."""
    raw = f"{encoder}@block=8+norm=none"
    weights = random_weights(encoder, path.parent)
    manifest, rng = new_store(path, count), np.random.default_rng(0)
    for spec in (LATENTS_GROUP, F16D32, PIXELS):
        fill_group(path, manifest, spec, rng)
    fingerprint = {"weights_sha256": load_last_blocks(raw, weights).weights_sha256}
    for name in (encoder, raw):
        spec = features_template(name)
        cls_token = ArraySpec(name="cls_token", sample_shape=(spec.attributes["width"],), dtype="float16")
        attributes = spec.attributes | {"fingerprint": fingerprint}
        fill_group(path, manifest, replace(spec, arrays=(*spec.arrays, cls_token), attributes=attributes), rng)
    return f"{raw}={weights}"


def step_of(config: TrainConfig, device: torch.device) -> tuple[Callable[[], float], int]:
    """Return a function that takes a step and returns its seconds, and the bytes of an image in the batch."""
    store = open_store(config.store)
    trainer = make_trainer(resolve(config, store), store, device)
    with closing(trainer.dataset) as dataset:
        batch = dataset.read(dataset.indices_of_step(0))
    on_device = batch.to(device)

    def step() -> float:
        start = time.perf_counter()
        trainer.train_step(on_device)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - start

    for _ in range(WARM_UP):
        step()
    return step, (sum(tensor.nbytes for tensor in batch.tensors()) - batch.labels.nbytes) // config.batch_size


def pairs(
    model: str, size: str, changes: dict[str, Any], weights: str
) -> Iterator[tuple[str, TrainConfig, TrainConfig]]:
    """Yield the name and the settings of each method, and those of REPA on the same latents."""
    runs = {str(run.exp_name): replace(run, model=model, vae="sd") for run in read_sweep(SWEEP, "", Path()).runs}
    repa = replace(runs[REPA], **changes)
    for name, run in runs.items():
        yield name, replace(run, **changes, encoder_weights=(weights,) if run.attn_coeff else ()), repa
    for recipe, compared in OTHERS.items():
        settings = read_recipe(recipe).settings
        model = settings["model"].replace("-B/", f"-{size}/")
        own = settings | {"vae": compared["vae"], "model": model, "encoder_depth": None, "flip": False} | changes
        base = compared | {"model": compared["model"].format(size=size), "encoder_depth": None}
        yield f"recipe={recipe}", TrainConfig(**own), replace(repa, **base)


def measure(args: argparse.Namespace, folder: Path) -> list[dict[str, object]]:
    """Return a row per method."""
    store = folder / "store"
    weights = make_store(store, args.encoder, args.batch_size)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    changes = {"batch_size": args.batch_size, "mixed_precision": args.precision, "device": device.type}
    changes |= {"report_to": "none", "store": str(store)}
    rows: list[dict[str, object]] = []
    base: TrainConfig | None = None
    for name, config, compared in pairs(args.model, args.other_size, changes, weights):
        if args.methods and name not in args.methods:
            continue
        if compared != base:
            base, (repa, repa_bytes) = compared, step_of(compared, device)
        step, num_bytes = (repa, repa_bytes) if config == base else step_of(config, device)
        bases, seconds = zip(*((repa(), step()) for _ in range(args.steps)), strict=True)
        ratios = np.divide(seconds, bases)
        row: dict[str, object] = {"method": name, "model": config.model, "repa_model": compared.model}
        row |= {"encoder": args.encoder, "device": device.type}
        row |= {"batch_size": args.batch_size, "precision": args.precision, "steps": args.steps}
        low, row["step_over_repa"], high = np.quantile(ratios, (0.25, 0.5, 0.75)).round(3).tolist()
        row["quartiles"] = [low, high]
        row["seconds"] = round(statistics.median(seconds), 4)
        row["bytes_per_image"] = num_bytes
        print(json.dumps(row), flush=True)
        rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="SiT-B/2", help="model to train, of at least 8 blocks")
    parser.add_argument("--other-size", default="B", help="T or B, the size of the models of sr-dit and irepa-jit")
    parser.add_argument("--encoder", default="dinov2-vit-b", help="a DINOv2 without registers")
    parser.add_argument("--batch-size", type=at_least(2), default=8, help="images per step")
    parser.add_argument("--precision", default="fp32", help="mixed precision of the training")
    parser.add_argument("--steps", type=at_least(1), default=12, help="rounds: steps of each method")
    parser.add_argument("--methods", nargs="*", help="only these, such as recipe=haste; default: all")
    parser.add_argument("--out", type=Path, default=None, help="JSON file for the results")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(args, Path(folder))
    if args.out:
        args.out.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
