"""Cost of comparing samples with their checksums when they are read, compared with reading alone.

    python benchmarks/checked_reads.py                       # stores of 0.9 and 0.5 GB, deleted afterwards
    python benchmarks/checked_reads.py --folder /mnt/disk    # on another disk

Samples have the sizes of ImageNet at 256 px: SD-VAE moments and tokens of DINOv2-B, float16 (426 KB) and int8 (229 KB).
Two readers of the same files, one with `check_reads="never"` and one with the default `first`, take turns batch by
batch, so that both meet the same disturbances:
- cold: an epoch of which each reads every other batch, after all pages were dropped from the page cache. Every read is
  a first read, and compared.
- first pass, warm: the same from the page cache, with newly opened readers.
- warm: epochs that both have read before. A random 1/64 is compared.
Prints medians over all batches, of wall time and of CPU time (which other programs disturb less), and the ratio of the
medians, with the quartiles of the same ratio within each round.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from arguments import at_least
from read import drop_cache
from synthetic import sample_bytes, synthetic_store

from repa_pipe.stores import open_store
from repa_pipe.stores.buffers import BufferPool

BATCH = 256
WARM_EPOCHS = 4  # per round
MODES = ("never", "first")

Times = list[list[tuple[float, float]]]  # per reader and batch: wall and CPU seconds


class Reader:
    """A newly opened store."""

    def __init__(self, path: Path, mode: Any, pool: BufferPool) -> None:
        self.store, self._pool = open_store(path, check_reads=mode), pool
        groups = [self.store.group(name) for name in self.store.group_names()]
        self._layouts = {
            f"{group.path}/{name}": index.layout for group in groups for name, index in group.shard_indexes.items()
        }

    def read(self, rows: np.ndarray[Any, Any]) -> tuple[float, float]:
        """Read a batch into reused buffers; return wall and CPU seconds."""
        out = {
            name: self._pool.take((len(rows), *layout.spec.sample_shape), layout.dtype)
            for name, layout in self._layouts.items()
        }
        start, cpu = time.perf_counter(), time.process_time()
        self.store.read(list(out), rows, out=out)
        return time.perf_counter() - start, time.process_time() - cpu


def take_turns(readers: list[Reader], order: np.ndarray[Any, Any], first: int, each: bool) -> Times:
    """Read an epoch; return the times of each reader's batches.

    Args:
        readers: the readers.
        order: samples of the epoch.
        first: the reader of the first batch.
        each: every reader reads every batch; else they read batches alternately.
    """
    times: Times = [[], []]
    for number in range(len(order) // BATCH):
        rows = order[number * BATCH : (number + 1) * BATCH]
        turn = (first + number) % 2
        for chosen in (turn, 1 - turn) if each else (turn,):
            times[chosen].append(readers[chosen].read(rows))
    return times


def measure(path: Path, rounds: int) -> dict[str, list[Times]]:
    """Return the times of every round, by case."""
    pool, rng = BufferPool(pin_memory=False), np.random.default_rng(0)
    found: dict[str, list[Times]] = defaultdict(list)
    with open_store(path) as store:
        count = len(store)
    for number in range(rounds):
        drop_cache(path)
        for case in ("cold", "first pass, warm"):
            readers = [Reader(path, mode, pool) for mode in MODES]
            found[case].append(take_turns(readers, rng.permutation(count), number % 2, each=False))
            if case != "cold":
                take_turns(readers, rng.permutation(count), 0, each=True)  # what only the other one has read
                epochs = [
                    take_turns(readers, rng.permutation(count), number % 2, each=True) for _ in range(WARM_EPOCHS)
                ]
                found["warm"].append([[each for epoch in epochs for each in epoch[mode]] for mode in (0, 1)])
            for reader in readers:
                reader.store.close()
    return found


def summary(rounds: list[Times]) -> dict[str, Any]:
    """Return medians of a case, and ratios checked / unchecked."""

    def median(part: list[Times], mode: int, clock: int) -> float:
        return statistics.median(times[clock] for each in part for times in each[mode])

    ratios = [median([each], 1, 0) / median([each], 0, 0) for each in rounds]
    low, _, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
    return {
        "samples_per_s": {mode: round(BATCH / median(rounds, i, 0)) for i, mode in enumerate(MODES)},
        "cpu_us_per_sample": {mode: round(1e6 * median(rounds, i, 1) / BATCH, 1) for i, mode in enumerate(MODES)},
        "time_ratio": round(median(rounds, 1, 0) / median(rounds, 0, 0), 4),
        "time_ratio_quartiles": [round(low, 4), round(high, 4)],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=at_least(2 * BATCH), default=2048, help="samples per store")
    parser.add_argument("--rounds", type=at_least(1), default=11, help="number of rounds")
    parser.add_argument("--folder", default=None, help="folder for the data. Default: the system's temporary folder")
    parser.add_argument("--out", type=Path, default=None, help="JSON file for the results")
    args = parser.parse_args()
    results: dict[str, Any] = {}
    for codec in ("float16", "int8"):
        with tempfile.TemporaryDirectory(dir=args.folder) as folder:
            path = Path(folder) / "store"
            synthetic_store(path, "dinov2-vit-b", args.samples, codec)
            os.sync()
            with open_store(path) as store:
                results[codec] = {"sample_bytes": sample_bytes(store)}
            results[codec] |= {case: summary(rounds) for case, rounds in measure(path, args.rounds).items()}
    print(json.dumps(results, indent=1))
    if args.out:
        settings = {"samples": args.samples, "rounds": args.rounds, "processors": os.cpu_count()}
        args.out.write_text(json.dumps(settings | {"results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
