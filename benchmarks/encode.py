"""Compare the speed of encoding with a plain loop that only decodes and computes, and with the published way.

    python benchmarks/encode.py [--images 640] [--rounds 3] [--out FILE]        throughput
    python benchmarks/encode.py --linear [--sizes 1000 10000 100000]           cost and memory by number of images

Throughput: real images (JPEG) through the shipped small VAE and EfficientNet-Lite0, on CPUs, in float32. Each round
runs these in turn, and measures the loop again right before each encode command:

    loop       decode threads one batch ahead of the models, nothing written: the upper limit of the others
    inline     `repa-pipe encode`: decode, encode, checksum, write, sync, commit
    ray-1, -2  the same with one and two Ray actors
    published  decode, crop and save every image as PNG, sequentially; then read, encode with batch size 1 and save as
               .npy, sequentially (a quarter of the images, like the loop)

The rate of encode is measured from the second commit of each worker to the last commit, since the loop is also measured
warm. The rest of the time is reported as start-up: imports, weights, Ray, the first two shards. A shard has 64 images,
and fewer below 512 images, so that there are eight shards if there are eight images. Rates are medians over the rounds,
ratios are medians of the ratios within each round. Any number of images can be measured; `too_few_images` lists the
figures that come from fewer than 64 images, and those without a value because no shard follows the warm-up.

--linear: 32 px images through a stage that costs nothing (means of the crop), inline, one process per size.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from arguments import at_least
from PIL import Image

from repa_pipe.config import EncodeConfig
from repa_pipe.pipeline import encode
from repa_pipe.pipeline.encoding import shard
from repa_pipe.pipeline.encoding.group_encoder import EncodedBatch
from repa_pipe.pipeline.encoding.loading import load_group_encoders
from repa_pipe.pipeline.encoding.work import open_or_create
from repa_pipe.pipeline.runtime.device import choose_device
from repa_pipe.sources import decode_crop
from repa_pipe.sources.demo_images import photographs
from repa_pipe.stores.layout import ArraySpec, GroupSpec, features_group, latents_group

VAE, ENCODER = "tiny-kl-f8", "efficientnet-lite0"
GROUPS = (latents_group(VAE), features_group(ENCODER))
BATCH, SHARD = 16, 64
IN_FLIGHT = 2  # shards that a worker encodes at the same time
SHARDS = 8  # at least, if there are as many images: two workers warm up with four of them
ENOUGH = 64  # images, for a figure

Models = Callable[[torch.Tensor], list[EncodedBatch]]


def copy_photographs(folder: Path, count: int) -> list[Path]:
    """Write `count` copies of the demo's uncropped images, cycling through them."""
    (folder / "class-0").mkdir(parents=True)
    originals = [path.read_bytes() for path, _ in photographs()]
    paths = [folder / f"class-0/{number:05d}.jpg" for number in range(count)]
    for number, path in enumerate(paths):
        path.write_bytes(originals[number % len(originals)])
    return paths


def shard_size(count: int) -> int:
    """Return the images per shard, such that there are `SHARDS` if possible."""
    return max(1, min(SHARD, count // SHARDS))


def measured_images(count: int, workers: int) -> int:
    """Return the images after the first two shards of each worker; 0 if there are not that many shards."""
    return max(0, count - IN_FLIGHT * workers * shard_size(count))


def few_images(counts: dict[str, int]) -> dict[str, str]:
    """Return the ways that were measured with too few images for a figure, given the images of each way."""
    return {
        name: f"measured with {images} of at least {ENOUGH} images"
        for name, images in counts.items()
        if images < ENOUGH
    }


def config_of(images: Path, store: Path, **changes: object) -> EncodeConfig:
    options = {"vae": VAE, "encoder": (ENCODER,), "batch_size": BATCH, "device": "cpu"}
    return EncodeConfig(source=str(images), store=str(store), **options | changes)  # type: ignore[arg-type]


def load_models(config: EncodeConfig) -> Models:
    encoders = load_group_encoders(config, GROUPS, torch.device("cpu"), "fp32")
    return lambda crops: [encoder(crops) for encoder in encoders]


def plain_loop(paths: list[Path], models: Models) -> float:
    """Decode up to two batches ahead and run the models; return images per second."""
    start = time.perf_counter()
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        waiting: deque[Future[npt.NDArray[np.uint8]]] = deque()
        rest = deque(paths)
        while rest or waiting:
            while rest and len(waiting) < 2 * BATCH:
                waiting.append(pool.submit(lambda path: decode_crop(path.read_bytes(), 256), rest.popleft()))
            batch = [waiting.popleft().result() for _ in range(min(BATCH, len(waiting)))]
            models(torch.from_numpy(np.stack(batch)).permute(0, 3, 1, 2))
    return len(paths) / (time.perf_counter() - start)


def published_way(paths: list[Path], models: Models, folder: Path) -> float:
    """Encode in two passes (PNG in between, batch size 1, one .npy per array and image); return images per second."""
    start = time.perf_counter()
    for number, path in enumerate(paths):
        Image.fromarray(decode_crop(path.read_bytes(), 256)).save(folder / f"{number}.png", compress_level=0)
    for number in range(len(paths)):
        with Image.open(folder / f"{number}.png") as image:
            crop = np.array(image)
        for group, encoded in enumerate(models(torch.from_numpy(crop[None]).permute(0, 3, 1, 2))):
            for name, array in encoded.arrays.items():
                np.save(folder / f"{number}-{group}-{name}.npy", array[0])
    return len(paths) / (time.perf_counter() - start)


def command_rate(config: EncodeConfig, count: int) -> tuple[float | None, float]:
    """Run `repa-pipe encode` on `count` images.

    Return images per second after every worker has committed two shards (None if nothing is left to encode then), and
    the seconds of everything else.
    """
    start = time.perf_counter()
    command = [sys.executable, "-m", "repa_pipe.cli", *config.command().split()[1:]]
    subprocess.run(command, capture_output=True, check=True)
    seconds = time.perf_counter() - start
    workers = config.actors or 1
    if not (images := measured_images(count, workers)):
        return None, seconds
    commits = sorted(path.stat().st_mtime for path in Path(config.store, "commits", GROUPS[-1]).iterdir())
    steady = commits[-1] - commits[IN_FLIGHT * workers - 1]
    return images / steady if steady else None, seconds - steady


def throughput(count: int, rounds: int) -> dict[str, object]:
    """Measure all ways in turn; return medians and ratios."""
    choose_device("cpu")  # configures the allocator as encode does
    runners: dict[str, dict[str, object]] = {
        "inline": {},
        "ray-1": {"ray": True, "actors": 1},
        "ray-2": {"ray": True, "actors": 2},
    }
    part = max(1, count // 4)  # images of the ways that take longer
    rates: dict[str, list[float | None]] = {name: [] for name in (*runners, "published")}
    loops: dict[str, list[float | None]] = {name: [] for name in runners}
    start_up: dict[str, list[float]] = {name: [] for name in runners}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        paths = copy_photographs(folder / "images", count)
        models = load_models(config_of(folder / "images", folder / "none"))
        plain_loop(paths[: 2 * BATCH], models)  # warm-up
        for number in range(rounds):
            for name, changes in runners.items():
                loops[name].append(plain_loop(paths[:part], models))
                options = changes | {"shard_size": shard_size(count)}
                config = config_of(folder / "images", folder / f"{name}-{number}", **options)
                rate, seconds = command_rate(config, count)
                rates[name].append(rate)
                start_up[name].append(seconds)
            (folder / f"published-{number}").mkdir()
            rates["published"].append(published_way(paths[:part], models, folder / f"published-{number}"))
            for name in runners:
                print(f"{name} {_rounded(rates[name][-1])}, loop {_rounded(loops[name][-1])}", file=sys.stderr)
    ratios = {f"{name} / loop": _ratios(rates[name], loops[name]) for name in runners}
    ratios |= {f"{name} / published": _ratios(rates[name], rates["published"]) for name in runners}
    rates["loop"] = [rate for values in loops.values() for rate in values]
    images = {name: measured_images(count, options.get("actors", 1)) for name, options in runners.items()}
    return {
        "images": count,
        "images_per_s": {name: _rounded(_median(values)) for name, values in rates.items()},
        "too_few_images": few_images(images | {"loop": part, "published": part}),
        "ratios": {name: _rounded(_median(values), 3) for name, values in ratios.items()},
        "ratios_all_rounds": {name: [_rounded(value, 3) for value in values] for name, values in ratios.items()},
        "start_up_s": {name: round(statistics.median(values), 1) for name, values in start_up.items()},
    }


def _median(values: list[float | None]) -> float | None:
    measured = [value for value in values if value is not None]
    return statistics.median(measured) if measured else None


def _rounded(value: float | None, digits: int = 2) -> float | None:
    return None if value is None else round(value, digits)


def _ratios(ours: list[float | None], theirs: list[float | None]) -> list[float | None]:
    return [a / b if a is not None and b is not None else None for a, b in zip(ours, theirs, strict=True)]


class MeanEncoder:
    """A stand-in for a VAE: means of 64 x 64 blocks, as moments `[8, 4, 4]`."""

    spec = GroupSpec(
        path=latents_group(VAE),
        arrays=(ArraySpec(name="moments", sample_shape=(8, 4, 4), dtype="float32"),),
        attributes={"vae": VAE, "fingerprint": {"name": "means"}, "scale": [1.0] * 4, "bias": [0.0] * 4},
    )

    def __call__(self, crops: torch.Tensor) -> EncodedBatch:
        means = crops[:, :, ::16, ::16].float().reshape(len(crops), 3, 4, 4, 4, 4).mean((3, 5))
        return EncodedBatch({"moments": means.repeat(1, 3, 1, 1)[:, :8].numpy()})


def linear_one(folder: Path, count: int) -> dict[str, object]:
    """Encode `count` tiny images in this process; return its time and memory."""
    shard.load_group_encoders = lambda *_: [MeanEncoder()]  # type: ignore[assignment]
    config = EncodeConfig(source=str(folder), store=str(folder) + "-store", vae=VAE, device="cpu")
    before, used = _resident(), time.process_time()
    open_or_create(config).close()
    listed = _resident()
    result = encode.run(config)
    used = time.process_time() - used
    return {
        "images": count,
        "seconds": result.seconds,
        "ms_an_image": round(1000 * result.seconds / count, 3),
        "cpu_ms_an_image": round(1000 * used / count, 3),
        "rss_before_mib": round(before / 2**20),
        "rss_listed_mib": round(listed / 2**20),
        "rss_peak_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10),
    }


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def linear(sizes: list[int]) -> list[dict[str, object]]:
    """Encode each number of images in its own process; return one row per size."""
    rows = []
    generator = np.random.default_rng(0)
    for count in sizes:
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary) / "images"
            for number in range(count):
                if number % 1000 == 0:
                    block = folder / f"class-{number // 1000:03d}"
                    block.mkdir(parents=True)
                    pixels = generator.integers(0, 256, (32, 32, 3), dtype=np.uint8)
                    Image.fromarray(pixels).save(block / "0.jpg")
                    data = (block / "0.jpg").read_bytes()
                (block / f"{number % 1000}.jpg").write_bytes(data)
            command = [sys.executable, __file__, "--linear-one", str(folder), "--sizes", str(count)]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            rows.append(json.loads(done.stdout.splitlines()[-1]))
            print(json.dumps(rows[-1]), file=sys.stderr)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=at_least(1), default=640, help="images to encode")
    parser.add_argument("--rounds", type=at_least(1), default=3, help="number of rounds")
    parser.add_argument("--linear", action="store_true", help="measure cost and memory by number of images")
    parser.add_argument("--linear-one", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--sizes", type=at_least(1), nargs="+", default=[1_000, 10_000, 100_000], help="for --linear")
    parser.add_argument("--out", type=Path, default=None, help="JSON file to add the results to")
    args = parser.parse_args()
    if args.linear_one:
        print(json.dumps(linear_one(args.linear_one, args.sizes[0])))
        return
    found = {"linear": linear(args.sizes)} if args.linear else {"throughput": throughput(args.images, args.rounds)}
    print(json.dumps(found, indent=1))
    if args.out:
        before = json.loads(args.out.read_text()) if args.out.exists() else {}
        args.out.write_text(json.dumps(before | found, indent=1) + "\n")


if __name__ == "__main__":
    main()
