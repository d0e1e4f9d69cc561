"""Measure what a training step of each method costs relative to REPA's, and how many bytes it reads per image.

    python benchmarks/methods.py                                  # half an hour on 2 cores
    python benchmarks/methods.py --model SiT-S/2 --steps 3        # minutes

The methods are the runs of runs/sweeps/methods.toml, with their settings except for the model and the batch. Their
store holds random numbers in the shapes of SD-VAE and of the encoder: the values do not affect speed. The encoder's
weights, of which aligned attention runs four blocks, are random too. One batch in memory serves all steps. In each
round, a step of REPA and one of the method take turns; the ratio is the median over rounds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from arguments import at_least
from synthetic import LATENTS_GROUP, features_template, fill_group, new_store, random_weights

from repa_pipe.config import TrainConfig
from repa_pipe.models.encoders.last_blocks import load_last_blocks
from repa_pipe.pipeline.ablation.sweep import read_sweep
from repa_pipe.pipeline.training.online import make_trainer
from repa_pipe.pipeline.training.setup import resolve
from repa_pipe.stores import open_store
from repa_pipe.stores.layout import ArraySpec

SWEEP = Path(__file__).parents[1] / "runs" / "sweeps" / "methods.toml"
REPA = "recipe=repa"
WARM_UP = 2


def make_store(path: Path, encoder: str, count: int) -> str:
    """Create a store for all methods; return the file with the encoder's weights."""
    raw = f"{encoder}@block=8+norm=none"
    weights = random_weights(encoder, path.parent)
    manifest, rng = new_store(path, count), np.random.default_rng(0)
    fill_group(path, manifest, LATENTS_GROUP, rng)
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


def measure(args: argparse.Namespace, folder: Path) -> list[dict[str, object]]:
    """Return a row per method."""
    store = folder / "store"
    weights = make_store(store, args.encoder, args.batch_size)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    changes = {"model": args.model, "batch_size": args.batch_size, "mixed_precision": args.precision}
    changes |= {"device": device.type, "report_to": "none"}
    configs = {
        run.exp_name: replace(run, **changes, encoder_weights=(weights,) if run.attn_coeff else ())
        for run in read_sweep(SWEEP, str(store), folder).runs
    }
    repa, repa_bytes = step_of(configs[REPA], device)
    rows: list[dict[str, object]] = []
    for name, config in configs.items():
        step, num_bytes = (repa, repa_bytes) if name == REPA else step_of(config, device)
        bases, seconds = zip(*((repa(), step()) for _ in range(args.steps)), strict=True)
        ratios = np.divide(seconds, bases)
        row: dict[str, object] = {"method": name, "model": args.model, "encoder": args.encoder, "device": device.type}
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
    parser.add_argument("--encoder", default="dinov2-vit-b", help="a DINOv2 without registers")
    parser.add_argument("--batch-size", type=at_least(2), default=8, help="images per step")
    parser.add_argument("--precision", default="fp32", help="mixed precision of the training")
    parser.add_argument("--steps", type=at_least(1), default=12, help="rounds: steps of each method")
    parser.add_argument("--out", type=Path, default=None, help="JSON file for the results")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(args, Path(folder))
    if args.out:
        args.out.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
