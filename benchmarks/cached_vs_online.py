"""What training from a store changes against running the encoder in every step: the losses of both, step by step.

    python benchmarks/cached_vs_online.py [--steps 50] [--images 32] [--out FILE.json]

Real photographs (the demo's crops), a small real encoder, SiT-T/2 in float32 on the CPU, the same seed, order and
noise in all runs. The online run encodes each batch's images again, in float32; the others read tokens that were
stored as float16, int8 and int4. Printed: the largest and the mean absolute difference of each loss to the online
run's, over all steps.
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
from repa_pipe.pipeline.demo import ENCODER, MODEL, VAE
from repa_pipe.pipeline.runtime.distributed import DistributedContext
from repa_pipe.pipeline.train import Trainer
from repa_pipe.pipeline.training.setup import resolve
from repa_pipe.sources import decode_crop, open_source, records_of
from repa_pipe.sources.demo_images import make_crops
from repa_pipe.stores import Batch, Store, open_store

LOSSES = ("denoising_loss", "alignment_loss")


def some_crops(folder: Path, count: int) -> Path:
    """A folder of `count` of the demo's crops, of all classes."""
    make_crops(folder / "all")
    for path in sorted((folder / "all").rglob("*.jpg"))[:: max(1, 320 // count)][:count]:
        target = folder / "images" / path.parent.name
        target.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    return folder / "images"


def online_tokens(store: Store) -> Callable[[Batch], Batch]:
    """Replaces the stored tokens of a batch by the encoder's, run on the batch's images."""
    source, encoder = open_source(store.manifest.source["path"]), load_encoder(ENCODER)

    def replace(batch: Batch) -> Batch:
        records = records_of(store.samples.take(batch.indices))
        crops = [decode_crop(source.read(record), store.manifest.resolution) for record in records]
        images = torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2)
        return batch._replace(patch_tokens=[encoder(images).patch_tokens])

    return replace


def losses_of(store_path: Path, steps: int, batch_size: int, online: bool = False) -> np.ndarray:
    """Denoising and alignment loss of every step, `[steps, 2]`."""
    with open_store(store_path) as store:
        config = TrainConfig(
            store=str(store_path),
            model=MODEL,
            projector_embed_dims=256,
            batch_size=batch_size,
            mixed_precision="fp32",
            device="cpu",
        )
        trainer = Trainer(
            resolve(config, store), store, torch.device("cpu"), DistributedContext(0, 1, 0), Path("unused")
        )
        change = online_tokens(store) if online else lambda batch: batch
        columns = [trainer.nonfinite.names.index(name) for name in LOSSES]
        rows = []
        for step in range(steps):
            batch = change(trainer.dataset.read(trainer.dataset.indices_of_step(step)))
            rows.append(trainer.train_step(batch)[columns].tolist())
            trainer.step += 1
    print(f"{'online' if online else store_path.name}: {steps} steps", file=sys.stderr)
    return np.array(rows)


def compare(folder: Path, count: int, steps: int, batch_size: int, codecs: tuple[str, ...]) -> list[dict[str, object]]:
    """One row a codec: how far its losses are from the online run's."""
    images = some_crops(folder, count)
    rows: list[dict[str, object]] = []
    reference = None
    for codec in codecs:
        store = folder / codec
        encode.run(
            EncodeConfig(source=str(images), store=str(store), vae=VAE, encoder=(ENCODER,), codec=codec, device="cpu")
        )
        if reference is None:
            reference = losses_of(folder / codecs[0], steps, batch_size, online=True)
        difference = np.abs(losses_of(store, steps, batch_size) - reference)
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
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--out", type=Path, default=None, help="JSON file for the rows")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = compare(Path(folder), args.images, args.steps, args.batch_size, ("float16", "int8", "int4"))
    print(json.dumps(rows, indent=1))
    if args.out:
        args.out.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
