"""Compare training from a store with running the encoder in every step: losses, and seconds per step.

    python benchmarks/cached_vs_online.py [--steps 50] [--images 32] [--out FILE.json]
    python benchmarks/cached_vs_online.py --token-latents dinov2reg-vit-b@norm=plain --model DiT-DH-XL --random-weights

All runs use real images (the demo's crops), a small real encoder, SiT-T/2 in float32 on the CPU, and the same seed,
order and noise. The online run encodes the images of each batch in float32; the others read tokens stored as float16,
int8 and int4. The result is the maximum and the mean absolute difference of each loss from the online run, over all
steps. The float16 run and the online run take their steps in turn: `online_over_stored` is the median, over steps, of
the time of the online step (read, decode, encode, train) relative to the same step from the store (read, train).

With --token-latents, the tokens of that encoder are the latents, as in RAE, and both runs train --model on them without
alignment: on a GPU if there is one, in the precision that `train` chooses. --random-weights is for encoders whose
weights are not on this machine: times do not depend on them.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from arguments import at_least
from synthetic import random_weights

from repa_pipe.config import EncodeConfig, TrainConfig
from repa_pipe.pipeline import encode
from repa_pipe.pipeline.demo import ENCODER, MODEL, VAE
from repa_pipe.pipeline.reporting.steps import median_times
from repa_pipe.pipeline.store_tools.statistics import StatsOptions
from repa_pipe.pipeline.store_tools.statistics import run as measure_statistics
from repa_pipe.pipeline.training.online import WARM_UP, compare_steps, make_trainer, train_step
from repa_pipe.pipeline.training.setup import resolve
from repa_pipe.sources.demo_images import make_crops
from repa_pipe.stores import open_store

LOSSES = ("denoising_loss", "alignment_loss")
CODECS = ("float16", "int8", "int4")


def select_crops(folder: Path, count: int) -> Path:
    """Return a folder with `count` of the demo's crops, spread over all classes."""
    make_crops(folder / "all")
    for path in sorted((folder / "all").rglob("*.jpg"))[:: max(1, 320 // count)][:count]:
        target = folder / "images" / path.parent.name
        target.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    return folder / "images"


def config_of(store: Path, batch_size: int) -> TrainConfig:
    return TrainConfig(
        store=str(store),
        model=MODEL,
        projector_embed_dims=256,
        batch_size=batch_size,
        mixed_precision="fp32",
        device="cpu",
    )


def train_losses(config: TrainConfig, steps: int) -> np.ndarray:
    """Train from the store; return the losses of every step, `[steps, losses]`."""
    with open_store(config.store) as store:
        trainer = make_trainer(resolve(config, store), store, torch.device("cpu"))
        indices = map(trainer.dataset.indices_of_step, range(steps))
        return np.stack([train_step(trainer, trainer.dataset.read(rows)) for rows in indices])


def compare(folder: Path, count: int, steps: int, batch_size: int) -> list[dict[str, object]]:
    """Return one row per codec: the differences of its losses from those of the online run."""
    images = select_crops(folder, count)
    for codec in CODECS:
        store = str(folder / codec)
        encode.run(
            EncodeConfig(source=str(images), store=store, vae=VAE, encoder=(ENCODER,), codec=codec, device="cpu")
        )
    both = compare_steps(config_of(folder / "float16", batch_size), steps)
    rows: list[dict[str, object]] = []
    for codec in CODECS:
        is_timed = codec == "float16"
        losses = both.stored.losses if is_timed else train_losses(config_of(folder / codec, batch_size), steps)
        difference = np.abs(losses - both.online.losses)
        row: dict[str, object] = {"codec": codec, "steps": steps}
        for name in LOSSES:
            column = both.losses.index(name)
            row |= {
                f"{name}_max": float(difference[:, column].max()),
                f"{name}_mean": float(difference[:, column].mean()),
                f"{name}_online_last": float(both.online.losses[-1, column]),
            }
        rows.append(row)
        print(f"{codec}: {steps} steps", file=sys.stderr)
    rows[0]["online_over_stored"] = round(statistics.median(both.ratios), 3)
    return rows


def compare_latents(folder: Path, args: argparse.Namespace) -> list[dict[str, object]]:
    """Return the time of the parts of a step, and losses, with an encoder's tokens as latents."""
    encoder, store, images = args.token_latents, str(folder / "store"), select_crops(folder, args.images)
    weights = {encoder: random_weights(encoder, folder)} if args.random_weights else {}
    given = tuple(f"{name}={path}" for name, path in weights.items())
    encode.run(EncodeConfig(source=str(images), store=store, vae=VAE, encoder=(encoder,), encoder_weights=given))
    measure_statistics(store, StatsOptions(encoder=encoder, per="position", write=True))
    config = TrainConfig(
        store=store, model=args.model, token_latents=encoder, proj_coeff=0.0, batch_size=args.batch_size, compile=False
    )
    both = compare_steps(config, args.steps, weights)
    row: dict[str, object] = {"encoder": encoder, "model": args.model, "device": both.device, "steps": args.steps}
    row |= {"batch_size": args.batch_size, "random_weights": args.random_weights}
    for name, run in (("stored", both.stored), ("online", both.online)):
        times = median_times(run.times)
        row |= {f"{name}_{part}_s": round(getattr(times, part), 4) for part in ("read", "decode", "encode", "train")}
    row["online_over_stored"] = round(statistics.median(both.ratios), 3)
    row["loss_difference_max"] = both.loss_difference
    row["token_cosine_min"] = both.token_cosine
    return [row]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=at_least(WARM_UP + 1), default=50, help="training steps per run")
    parser.add_argument("--images", type=at_least(1), default=32, help="number of crops in the store")
    parser.add_argument("--batch-size", type=at_least(1), default=4, help="images per training step")
    parser.add_argument("--out", type=Path, default=None, help="JSON file for the results")
    parser.add_argument("--token-latents", default=None, help="encoder whose tokens are the latents, as in RAE")
    parser.add_argument("--model", default="DiT-DH-T", help="model that is trained with --token-latents")
    parser.add_argument("--random-weights", action="store_true", help="weights of the encoder of --token-latents")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if args.token_latents:
            rows = compare_latents(Path(folder), args)
        else:
            rows = compare(Path(folder), args.images, args.steps, args.batch_size)
    print(json.dumps(rows, indent=1))
    if args.out:
        args.out.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
