"""Measure the codecs of patch tokens: size, cosine to the exact tokens, error of the alignment loss's gradient, time.

    python benchmarks/codecs.py                       # a few minutes on 2 cores
    python benchmarks/codecs.py --images FOLDER       # instead of the 20 images that foolbox ships
    python benchmarks/codecs.py --encoder dinov2-vit-b --weights FOLDER
    python benchmarks/codecs.py --device cuda

The tokens come from a registered encoder (EfficientNet-Lite0) with its published weights and from a ViT-B/14 with
random weights, both applied to images. Synthetic tokens add the properties that make those of DINOv2 hard to quantize:
outlier channels and 2 % massive tokens.

Columns: cosine between exact and stored tokens (mean, 0.1 % quantile, minimum); cosine between the gradients of the
alignment loss with exact and with stored tokens, for the projected tokens ("tokens") and for the layer that projects
them ("layer"); milliseconds per sample (CPU time on a CPU). The "unrotated" codecs are included for comparison only;
they cannot be selected.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import timm
import torch
from PIL import Image

from repa_pipe.diffusion.loss import alignment_loss
from repa_pipe.models.encoders import load_encoder
from repa_pipe.sources.crop import center_crop
from repa_pipe.sources.demo_images import photographs
from repa_pipe.stores.codecs import CODEC_NAMES, Codec, QuantizedCodec, make_codec
from repa_pipe.stores.rotation import Rotation

COLUMNS = "codec | bytes per sample | mean | 0.1 % | min | tokens | layer | encode | decode"


class Unrotated(Rotation):
    """The identity in place of a rotation."""

    def rotate(self, tokens):
        return tokens

    def matrix(self):
        return np.eye(self.width, dtype=np.float32)


def image_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in (".jpg", ".jpeg", ".png"))


def load_images(files: list[Path]) -> torch.Tensor:
    """Return the center crops of images, uint8 `[B, 3, 256, 256]`."""
    return torch.from_numpy(np.stack([center_crop(Image.open(file), 256) for file in files])).permute(0, 3, 1, 2)


def synthetic_tokens(count: int, width: int) -> torch.Tensor:
    """Return tokens `[count, 256, width]`: smooth, low-rank, with a mean, outlier channels and massive tokens.

    They are the output of a LayerNorm.
    """
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(shape, generator=generator)

    low_rank = normal(96, width) * torch.arange(1, 97).pow(-0.5)[:, None]
    smooth = torch.nn.functional.interpolate(normal(count, 96, 4, 4), size=(16, 16), mode="bicubic")
    smooth = smooth + 0.5 * normal(count, 96, 16, 16)
    tokens = (smooth.flatten(2).transpose(1, 2) + normal(count, 1, 96)) @ low_rank + 0.6 * normal(count, 256, width)
    tokens[..., torch.randperm(width, generator=generator)[:6]] *= 8
    massive = torch.zeros(width)
    massive[torch.randperm(width, generator=generator)[:4]] = torch.tensor([150.0, -90.0, 220.0, 60.0])
    strength = (torch.rand(count, 256, 1, generator=generator) < 0.02) * (normal(count, 256, 1).abs() + 0.5)
    gain = torch.exp(0.35 * normal(width)) * 1.7
    return torch.nn.functional.layer_norm(tokens + strength * massive, (width,)) * gain + 0.15 * normal(width)


@torch.no_grad()
def random_vit_tokens(images: torch.Tensor) -> torch.Tensor:
    """Return the patch tokens of a ViT-B/14 with random weights."""
    torch.manual_seed(0)
    model = timm.create_model("vit_base_patch14_dinov2", pretrained=False, img_size=224).eval()
    mean, std = (torch.tensor(value).view(3, 1, 1) for value in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    pixels = torch.nn.functional.interpolate((images / 255 - mean) / std, 224, mode="bicubic")
    return model.forward_features(pixels)[:, model.num_prefix_tokens :]


def codecs_for(width: int) -> dict[str, Codec]:
    """Return the codecs, and the quantized ones without rotation."""
    codecs = {name: make_codec(name, 256, width) for name in CODEC_NAMES}
    for name in CODEC_NAMES:
        codec = make_codec(name, 256, width)
        if isinstance(codec, QuantizedCodec):
            codec.rotation = Unrotated(width, 0)
            codecs[f"{name} unrotated"] = codec
    return codecs


def gradients(tokens: torch.Tensor, exact: torch.Tensor) -> list[torch.Tensor]:
    """Return the alignment loss's gradients for the projected tokens and for the linear layer that projects them.

    The input of the layer resembles a model halfway through training: its cosine to the exact tokens is 0.4.
    """
    noise = torch.randn(exact.shape, generator=torch.Generator().manual_seed(1)).to(exact.device)
    direction, noise = (torch.nn.functional.normalize(x, dim=-1) for x in (exact, noise))
    layer = torch.eye(exact.shape[-1], device=exact.device, requires_grad=True)
    projected = (0.4 * direction + (1 - 0.4**2) ** 0.5 * noise) @ layer
    return list(torch.autograd.grad(alignment_loss([projected], [tokens]), [projected, layer]))


def cosine(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    a, b = a.double(), b.double()
    return (a * b).sum(-1) / (a.norm(dim=-1) * b.norm(dim=-1))


def timed(function, device: torch.device):
    """Return the result and the seconds of the fastest of five calls: CPU time on a CPU, wall time on a GPU."""
    on_gpu = device.type == "cuda"
    clock = time.perf_counter if on_gpu else time.process_time
    seconds = []
    for _ in range(5):
        start = clock()
        result = function()
        if on_gpu:
            torch.cuda.synchronize()
        seconds.append(clock() - start)
    return result, min(seconds)


def measure(name: str, codec: Codec, exact: torch.Tensor) -> str:
    """Return one row of the table."""
    arrays, encoding = timed(lambda: codec.encode(exact), exact.device)
    codes = torch.from_numpy(arrays["tokens"]).to(exact.device)
    stored, decoding = timed(lambda: codec.decode(codes), exact.device)
    cosines = cosine(stored, exact).flatten()
    token_cosine, layer_cosine = (
        cosine(found.flatten(), expected.flatten())
        for found, expected in zip(gradients(stored, exact), gradients(exact, exact), strict=True)
    )
    size = sum(spec.sample_bytes for spec in codec.arrays)
    encode_ms, decode_ms = (1e3 * seconds / len(exact) for seconds in (encoding, decoding))
    return (
        f"| {name} | {size:,} | {cosines.mean():.6f} | {cosines.quantile(0.001):.6f} | {cosines.min():.6f} "
        f"| {token_cosine:.6f} | {layer_cosine:.6f} | {encode_ms:.2f} | {decode_ms:.2f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, help="folder of images. Default: the images of foolbox")
    parser.add_argument("--encoder", default="efficientnet-lite0", help="registered encoder")
    parser.add_argument("--weights", type=Path, help="published weights of the encoder. Default: download")
    parser.add_argument("--device", default="cpu", type=torch.device, help="device of the codecs")
    args = parser.parse_args()
    images = load_images(image_files(args.images) if args.images else [path for path, _ in photographs()])
    encoder = load_encoder(args.encoder, args.weights)
    sets = {
        f"{args.encoder}, published weights, {len(images)} images": encoder(images).patch_tokens,
        f"ViT-B/14, random weights, {len(images)} images": random_vit_tokens(images),
        "synthetic, 768 wide": synthetic_tokens(32, 768),
        "synthetic, 1,024 wide": synthetic_tokens(32, 1024),
    }
    for title, tokens in sets.items():
        exact = tokens.float().to(args.device)
        print(f"\n{title}: {exact.shape[0] * exact.shape[1]:,} tokens of {exact.shape[2]}\n")
        print(f"| {COLUMNS} |\n|---|{'--:|' * COLUMNS.count('|')}")
        for name, codec in codecs_for(exact.shape[2]).items():
            print(measure(name, codec, exact), flush=True)


if __name__ == "__main__":
    main()
