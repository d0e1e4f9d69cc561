"""Kill encode runs at random moments, resume them, and compare every byte with an undisturbed store.

    python benchmarks/kill_encode.py [--runs 200] [--images 48] [--seed 0]

Each run starts a new store and is killed with SIGKILL after a random number of committed shards and a random part of
the time that a shard takes; before the first, of the time of an undisturbed run. The same run is then started again
and finishes. Array files, sample index and commit records (except writer and time) must equal those of an undisturbed
store. Processes are forked from a server that has imported everything, so a run takes about a second. Encoding runs
inline, with a VAE of four channels.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
from arguments import at_least
from PIL import Image

from repa_pipe.config import EncodeConfig

PRELOAD = ["diffusers.models.autoencoders.autoencoder_kl", "repa_pipe.pipeline.encode", "repa_pipe.models.vae", "zarr"]


def make_images(folder: Path, count: int) -> None:
    generator = np.random.default_rng(0)
    (folder / "class-0").mkdir(parents=True)
    for number in range(count):
        coarse = generator.integers(0, 256, (9, 8, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((272, 260)).save(folder / f"class-0/{number:03d}.jpg")


def make_vae(folder: Path) -> None:
    """Save a VAE with very few channels: only writing is tested."""
    import torch
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    AutoencoderKL(
        block_out_channels=(4,) * 4,
        layers_per_block=1,
        norm_num_groups=1,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        mid_block_add_attention=False,
    ).save_pretrained(folder)


def encode(config: EncodeConfig) -> None:
    """Encode without output, in the process that is killed."""
    from repa_pipe.pipeline import encode as stage

    sys.stderr = sys.stdout = open(os.devnull, "w")  # noqa: PTH123, SIM115 - closed with the process
    stage.run(config)


def file_contents(store: Path) -> dict[str, bytes]:
    """Return the contents of every file, except writer and time of commit records."""
    contents = {}
    for path in sorted(path for path in store.rglob("*") if path.is_file()):
        data = path.read_bytes()
        if "commits" in path.parts:
            record = json.loads(data)
            data = json.dumps({key: record[key] for key in record if key not in ("writer", "time", "crc32c")}).encode()
        contents[str(path.relative_to(store))] = data
    return contents


def commits_of(store: Path) -> list[Path]:
    """Return the commit records of a store that may not exist yet."""
    return list(store.glob("commits/*/*/*.json"))


def start(context: ForkServerContext, config: EncodeConfig) -> BaseProcess:
    process = context.Process(target=encode, args=(config,))
    process.start()
    return process


def run_to_end(context: ForkServerContext, config: EncodeConfig) -> float:
    """Encode in a process; return the seconds it took."""
    start_time = time.monotonic()
    process = start(context, config)
    process.join()
    if process.exitcode != 0:
        raise RuntimeError(f"encoding failed with exit code {process.exitcode}")
    return time.monotonic() - start_time


def kill_runs(folder: Path, runs: int, images: int, seed: int) -> dict[str, object]:
    """Kill and resume `runs` times; return a summary. Raises RuntimeError when a file differs."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    make_images(folder / "images", images)
    make_vae(folder / "vae")

    def config_of(name: str) -> EncodeConfig:
        return EncodeConfig(
            source=str(folder / "images"), store=str(folder / name), vae=str(folder / "vae"), shard_size=4, device="cpu"
        )

    run_to_end(context, config_of("warm-up"))
    seconds = run_to_end(context, config_of("undisturbed"))
    expected = file_contents(folder / "undisturbed")
    generator, shards = random.Random(seed), -(-images // 4)
    killed, commits = 0, []
    for run in range(runs):
        store = folder / "killed"
        shutil.rmtree(store, ignore_errors=True)
        process = start(context, config_of("killed"))
        wait = generator.randrange(shards)
        while len(commits_of(store)) < wait and process.is_alive():
            time.sleep(0.005)
        time.sleep(generator.uniform(0, seconds / shards if wait else seconds))
        process.kill()  # SIGKILL; no effect when it has already finished
        process.join()
        killed += process.exitcode == -signal.SIGKILL
        commits.append(len(commits_of(store)))
        run_to_end(context, config_of("killed"))
        found = file_contents(store)
        different = sorted(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name))
        if different:
            raise RuntimeError(f"run {run}: {len(different)} files differ, including {different[0]}")
    return {
        "runs": runs,
        "killed": killed,
        "seconds_undisturbed": round(seconds, 2),
        "shards": shards,
        "shards_committed_when_killed": {str(count): commits.count(count) for count in sorted(set(commits))},
        "differing_files": 0,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=at_least(1), default=200, help="number of runs to kill")
    parser.add_argument("--images", type=at_least(1), default=48, help="images to encode, in shards of 4")
    parser.add_argument("--seed", type=int, default=0, help="seed of the moments")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(kill_runs(Path(folder), args.runs, args.images, args.seed)))


if __name__ == "__main__":
    main()
