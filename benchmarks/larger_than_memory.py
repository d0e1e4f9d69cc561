"""Compare ways to read a store that is larger than the memory: which part of it the page cache holds.

    systemd-run --scope -p MemoryMax=1500M python benchmarks/larger_than_memory.py [--samples 4096] [--rounds 3]

Run it in a control group whose memory is smaller than the store (0.43 MB per sample) and larger than 1 GB, for Python
and the batches. Three ways take turns, each from a cold page cache, for `--epochs` shuffled epochs of batches of 128:

    page cache      all samples through the page cache, which evicts those that were not read for longest
    past the cache  all samples bypass it (O_DIRECT)
    default         as many shards as fit stay in the page cache, the others bypass it

Figures are medians over the rounds, of the epochs after the first: samples per second, and the bytes that were read
from the disk over the bytes of the samples.
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

from arguments import at_least
from read import bytes_from_disk, drop_cache
from synthetic import sample_bytes, synthetic_store

from repa_pipe.stores import AlignmentDataset, open_store
from repa_pipe.stores.memory import usable_memory

WAYS = {"page cache": False, "past the cache": True, "default": None}
ENCODER, BATCH = "dinov2-vit-b", 128


def later_epochs(path: Path, direct: bool | None, epochs: int) -> tuple[float, float]:
    """Return samples per second and bytes read over bytes of the samples, in the epochs after the first."""
    drop_cache(path)
    with open_store(path) as store:
        size = sample_bytes(store)
        dataset = AlignmentDataset(store, encoders=[ENCODER], batch_size=BATCH, direct=direct, prefetch=1)
        for _ in dataset:
            pass
        count, start, disk = 0, time.perf_counter(), bytes_from_disk()
        for _ in range(epochs - 1):
            for batch in dataset:
                count += len(batch.labels)
        elapsed = time.perf_counter() - start
        return count / elapsed, (bytes_from_disk() - disk) / count / size


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=at_least(BATCH), default=4096, help="samples of the store")
    parser.add_argument("--rounds", type=at_least(1), default=3, help="number of rounds")
    parser.add_argument("--epochs", type=at_least(2), default=4, help="epochs of each way in a round")
    parser.add_argument("--folder", default=None, help="folder for the store. Default: the system's temporary folder")
    parser.add_argument("--out", type=Path, default=None, help="JSON file for the results")
    args = parser.parse_args()
    found: dict[str, list[tuple[float, float]]] = defaultdict(list)
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        path = Path(folder) / "store"
        synthetic_store(path, ENCODER, args.samples)
        os.sync()
        total, memory = args.samples * sample_bytes(open_store(path)), usable_memory()
        print(f"store: {total / 1e9:.2f} GB, memory: {memory / 1e9:.2f} GB")
        if total <= memory:
            parser.error("the store fits into the memory: pass more --samples, or run this in a smaller control group")
        for _ in range(args.rounds):
            for way, direct in WAYS.items():
                found[way].append(later_epochs(path, direct, args.epochs))
    rows = []
    print(f"{'':<16}{'samples/s':>12}{'read / requested':>20}")
    for way, measured in found.items():
        speed, read = (statistics.median(values) for values in zip(*measured, strict=True))
        rows.append({"way": way, "samples_per_second": round(speed), "read_over_requested": round(read, 3)})
        print(f"{way:<16}{speed:>12,.0f}{read:>20.2f}")
    if args.out:
        settings = {"store_bytes": total, "memory_bytes": memory, "processors": os.cpu_count(), "rounds": args.rounds}
        args.out.write_text(json.dumps(settings | {"rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
