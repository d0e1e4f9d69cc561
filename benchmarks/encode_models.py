"""Images per second of the models of `encode` alone, without decoding, store and codec.

    python benchmarks/encode_models.py --encoder dinov2-vit-b [--batch-size 64] [--batches 20] [--rounds 3] [--compile]

Three ways take turns on the same random crops of 256 px: the VAE of Stable Diffusion, the encoder, and both. Weights
are random: the values do not affect speed. Results are medians. On a GPU, the models run in fp16, as in `encode`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from arguments import at_least
from diffusers import AutoencoderKL
from step import online_encoder

SD_VAE = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
}

Model = Callable[[torch.Tensor], torch.Tensor]


def random_vae(device: torch.device, compiled: bool) -> Model:
    """Return Stable Diffusion's VAE with random weights, from images uint8 `[B, 3, H, W]` to moments."""
    vae = AutoencoderKL(**SD_VAE).to(device).eval()
    moments = torch.compile(vae._encode) if compiled else vae._encode

    @torch.no_grad()
    def encode(images: torch.Tensor) -> torch.Tensor:
        with torch.autocast(device.type, torch.float16, device.type == "cuda"):
            return moments(images / 127.5 - 1)

    return encode


def images_per_second(models: list[Model], images: torch.Tensor, batches: int) -> float:
    synchronize = torch.cuda.synchronize if images.is_cuda else lambda: None
    synchronize()
    start = time.perf_counter()
    for _ in range(batches):
        for model in models:
            model(images)
    synchronize()
    return batches * len(images) / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder", nargs="+", default=["dinov2-vit-b"], choices=["dinov2-vit-b", "dinov2-vit-g"])
    parser.add_argument("--batch-size", type=at_least(1), default=64, help="images per batch")
    parser.add_argument("--batches", type=at_least(1), default=20, help="batches per measurement")
    parser.add_argument("--rounds", type=at_least(1), default=3, help="number of rounds")
    parser.add_argument("--side", type=at_least(32), default=256, help="side of the images in pixels")
    parser.add_argument("--compile", action="store_true", help="compile the VAE, as `encode --compile` does")
    parser.add_argument("--out", type=Path, default=None, help="JSON file for the results")
    args = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    images = torch.randint(0, 256, (args.batch_size, 3, args.side, args.side), dtype=torch.uint8, device=device)
    vae, rows = random_vae(device, args.compile), []
    for name in args.encoder:
        encoder = online_encoder(name, device)
        ways = {"VAE": [vae], name: [encoder], f"VAE and {name}": [vae, encoder]}
        for models in ways.values():
            images_per_second(models, images, 1)
        rates = {way: [] for way in ways}
        for _ in range(args.rounds):
            for way, models in ways.items():
                rates[way].append(images_per_second(models, images, args.batches))
        rows += [{"models": way, "images_per_s": round(statistics.median(found), 2)} for way, found in rates.items()]
    print(json.dumps(rows, indent=1))
    if args.out:
        args.out.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
