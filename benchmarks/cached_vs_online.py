"""Compare the losses of training from a store with those of running the encoder in every step.

    python benchmarks/cached_vs_online.py [--steps 50] [--images 32] [--out FILE.json]

All runs use real images (the demo's crops), a small real encoder, SiT-T/2 in float32 on the CPU, and the same seed,
order and noise. The online run encodes the images of each batch in float32; the others read tokens stored as float16,
int8 and int4. The result is the maximum and the mean absolute difference of each loss from the online run, over all
steps.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from repa_pipe.config import EncodeConfig, TrainConfig
from repa_pipe.models.encoders import load_encoder
from repa_pipe.pipeline import encode
from repa_pipe.pipeline.artifacts.run_folder import RunFolder
from repa_pipe.pipeline.demo import ENCODER, MODEL, VAE
from repa_pipe.pipeline.runtime.distributed import DistributedContext
from repa_pipe.pipeline.training.setup import resolve
from repa_pipe.pipeline.training.trainer import Trainer
from repa_pipe.sources import decode_crop, open_source, records_of
from repa_pipe.sources.demo_images import make_crops
from repa_pipe.stores import Batch, Store, open_store

LOSSES = ("denoising_loss", "alignment_loss")


def select_crops(folder: Path, count: int) -> Path:
    """Return a folder with `count` of the demo's crops, spread over all classes."""
    make_crops(folder / "all")
    for path in sorted((folder / "all").rglob("*.jpg"))[:: max(1, 320 // count)][:count]:
        target = folder / "images" / path.parent.name
        target.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    return folder / "images"


def online_tokens(store: Store) -> Callable[[Batch], Batch]:
    """Return a function that replaces the stored tokens of a batch with the encoder's output for its images."""
    source, encoder = open_source(store.manifest.source["path"]), load_encoder(ENCODER)

    def encode_batch(batch: Batch) -> Batch:
        records = records_of(store.samples.take(batch.indices))
        crops = [decode_crop(source.read(record), store.manifest.resolution) for record in records]
        images = torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2)
        return batch._replace(patch_tokens=[encoder(images).patch_tokens])

    return encode_batch


def train_losses(store_path: Path, steps: int, batch_size: int, online: bool = False) -> np.ndarray:
    """Return the denoising and the alignment loss of every step, `[steps, 2]`."""
    with open_store(store_path) as store:
        config = TrainConfig(
            store=str(store_path),
            model=MODEL,
            projector_embed_dims=256,
            batch_size=batch_size,
            mixed_precision="fp32",
            device="cpu",
        )
        torch.manual_seed(config.seed)  # of the initial weights, as `repa-pipe train` does
        run_folder = RunFolder(Path("unused"))
        trainer = Trainer(resolve(config, store), store, torch.device("cpu"), DistributedContext(0, 1), run_folder)
        transform = online_tokens(store) if online else lambda batch: batch
        columns = [trainer.nonfinite.names.index(name) for name in LOSSES]
        rows = []
        for step in range(steps):
            batch = transform(trainer.dataset.read(trainer.dataset.indices_of_step(step)))
            rows.append(trainer.train_step(batch)[columns].tolist())
            trainer.step += 1
    print(f"{'online' if online else store_path.name}: {steps} steps", file=sys.stderr)
    return np.array(rows)


def compare(folder: Path, count: int, steps: int, batch_size: int, codecs: tuple[str, ...]) -> list[dict[str, object]]:
    """Return one row per codec: the differences of its losses from those of the online run."""
    images = select_crops(folder, count)
    rows: list[dict[str, object]] = []
    reference = None
    for codec in codecs:
        store = folder / codec
        encode.run(
            EncodeConfig(source=str(images), store=str(store), vae=VAE, encoder=(ENCODER,), codec=codec, device="cpu")
        )
        if reference is None:
            reference = train_losses(folder / codecs[0], steps, batch_size, online=True)
        difference = np.abs(train_losses(store, steps, batch_size) - reference)
        row: dict[str, object] = {"codec": codec, "steps": steps}
        for column, name in enumerate(LOSSES):
            row |= {
                f"{name}_max": float(difference[:, column].max()),
                f"{name}_mean": float(difference[:, column].mean()),
                f"{name}_online_last": float(reference[-1, column]),
            }
        rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=50, help="training steps per run")
    parser.add_argument("--images", type=int, default=32, help="number of crops in the store")
    parser.add_argument("--batch-size", type=int, default=4, help="images per training step")
    parser.add_argument("--out", type=Path, default=None, help="JSON file for the results")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = compare(Path(folder), args.images, args.steps, args.batch_size, ("float16", "int8", "int4"))
    print(json.dumps(rows, indent=1))
    if args.out:
        args.out.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
