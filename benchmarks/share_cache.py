"""Measure how much runs on one machine gain from reading the same samples of a store that does not fit in memory.

    python benchmarks/share_cache.py [--samples 16384] [--runs 2] [--memory-left 3] [--folder DIR] [--out FILE.json]

The store holds DINOv2-B tokens in float16 and SD-VAE moments (7 GB). Memory is locked until only `--memory-left` GB are
available, so the page cache cannot hold the store. Each run is a process that reads batches of 256 for two epochs and
discards them; runs start `--stagger` seconds apart. Four setups take turns:

    one           one run, through the page cache
    same order    all runs with the same seed, through the page cache: the runs that `ablate` starts concurrently
    other orders  all runs with different seeds, through the page cache
    past it       all runs with the same seed, bypassing the page cache (`--direct`): the default for such a store

The results are samples per second of all runs together, and bytes read from disk divided by the bytes that one run
needs.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import mmap
import os
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path

from arguments import at_least
from read import bytes_from_disk, drop_cache
from synthetic import sample_bytes, synthetic_store

from repa_pipe.stores import AlignmentDataset, open_store

ENCODER, EPOCHS = "dinov2-vit-b", 2


def lock_all_but(left: float) -> mmap.mmap:
    """Lock memory until `left` GB are available. It is released with the returned map."""
    meminfo = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    size = int(meminfo["MemAvailable"].split()[0]) * 1024 - int(left * 1e9)
    ballast = mmap.mmap(-1, max(size, mmap.PAGESIZE))
    address = ctypes.addressof(ctypes.c_char.from_buffer(ballast))
    if ctypes.CDLL(None, use_errno=True).mlock(ctypes.c_void_p(address), ctypes.c_size_t(len(ballast))):
        raise SystemExit(f"cannot lock {size / 1e9:.1f} GB: {os.strerror(ctypes.get_errno())} (raise `ulimit -l`)")
    return ballast


def read_epochs(folder: Path, seed: int, direct: bool) -> dict[str, float]:
    """Read the store twice; return start, end, number of samples, bytes needed and bytes read from disk."""
    with (
        open_store(folder) as store,
        closing(
            AlignmentDataset(store, latents="sd", encoders=[ENCODER], batch_size=256, seed=seed, direct=direct)
        ) as data,
        closing(data.batches()) as batches,
    ):
        start = time.time()
        for _ in range(EPOCHS * data.steps_per_epoch):
            next(batches)
        samples = EPOCHS * data.steps_per_epoch * data.batch_size
        needed = samples * sample_bytes(store)
    return {"start": start, "end": time.time(), "samples": samples, "needed": needed, "read": bytes_from_disk()}


def run_concurrently(folder: Path, seeds: list[int], direct: bool, stagger: float) -> tuple[float, float]:
    """Return samples per second of all runs, and bytes read from disk divided by the bytes that one run needs."""
    drop_cache(folder)
    processes = []
    for seed in seeds:
        command = [sys.executable, __file__, "--child", str(folder), str(seed), str(int(direct))]
        processes.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        time.sleep(stagger)
    runs = [json.loads(process.communicate()[0]) for process in processes]
    seconds = max(run["end"] for run in runs) - min(run["start"] for run in runs)
    return sum(run["samples"] for run in runs) / seconds, sum(run["read"] for run in runs) / runs[0]["needed"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=at_least(256), default=16_384, help="samples in the store")
    parser.add_argument("--runs", type=at_least(1), default=2, help="number of concurrent runs")
    parser.add_argument("--memory-left", type=float, default=3.0, help="GB of memory to leave available")
    parser.add_argument("--stagger", type=float, default=1.0, help="seconds between the starts of runs")
    parser.add_argument("--rounds", type=at_least(1), default=3, help="number of rounds")
    parser.add_argument("--folder", default=None, help="folder for the data. Default: the system's temporary folder")
    parser.add_argument("--out", type=Path, default=None, help="JSON file for the results")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(read_epochs(Path(args.child[0]), int(args.child[1]), args.child[2] == "1")))
        return
    setups = {
        "one": ([0], False),
        "same order": ([0] * args.runs, False),
        "other orders": (list(range(args.runs)), False),
        "past it": ([0] * args.runs, True),
    }
    results: dict[str, list[tuple[float, float]]] = {name: [] for name in setups}
    with tempfile.TemporaryDirectory(dir=args.folder) as temporary:
        folder = Path(temporary) / "store"
        synthetic_store(folder, ENCODER, args.samples)
        drop_cache(folder)
        ballast = lock_all_but(args.memory_left)
        for _ in range(args.rounds):
            for name, (seeds, direct) in setups.items():
                results[name].append(run_concurrently(folder, seeds, direct, args.stagger))
                print(name, *(f"{value:.2f}" for value in results[name][-1]), file=sys.stderr)
        del ballast
    rows = [
        {
            "way": name,
            "samples_per_s": round(statistics.median(rate for rate, _ in values)),
            "read_over_needed": round(statistics.median(read for _, read in values), 2),
        }
        for name, values in results.items()
    ]
    print(json.dumps(rows, indent=1))
    if args.out:
        settings = {"samples": args.samples, "runs": args.runs, "memory_left_gb": args.memory_left}
        args.out.write_text(json.dumps(settings | {"stagger_s": args.stagger, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
