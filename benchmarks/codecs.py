"""What the codecs of patch tokens cost: cosine to the exact token, bytes, and the alignment loss's gradient.

    python benchmarks/codecs.py                       # a few minutes on 2 cores
    python benchmarks/codecs.py --images FOLDER       # other photographs than the 20 that come with foolbox
    python benchmarks/codecs.py --encoder dinov2-vit-b --weights FOLDER
    python benchmarks/codecs.py --device cuda

Tokens are those of a registered encoder (EfficientNet-Lite0) with its published weights, those of a ViT-B/14 with
random weights, both on photographs, and synthetic ones with what makes DINOv2's hard to quantize: outlier channels and
2 % massive tokens.

Columns: cosine between exact and stored token (mean, 0.1 % quantile, least); cosine between the gradients of the
alignment loss with exact and with stored tokens, for the projected tokens and for the layer that projects them;
milliseconds a sample (of processor time on a CPU). Codecs marked "unrotated" are here for comparison alone: nothing
stores them.
"""

import argparse
import importlib.util
import time
from pathlib import Path

import numpy as np
import timm
import torch
from PIL import Image

from repa_pipe.diffusion.loss import alignment_loss
from repa_pipe.models.encoders import load_encoder
from repa_pipe.sources.crop import center_crop
from repa_pipe.stores.codecs import CODEC_NAMES, Codec, QuantizedCodec, make_codec
from repa_pipe.stores.rotation import Rotation

COLUMNS = "codec | bytes a sample | mean | 0.1 % | min | tokens | layer | encode | decode"


class Unrotated(Rotation):
    def rotate(self, tokens):
        return tokens

    def matrix(self):
        return np.eye(self.width, dtype=np.float32)


def load_images(folder: Path) -> torch.Tensor:
    """Every photograph's center crop, uint8 [B, 3, 256, 256]."""
    files = sorted(path for path in folder.glob("imagenet_*") if path.suffix in (".jpg", ".JPEG", ".png")) or sorted(
        path for path in folder.iterdir() if path.suffix.lower() in (".jpg", ".jpeg", ".png")
    )
    return torch.from_numpy(np.stack([center_crop(Image.open(file), 256) for file in files])).permute(0, 3, 1, 2)


def synthetic_tokens(count: int, width: int) -> torch.Tensor:
    """[count, 256, width]: smooth and low-rank with a mean, outlier channels, massive tokens, after a LayerNorm."""
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
    torch.manual_seed(0)
    model = timm.create_model("vit_base_patch14_dinov2", pretrained=False, img_size=224).eval()
    mean, std = (torch.tensor(value).view(3, 1, 1) for value in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    pixels = torch.nn.functional.interpolate((images / 255 - mean) / std, 224, mode="bicubic")
    return model.forward_features(pixels)[:, model.num_prefix_tokens :]


def codecs_for(width: int) -> dict[str, Codec]:
    codecs = {name: make_codec(name, 256, width) for name in CODEC_NAMES}
    for name in CODEC_NAMES:
        codec = make_codec(name, 256, width)
        if isinstance(codec, QuantizedCodec):
            codec.rotation = Unrotated(width, 0)
            codecs[f"{name} unrotated"] = codec
    return codecs


def gradients(tokens: torch.Tensor, exact: torch.Tensor) -> list[torch.Tensor]:
    """Of the alignment loss with `tokens`: for the projected tokens, and for the linear layer that makes them.

    The layer's input is half-way through a training: noise whose cosine to the exact tokens is 0.4.
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
    """Result, and seconds of the fastest of five calls: of processor time on a CPU, of real time on a GPU."""
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
    arrays, encoding = timed(lambda: codec.encode(exact), exact.device)
    codes = torch.from_numpy(arrays["tokens"]).to(exact.device)
    stored, decoding = timed(lambda: codec.decode(codes), exact.device)
    cosines = cosine(stored, exact).flatten()
    of_tokens, of_weight = (
        cosine(found.flatten(), wanted.flatten())
        for found, wanted in zip(gradients(stored, exact), gradients(exact, exact), strict=True)
    )
    size = sum(spec.sample_bytes for spec in codec.arrays)
    return (
        f"| {name} | {size:,} | {cosines.mean():.6f} | {cosines.quantile(0.001):.6f} | {cosines.min():.6f} "
        f"| {of_tokens:.6f} | {of_weight:.6f} | {1e3 * encoding / len(exact):.2f} | {1e3 * decoding / len(exact):.2f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, help="a folder of photographs")
    parser.add_argument("--encoder", default="efficientnet-lite0")
    parser.add_argument("--weights", type=Path, help="the encoder's published checkpoint; by default from its hub")
    parser.add_argument("--device", default="cpu", type=torch.device)
    args = parser.parse_args()
    images = load_images(args.images or Path(importlib.util.find_spec("foolbox").origin).parent / "data")
    encoder = load_encoder(args.encoder, args.weights)
    sets = {
        f"{args.encoder}, published weights, {len(images)} photographs": encoder(images).patch_tokens,
        f"ViT-B/14, random weights, {len(images)} photographs": random_vit_tokens(images),
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
