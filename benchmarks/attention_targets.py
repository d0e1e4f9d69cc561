"""Measure two ways to store what HASTE aligns attention with: bytes per image, error of the maps, cost in a step.

    python benchmarks/attention_targets.py            # two minutes on 2 cores
    python benchmarks/attention_targets.py --images 4 --rounds 1

`input`: the tokens that enter the first of the four aligned blocks, and the class token, which is float16 with every
codec; the training step recomputes the blocks. `queries and keys`: those of the patches in the four blocks, each as if
they were tokens.

Errors are those of a DINOv2 architecture with trained weights (vits14-imgfocus, 6 heads) on the images that foolbox
ships, in comparison with the maps of the encoder in float32: the mean total variation distance of a query's map (0 to
1), its largest value, and the mean KL divergence, by which the loss is too high. Times are those of a ViT-B/14, whose
weights do not matter for them: milliseconds per image to restore the logits of 12 heads, in percent of a training step
of --model without them. All variants take turns in each round.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from arguments import at_least
from PIL import Image
from torch import Tensor

from repa_pipe.diffusion.loss import alignment_loss
from repa_pipe.models.encoders import load_encoder
from repa_pipe.models.encoders.last_blocks import LastBlocks, load_last_blocks
from repa_pipe.models.encoders.token_choice import ATTENTION_BLOCKS
from repa_pipe.models.encoders.weights import create_on_meta
from repa_pipe.models.layers.attention import attention_logits
from repa_pipe.models.sit import SiT, sit_config
from repa_pipe.sources.crop import center_crop
from repa_pipe.sources.demo_images import photographs
from repa_pipe.stores.codecs import CODEC_NAMES, Codec, make_codec

ENCODER = "vits14-imgfocus@block=8+norm=none"
HEADS, PATCHES = 12, 256


@dataclass
class Stored:
    """What a store would hold of some images."""

    codec: Codec
    arrays: list[dict[str, Tensor]]
    cls_token: Tensor | None

    @property
    def bytes_per_image(self) -> int:
        of_class = 0 if self.cls_token is None else 2 * self.cls_token.shape[-1]
        return len(self.arrays) * sum(array.sample_bytes for array in self.codec.arrays) + of_class

    def decode(self) -> list[Tensor]:
        return [self.codec.decode(each["tokens"], each.get("token_scale")) for each in self.arrays]


def store(name: str, tensors: list[Tensor], cls_token: Tensor | None = None) -> Stored:
    codec = make_codec(name, PATCHES, tensors[0].shape[-1])
    arrays = [{key: torch.from_numpy(array) for key, array in codec.encode(each).items()} for each in tensors]
    return Stored(codec, arrays, cls_token)


def logits_from_input(stored: Stored, blocks: LastBlocks) -> list[Tensor]:
    (patches,) = stored.decode()
    assert stored.cls_token is not None
    return blocks.logits(torch.cat([stored.cls_token.float().unsqueeze(1), patches], dim=1), HEADS)


def logits_from_queries_keys(stored: Stored, blocks: LastBlocks) -> list[Tensor]:
    found = [each.unflatten(-1, (blocks.num_heads, -1)).transpose(1, 2)[:, :HEADS] for each in stored.decode()]
    return [attention_logits(query, key) for query, key in zip(found[0::2], found[1::2], strict=True)]


WAYS: dict[str, Callable[[Stored, LastBlocks], list[Tensor]]] = {
    "input": logits_from_input,
    "queries and keys": logits_from_queries_keys,
}


def stored_in_all_ways(tokens: Tensor, blocks: LastBlocks) -> dict[tuple[str, str], Stored]:
    """Return what stores hold by way and codec, given the exact input [B, 1 + N, D]."""
    projected = [each[:, :, 1:].transpose(1, 2).flatten(2) for pair in blocks(tokens) for each in pair]
    found = {}
    for codec in CODEC_NAMES:
        found["input", codec] = store(codec, [tokens[:, 1:]], tokens[:, 0].half())
        found["queries and keys", codec] = store(codec, projected)
    return found


def errors(logits: list[Tensor], exact: list[Tensor]) -> tuple[float, float, float]:
    """Return mean and largest total variation distance of maps, and their mean KL divergence."""
    found, expected = (torch.stack(each).double().log_softmax(dim=-1) for each in (logits, exact))
    distances = (found.exp() - expected.exp()).abs().sum(dim=-1) / 2
    divergences = (expected.exp() * (expected - found)).sum(dim=-1)
    return float(distances.mean()), float(distances.max()), float(divergences.mean())


def trained_errors(images: int) -> dict[tuple[str, str], tuple[float, float, float]]:
    files = [path for path, _ in photographs()][:images]
    crops = torch.from_numpy(np.stack([center_crop(Image.open(file), 256) for file in files])).permute(0, 3, 1, 2)
    tokens = load_encoder(ENCODER)(crops)
    assert tokens.cls_token is not None
    exact_input = torch.cat([tokens.cls_token.unsqueeze(1), tokens.patch_tokens], dim=1)
    blocks = load_last_blocks(ENCODER)
    exact = blocks.logits(exact_input, HEADS)
    ways = stored_in_all_ways(exact_input, blocks)
    return {key: errors(WAYS[key[0]](stored, blocks), exact) for key, stored in ways.items()}


def random_base_blocks() -> LastBlocks:
    torch.manual_seed(0)
    model = create_on_meta("vit_base_patch14_dinov2", {}).to_empty(device="cpu")
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    return LastBlocks(model.blocks[-ATTENTION_BLOCKS:], "")


def training_step(model: SiT, batch: int) -> Callable[[], object]:
    x, t = torch.randn(batch, 4, 32, 32), torch.rand(batch)
    labels, tokens = torch.zeros(batch, dtype=torch.int64), torch.randn(batch, PATCHES, 768)

    def step() -> None:
        velocity, projected = model(x, t, labels)
        (velocity.square().mean() + alignment_loss(projected, [tokens])).backward()
        model.zero_grad()

    return step


def times(model: SiT, batch: int, rounds: int) -> tuple[dict[tuple[str, str], Stored], dict[object, float]]:
    """Return what is stored of a ViT-B, and milliseconds per image of each variant and of a step ("step")."""
    blocks = random_base_blocks()
    ways = stored_in_all_ways(torch.randn(batch, 1 + PATCHES, 768), blocks)
    calls: dict[object, Callable[[], object]] = {"step": training_step(model, batch)}
    for key, stored in ways.items():
        calls[key] = lambda key=key, stored=stored: WAYS[key[0]](stored, blocks)
    seconds: dict[object, list[float]] = {key: [] for key in calls}
    for number in range(rounds + 1):  # the first is not counted
        for key, call in calls.items():
            start = time.perf_counter()
            call()
            if number:
                seconds[key].append(time.perf_counter() - start)
    return ways, {key: 1e3 * statistics.median(found) / batch for key, found in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=at_least(1), default=20, help="images for the errors")
    parser.add_argument("--batch-size", type=at_least(1), default=4, help="images per step")
    parser.add_argument("--rounds", type=at_least(1), default=5, help="timed rounds")
    parser.add_argument("--model", default="SiT-B/2", help="model whose training step is the unit of the cost")
    args = parser.parse_args()
    found = trained_errors(args.images)
    model = SiT(sit_config(args.model, input_size=32, in_channels=4))
    ways, milliseconds = times(model, args.batch_size, args.rounds)
    print(f"maps of {ATTENTION_BLOCKS} blocks and {HEADS} heads in float16: {2 * 4 * HEADS * PATCHES**2:,} bytes")
    print(f"a training step of {args.model}: {milliseconds['step']:,.0f} ms per image")
    print("| stored | codec | bytes per image | TV mean | TV max | KL | ms per image | % of a step |")
    print("|---|---|--:|--:|--:|--:|--:|--:|")
    for (way, codec), stored in ways.items():
        mean, largest, divergence = found[way, codec]
        cost = milliseconds[way, codec]
        print(
            f"| {way} | {codec} | {stored.bytes_per_image:,} | {mean:.5f} | {largest:.4f} | {divergence:.6f} "
            f"| {cost:.1f} | {100 * cost / milliseconds['step']:.1f} |"
        )


if __name__ == "__main__":
    main()
