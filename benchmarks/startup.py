"""Measure how long commands take that have nothing to do or cannot work, and a sweep of two runs of three steps.

    python benchmarks/startup.py [--program repa-pipe] [--runs 5] [--folder DIR] [--out JSON]
    python benchmarks/startup.py --encode 8 [--program repa-pipe] [--runs 5] [--folder DIR] [--out JSON]

Every program (`repa-pipe` of one version; repeatable, to compare versions) first makes its own store, run, images and
metrics from 24 images of noise, and executes the sweep once. Its commands are then repeated, the programs in turn.
Figures are medians: seconds, and CPU seconds (user and system, of all processes of the command), which depend less on
what else the machine does. Of processes that Ray has started, only the seconds are known.

--encode N: encode N images of noise into a new store instead, in one process and with one Ray actor.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np
from arguments import at_least
from PIL import Image

IMAGES, SIDE = 24, 64
SWEEP = """\
[train]
model = "SiT-T/2"
encoder_depth = 2
batch_size = 8
max_train_steps = 3
[[runs]]
proj_coeff = 0.5
[[runs]]
proj_coeff = 0.0
[sample]
num_fid_samples = 8
num_steps = 2
[evaluate]
detector = ["efficientnet-lite0"]
"""
ENCODE = "encode --source images --store store --vae tiny-kl-f8 --encoder efficientnet-lite0"
TRAIN = "train --store store --exp-name run --model SiT-T/2 --batch-size 8 --max-train-steps 3"
SAMPLE = "sample --checkpoint exps/run --num-fid-samples 8 --num-steps 2 --out samples.npz"
EVALUATE = "evaluate --samples samples.npz --reference images --detector efficientnet-lite0"
RANK = "rank --store store"
ABLATE = "ablate sweep.toml --store store --out sweep --no-ray"
FINISHED = [ENCODE, TRAIN, SAMPLE, EVALUATE, RANK, ABLATE]
IMPOSSIBLE = [
    f"{ENCODE} --source nowhere",
    f"{ENCODE} --encoder dinov9",
    f"{TRAIN} --seed 1",
    f"{TRAIN} --exp-name other --enc-type mae-vit-l",
    "sample --checkpoint nowhere",
    "plan --model SiT",
]

ON_CPU = f"{ENCODE} --device cpu"
FROM_NOTHING = [ON_CPU, f"{ON_CPU} --ray --actors 1"]

Figures = tuple[float, float]  # seconds, CPU seconds


def measure(program: str, command: str, folder: Path, exit_code: int) -> Figures:
    """Run a command and return its figures; it must end with the exit code."""
    start, before = time.perf_counter(), _cpu_seconds()
    environment = os.environ | {"REPA_PIPE_CACHE": str(folder / "cache")}
    words = [program, *command.split()]
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != exit_code:
        raise RuntimeError(f"{program} {command}: exit code {done.returncode}, expected {exit_code}\n{done.stderr}")
    return time.perf_counter() - start, _cpu_seconds() - before


def _cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def make_images(folder: Path, count: int) -> None:
    """Write images of noise into `folder/images`."""
    rng = np.random.default_rng(0)
    (folder / "images/noise").mkdir(parents=True)
    for number in range(count):
        pixels = rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((256, 256)).save(folder / f"images/noise/{number}.png")


def encode_again(program: str, command: str, folder: Path, exit_code: int) -> Figures:
    """Measure `encode` without the store of the round before."""
    shutil.rmtree(folder / "store", ignore_errors=True)
    return measure(program, command, folder, exit_code)


def prepare(program: str, folder: Path) -> Figures:
    """Make everything that the commands look for; return the figures of the sweep."""
    make_images(folder, IMAGES)
    (folder / "sweep.toml").write_text(SWEEP)
    for command in FINISHED[:-1]:
        measure(program, command, folder, 0)
    return measure(program, ABLATE, folder, 0)


def _print(table: dict[str, list[Figures]], command: str) -> None:
    """Print a row of the table in Markdown: seconds and, in parentheses, CPU seconds of each program."""
    figures = " | ".join(f"{seconds:.2f} ({cpu:.2f})" for seconds, cpu in table[command])
    print(f"| `{command}` | {figures} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--program", action="append", required=True, help="program to measure; repeatable")
    parser.add_argument("--encode", type=at_least(1), default=None, help="number of images to encode into a new store")
    parser.add_argument("--runs", type=int, default=5, help="runs per command")
    parser.add_argument("--folder", default=None, help="folder for the data. Default: the system's temporary folder")
    parser.add_argument("--out", type=Path, default=None, help="JSON file for the results")
    args = parser.parse_args()
    found = [shutil.which(program) or parser.error(f"{program} was not found") for program in args.program]
    programs = [str(Path(program).absolute()) for program in found]  # commands run in other folders
    cases = [(command, 0) for command in FINISHED] + [(command, 2) for command in IMPOSSIBLE]
    run = encode_again if args.encode else measure
    table: dict[str, list[Figures]] = {}
    with tempfile.TemporaryDirectory(dir=args.folder) as temporary:
        folders = {program: Path(temporary) / str(number) for number, program in enumerate(programs)}
        if args.encode:
            cases = [(command, 0) for command in FROM_NOTHING]
            for folder in folders.values():
                make_images(folder, args.encode)
        else:
            table["the sweep"] = [prepare(program, folder) for program, folder in folders.items()]
            _print(table, "the sweep")
        for command, exit_code in cases:
            rounds = [
                [run(program, command, folder, exit_code) for program, folder in folders.items()]
                for _ in range(args.runs)
            ]
            table[command] = [
                (statistics.median(one[0] for one in runs), statistics.median(one[1] for one in runs))
                for runs in zip(*rounds, strict=True)
            ]
            _print(table, command)
    if args.out:
        args.out.write_text(json.dumps({"programs": programs, "runs": args.runs, "table": table}, indent=1))


if __name__ == "__main__":
    main()
