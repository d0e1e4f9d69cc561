"""Time and memory needed to open a store as large as ImageNet, and the cost of a random batch.

    python benchmarks/open_large.py [--samples 1281167] [--rounds 5] [--folder DIR]

Metadata, sample index, commit records, checksums of samples and shard indices are real. The samples are holes in sparse
files, so the disk has no influence. Each opening runs in a new process: open the store and its groups
(`metadata_cpu_ms`), list the valid samples of latents and tokens, compute the order of the first epoch. Imports count
neither as time nor as memory. Batches are 256 random samples in the page cache, compared with those of a store of
10,000 samples.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from arguments import at_least
from synthetic import LATENTS_GROUP, features_template, new_store

from repa_pipe.stores import open_store
from repa_pipe.stores.checksum import crc32c
from repa_pipe.stores.layout import CRC32C, GroupSpec, num_shards, shard_file, shard_range
from repa_pipe.stores.manifest import Manifest, new_commit, write_commit
from repa_pipe.stores.writer import create_group, shard_index

ENCODER = "dinov2-vit-b"
NAMES = ["latents/sd", f"features/{ENCODER}"]
SMALL = 10_000

OPEN = """
import os, sys, time
from repa_pipe.stores import AlignmentDataset, open_store
import torch

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20

before, start, cpu = resident(), time.perf_counter(), time.process_time()
store = open_store(sys.argv[1])
[store.group(name) for name in store.group_names()]
metadata = time.process_time() - cpu
dataset = AlignmentDataset(store, latents="sd", encoders=[sys.argv[2]], batch_size=256)
dataset.indices_of_step(0)
print(time.perf_counter() - start, resident() - before, 1000 * metadata)
"""


def sparse_store(path: Path, count: int) -> None:
    manifest = new_store(path, count, 1024)
    for spec in (LATENTS_GROUP, features_template(ENCODER)):
        create_group(path, manifest, spec)
        for shard in range(num_shards(count, manifest.shard_size)):
            write_shard(path, manifest, spec, shard)


def write_shard(path: Path, manifest: Manifest, spec: GroupSpec, shard: int) -> None:
    """Write the files that ShardWriter writes, with holes instead of samples and without fsync."""
    samples = len(shard_range(shard, manifest.num_samples, manifest.shard_size))
    files, checksums = {}, np.zeros((manifest.shard_size, len(spec.arrays)), dtype="<u4")
    for column, array in enumerate(spec.arrays):
        tail = shard_index(samples, array.sample_bytes, manifest.shard_size)
        file = path / spec.path / array.name / shard_file(array, shard)
        file.parent.mkdir(parents=True)
        with file.open("wb") as out:
            out.truncate(samples * array.sample_bytes)
            out.seek(0, os.SEEK_END)
            out.write(tail)
        facts = {"bytes": samples * array.sample_bytes + len(tail), "crc32c": 0}
        files[f"{array.name}/{shard_file(array, shard)}"] = facts
        checksums[:samples, column] = crc32c(np.zeros(array.sample_bytes, np.uint8))
    file = path / spec.path / CRC32C / f"c/{shard}/0"
    file.parent.mkdir(parents=True)
    file.write_bytes(checksums.tobytes())
    files[f"{CRC32C}/c/{shard}/0"] = {"bytes": checksums.nbytes, "crc32c": crc32c(checksums)}
    write_commit(path, new_commit(spec.path, shard, files, np.zeros(samples, np.uint32), ()))


class Batches:
    """Reads the same few random batches repeatedly."""

    def __init__(self, path: Path) -> None:
        self._store = open_store(path)
        rng = np.random.default_rng(0)
        self._rows = [rng.integers(0, len(self._store), 256) for _ in range(8)]
        self.milliseconds()

    def milliseconds(self) -> float:
        times = []
        for rows in self._rows:
            start = time.perf_counter()
            self._store.read(NAMES, rows)
            times.append(time.perf_counter() - start)
        return 1000 * statistics.median(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=at_least(256), default=1_281_167)
    parser.add_argument("--rounds", type=at_least(1), default=5)
    parser.add_argument("--folder", default=None, help="folder for the data; default: the temporary folder")
    parser.add_argument("--out", type=Path, default=None, help="JSON file for the results")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        large, small = Path(folder) / "large", Path(folder) / "small"
        sparse_store(large, args.samples)
        sparse_store(small, SMALL)
        command = [sys.executable, "-c", OPEN, str(large), ENCODER]
        runs = [
            subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
            for _ in range(args.rounds)
        ]
        seconds, megabytes, metadata_ms = np.median(np.array(runs, float), axis=0)
        readers = Batches(large), Batches(small)
        turns = [[reader.milliseconds() for reader in readers] for _ in range(3 * args.rounds)]
    of_large, of_small = np.median(turns, axis=0)
    facts = {
        "samples": args.samples,
        "open_s": round(float(seconds), 3),
        "open_mb": round(float(megabytes), 1),
        "metadata_cpu_ms": round(float(metadata_ms), 1),
        "batch_ms": round(float(of_large), 2),
        f"batch_ms_of_{SMALL}": round(float(of_small), 2),
    }
    print(json.dumps(facts, indent=1))
    if args.out:
        args.out.write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
