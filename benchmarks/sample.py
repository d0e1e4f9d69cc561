"""Compare the speed of `repa-pipe sample` with the published generator's loop, on the same weights.

    python benchmarks/sample.py --model SiT-S/2 --images 16 --batch-size 8 --num-steps 10
    python benchmarks/sample.py --model SiT-XL/2 --images 512 --batch-size 64 --num-steps 250 --mode sde \
        --precision bf16 --vae sd-vae-ft-ema --cfg-scale 1.8 --guidance-high 0.7

Three ways are timed in turn, `--rounds` times each, from noise to the finished .npz, without loading; results are
medians:

    ours              blocks as in `repa-pipe sample`
    published         REPA's generate.py with its defaults, in one process: attention is not fused, projectors run too,
                      every batch is decoded when it is finished, written as PNG files and read back for the .npz
    published, fused  the same with --fused-attn

The published loop is reimplemented here, with the Euler and Euler-Maruyama steps of its samplers.py. Weights are
random: the values do not affect speed. With a `--precision` other than fp32, all three run under autocast; generate.py
only has TF32.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import numpy as np
import torch
from arguments import at_least
from PIL import Image
from torch.nn.attention import SDPBackend, sdpa_kernel

from repa_pipe.config import SampleConfig, TrainConfig
from repa_pipe.models.sit import SiT, sit_config
from repa_pipe.models.vae import Vae, describe_vae, load_vae
from repa_pipe.pipeline.artifacts.checkpoints import StoreMetadata, TrainedModel
from repa_pipe.pipeline.artifacts.sample_files import SampleFiles
from repa_pipe.pipeline.runtime.device import DTYPES, choose_device
from repa_pipe.pipeline.sampling.blocks import SampleBlocks, make_blocks
from repa_pipe.pipeline.sampling.sampler import Sampler


def random_model(name: str, side: int, channels: int) -> SiT:
    """Return a model whose weights are all random: none of them is zero."""
    torch.manual_seed(0)
    model = SiT(sit_config(name, input_size=side, in_channels=channels)).eval()
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.02)
    return model.requires_grad_(False)


def ours(sampler: Sampler, config: SampleConfig, device: torch.device, folder: Path) -> None:
    blocks = SampleBlocks(config, {}, SampleFiles(folder / "ours.npz"), Path(config.checkpoint))
    make_blocks(sampler, blocks.folder, blocks.all, device)
    blocks.assemble(sampler.all_labels())


def published(model: SiT, vae: Vae, config: SampleConfig, fused: bool, folder: Path) -> None:
    batch, sit, device = config.per_proc_batch_size, model.config, vae.device
    done = 0
    while done < config.num_fid_samples:
        x = torch.randn(batch, sit.in_channels, sit.input_size, sit.input_size, device=device)
        labels = torch.randint(0, sit.num_classes, (batch,), device=device)
        attention = nullcontext() if fused else sdpa_kernel(SDPBackend.MATH)
        with attention, torch.autocast(device.type, DTYPES[config.precision], config.precision != "fp32"):
            latents = published_sampler(model, x, labels, config)
        images = vae.decode(latents.to(torch.float32)).permute(0, 2, 3, 1).to("cpu").numpy()
        for i, image in enumerate(images):
            Image.fromarray(image).save(folder / f"{done + i:06d}.png")
        done += batch
    read = [np.asarray(Image.open(folder / f"{i:06d}.png")) for i in range(config.num_fid_samples)]
    np.savez(folder / "published.npz", arr_0=np.stack(read))


@torch.no_grad()
def published_sampler(model: SiT, x: torch.Tensor, labels: torch.Tensor, config: SampleConfig) -> torch.Tensor:
    null = torch.full_like(labels, model.config.num_classes)
    sde, steps = config.mode == "sde", config.num_steps
    times = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
    if sde:
        times = torch.cat([torch.linspace(1, 0.04, steps, dtype=torch.float64), times[-1:]])
    state = x.double()
    for step in range(len(times) - 1):
        now, span = times[step], times[step + 1] - times[step]
        guide = config.cfg_scale > 1 and config.guidance_low <= now <= config.guidance_high
        given = torch.cat([state, state]) if guide else state
        t = torch.ones(len(given), device=x.device, dtype=torch.float64) * now
        slope = model(given.to(x.dtype), t.to(x.dtype), torch.cat([labels, null]) if guide else labels)[0].double()
        if sde:
            wide = t.view(-1, 1, 1, 1)
            ratio = (1 - wide) / -torch.ones_like(given)
            score = (ratio * slope - given) / (wide**2 - ratio * wide)
            slope = slope - 0.5 * (2 * now) * score
        if guide:
            conditional, unconditional = slope.chunk(2)
            slope = unconditional + config.cfg_scale * (conditional - unconditional)
        state = state + span * slope
        if sde and step < len(times) - 2:
            state = state + (2 * now).sqrt() * torch.randn_like(state) * span.abs().sqrt()
    return state


def timed(work: Callable[[Path], None], device: torch.device) -> float:
    """Return the seconds of a call with a temporary folder."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        work(Path(folder))
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="SiT-S/2", help="model to sample from")
    parser.add_argument("--vae", default="tiny-kl-f8", help="VAE that decodes the latents")
    parser.add_argument("--resolution", type=int, default=256, help="side of the images in pixels")
    parser.add_argument("--images", type=at_least(1), default=16, help="images to generate")
    parser.add_argument("--batch-size", type=at_least(1), default=8, help="images per batch")
    parser.add_argument("--num-steps", type=at_least(1), default=10, help="sampling steps")
    parser.add_argument("--mode", choices=("ode", "sde"), default="ode", help="sampler")
    parser.add_argument("--cfg-scale", type=float, default=1.5, help="guidance scale")
    parser.add_argument("--guidance-high", type=float, default=1.0, help="highest time with guidance")
    parser.add_argument("--precision", choices=("fp32", "bf16", "fp16"), default="fp32", help="precision of the model")
    parser.add_argument("--compile", action="store_true", help="compile the model, in our sampler only")
    parser.add_argument("--rounds", type=at_least(1), default=5, help="number of rounds")
    parser.add_argument("--device", default=None, help="torch device. Default: cuda if available, else cpu")
    parser.add_argument("--out", type=Path, default=None, help="JSON file for the rates")
    options = parser.parse_args()
    device = choose_device(options.device)
    torch.backends.cuda.matmul.allow_tf32 = True
    channels, downsampling = describe_vae(options.vae)
    model = random_model(options.model, options.resolution // downsampling, channels).to(device)
    config = SampleConfig(
        checkpoint="",
        num_fid_samples=options.images,
        per_proc_batch_size=options.batch_size,
        mode=options.mode,
        num_steps=options.num_steps,
        cfg_scale=options.cfg_scale,
        guidance_high=options.guidance_high,
        precision=options.precision,
        compile=options.compile,
    )
    vae = load_vae(options.vae, device=device)
    metadata = StoreMetadata(options.vae, vae.latents_scale, vae.latents_bias, (), "", {})
    sampler = Sampler(config, TrainedModel(model, metadata, TrainConfig(store=""), 0), device)
    ways = {
        "ours": partial(ours, sampler, config, device),
        "published": partial(published, model, vae, config, False),
        "published, fused": partial(published, model, vae, config, True),
    }
    for way in ways.values():
        timed(way, device)  # caches, autotuning, compilation
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(options.rounds):
        for name, way in ways.items():
            seconds[name].append(timed(way, device))
            print(f"{name}: {seconds[name][-1]:.2f} s", file=sys.stderr, flush=True)
    rates = {name: round(options.images / statistics.median(values), 4) for name, values in seconds.items()}
    for name, rate in rates.items():
        ratio = statistics.median(a / b for a, b in zip(seconds[name], seconds["ours"], strict=True))
        print(f"{name:<18} {rate:>8.3f} images/s   ours is {ratio:.2f} times as fast")
    print(json.dumps({"options": vars(options), "images_per_s": rates, "seconds": seconds}, default=str))
    if options.out:
        peak = torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else None
        settings = {"model": options.model, "batch_size": options.batch_size, "cfg_scale": options.cfg_scale}
        rows = [{"way": name} | settings | {"images_per_s": rate, "peak_gib": peak} for name, rate in rates.items()]
        options.out.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
