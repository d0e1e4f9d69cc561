"""Time and memory that a store of 1.28, 10 and 100 million samples costs: to open, to the first batch, to describe.

    python benchmarks/growth.py [--samples 1281167 10000000 100000000] [--rounds 3] [--shard-size 1024]
        [--folder DIR] [--figure FILE.svg]

Metadata, labels, sample index and commit records are real and differ between shards. The samples are holes in sparse
files, and all shards of an array are links to the same one, so the disk has no influence on reading samples. Each round
is a new process. It opens the store and both its groups (`open_s`, with `metadata_cpu_ms` of CPU time), creates the
dataset of a run (`dataset_s`), which lists the valid samples, and reads the first batch of 256 samples from latents and
tokens, with its place in the order of the epoch (`first_batch_s`). `later_batch_ms` is the median of 20 more. Memory is
that of the process without imports: after the dataset was created (`dataset_mb`), its peak until the first batch
(`peak_mb`), and after 20 more batches (`after_mb`), each with the buffers of batches. `info_s` is `store info`.
`--figure` draws time and memory over the number of samples (`pip install '.[bench]'`).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from arguments import at_least
from synthetic import LATENTS_GROUP, features_template

from repa_pipe.converter import unstructure
from repa_pipe.stores.checksum import crc32c
from repa_pipe.stores.layout import (
    CRC32C,
    SAMPLES_FILE,
    ArraySpec,
    GroupSpec,
    commit_file,
    default_shard_size,
    num_shards,
    shard_file,
    shard_range,
)
from repa_pipe.stores.manifest import Manifest, new_commit, record_checksum
from repa_pipe.stores.metadata_writer import consolidate, create_root_node, write_root_digest
from repa_pipe.stores.writer import create_group, shard_index

ENCODER = "dinov2-vit-b"
INDEX_ROWS = 1 << 20  # written at a time

OPEN = """
import json, sys, time
from statistics import median
from repa_pipe.stores import AlignmentDataset, open_store
import torch

def memory(name):
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) / 1024

open("/proc/self/clear_refs", "w").write("5")  # resets the peak
before, times, cpu = memory("VmRSS"), [time.perf_counter()], time.process_time()
def lap():
    times.append(time.perf_counter())
    return times[-1] - times[-2]

facts, store = {}, open_store(sys.argv[1])
assert all(store.group(name).completeness == "complete" for name in store.group_names())
facts["metadata_cpu_ms"] = 1000 * (time.process_time() - cpu)
facts["open_s"] = lap()
dataset = AlignmentDataset(store, latents="sd", encoders=[sys.argv[2]], batch_size=256)
facts["dataset_s"] = lap()
facts["dataset_mb"] = memory("VmRSS") - before
lap()
dataset[0]
facts["first_batch_s"] = lap()
facts["peak_mb"] = memory("VmHWM") - before
laps = []
for step in range(1, 21):
    lap()
    dataset[step]
    laps.append(lap())
facts["later_batch_ms"] = 1000 * median(laps)
facts["after_mb"] = memory("VmRSS") - before
print(json.dumps(facts))
"""

INFO = """
import json, resource, sys, time
from repa_pipe.pipeline.store_tools.inspection import info
start = time.perf_counter()
info(sys.argv[1])
print(json.dumps({"info_s": time.perf_counter() - start}))
"""


def sparse_store(path: Path, count: int, shard_size: int) -> None:
    """Create a store of `count` samples, of which only labels, sample index, metadata and commit records take space."""
    manifest = Manifest(
        num_samples=count,
        resolution=256,
        crop="none",
        shard_size=shard_size,
        index_digest="",
        class_names=tuple(map(str, range(1000))),
        source={"kind": "folder", "path": "none"},
    )
    create_root_node(path, manifest, (np.arange(count) % 1000).astype(np.int32))
    write_index(path / SAMPLES_FILE, count)
    write_root_digest(path)
    consolidate(path)
    for spec in (LATENTS_GROUP, features_template(ENCODER)):
        create_group(path, manifest, spec)
        write_shards(path, manifest, spec)


def write_index(path: Path, count: int) -> None:
    with pq.ParquetWriter(path, next(index_parts(1)).schema, compression="zstd") as writer:
        for part in index_parts(count):
            writer.write_table(part)


def index_parts(count: int) -> Iterator[pa.Table]:
    for start in range(0, count, INDEX_ROWS):
        rows = np.arange(start, min(count, start + INDEX_ROWS), dtype=np.int64)
        labels = pa.array((rows % 1000).astype(np.int32))
        keys = pc.binary_join_element_wise(labels.cast(pa.string()), pa.array(rows).cast(pa.string()), "/")
        yield pa.table({"key": keys, "label": labels, "num_bytes": 100_000 + rows % 4096, "where": keys})


def write_shards(path: Path, manifest: Manifest, spec: GroupSpec) -> None:
    """Write a commit record for every shard, and links to the files of the first; the last shard has its own."""
    total = num_shards(manifest.num_samples, manifest.shard_size)
    (path / commit_file(spec.path, 0)).parent.mkdir(parents=True)
    template = record_of(path, manifest, spec, 0)
    for shard in range(1, total - 1):
        for name in (*(array.name for array in spec.arrays), CRC32C):
            (path / spec.path / name / "c" / str(shard)).symlink_to("0")
        files = {key.replace("/c/0/", f"/c/{shard}/"): value for key, value in template["files"].items()}
        write_record(path, template | {"shard": shard, "files": files})
    write_record(path, template)
    if total > 1:
        write_record(path, record_of(path, manifest, spec, total - 1))


def write_record(path: Path, record: dict[str, Any]) -> None:
    text = json.dumps(record | {"crc32c": record_checksum(record)}, indent=1) + "\n"
    (path / commit_file(record["group"], record["shard"])).write_text(text)


def record_of(path: Path, manifest: Manifest, spec: GroupSpec, shard: int) -> dict[str, Any]:
    """Write the files of a shard, with holes instead of samples and without fsync; return its commit record."""
    samples = len(shard_range(shard, manifest.num_samples, manifest.shard_size))
    files, checksums = {}, np.zeros((manifest.shard_size, len(spec.arrays)), dtype="<u4")
    for column, array in enumerate(spec.arrays):
        files[f"{array.name}/{shard_file(array, shard)}"] = write_holes(
            path / spec.path, array, shard, samples, manifest.shard_size
        )
        checksums[:samples, column] = crc32c(np.zeros(array.sample_bytes, np.uint8))
    file = path / spec.path / CRC32C / f"c/{shard}/0"
    file.parent.mkdir(parents=True)
    file.write_bytes(checksums.tobytes())
    files[f"{CRC32C}/c/{shard}/0"] = {"bytes": checksums.nbytes, "crc32c": crc32c(checksums)}
    sources = np.random.default_rng(shard).integers(0, 1 << 32, samples, np.uint32)
    return unstructure(new_commit(spec.path, shard, files, sources, ()))


def write_holes(folder: Path, array: ArraySpec, shard: int, samples: int, shard_size: int) -> dict[str, int]:
    tail = shard_index(samples, array.sample_bytes, shard_size)
    file = folder / array.name / shard_file(array, shard)
    file.parent.mkdir(parents=True)
    with file.open("wb") as out:
        out.truncate(samples * array.sample_bytes)
        out.seek(0, os.SEEK_END)
        out.write(tail)
    return {"bytes": samples * array.sample_bytes + len(tail), "crc32c": 0}


def measured(path: Path, script: str) -> dict[str, float]:
    command = [sys.executable, "-c", script, str(path), ENCODER]
    found: dict[str, float] = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    return found


def draw(rows: list[dict[str, float]], file: Path) -> None:
    """Draw times and memory over the number of samples, on logarithmic axes, each with a line of linear growth."""
    from matplotlib.figure import Figure

    times = {
        "open_s": "open",
        "dataset_s": "create the dataset",
        "first_batch_s": "first batch",
        "info_s": "store info",
    }
    memory = {"dataset_mb": "dataset", "peak_mb": "until the first batch", "after_mb": "after 20 more batches"}
    counts = [row["samples"] for row in rows]
    figure = Figure(figsize=(10, 4), layout="constrained")
    for axes, names, unit in zip(figure.subplots(1, 2), (times, memory), ("seconds", "MB"), strict=True):
        for name, label in names.items():
            axes.loglog(counts, [row[name] for row in rows], marker="o", label=label)
        lowest = min(row[name] for row in rows[:1] for name in names)
        axes.loglog(counts, [lowest * count / counts[0] for count in counts], "k:", linewidth=1, label="linear growth")
        axes.set(xlabel="samples", ylabel=unit)
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(file)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=at_least(1), nargs="+", default=[1_281_167, 10_000_000, 100_000_000])
    parser.add_argument("--rounds", type=at_least(1), default=3)
    parser.add_argument("--shard-size", type=at_least(1), default=None, help="samples per shard; default: as encode")
    parser.add_argument("--folder", type=Path, default=None, help="keep the stores here, and use those that exist")
    parser.add_argument("--out", type=Path, default=None, help="JSON file for the results")
    parser.add_argument("--figure", type=Path, default=None, help="image file for the figure, such as growth.svg")
    args = parser.parse_args()
    rows: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory() as temporary:
        for count in args.samples:
            shard_size = args.shard_size or default_shard_size(count)
            path = (args.folder or Path(temporary)) / f"store-{count}-{shard_size}"
            if not path.exists():
                sparse_store(path, count, shard_size)
            rounds = [measured(path, OPEN) | measured(path, INFO) for _ in range(args.rounds)]
            row = {name: round(statistics.median(each[name] for each in rounds), 3) for name in rounds[0]}
            rows.append({"samples": count, "shard_size": shard_size} | row)
            print(json.dumps(rows[-1]), flush=True)
    if args.out:
        args.out.write_text(json.dumps({"rounds": args.rounds, "rows": rows}, indent=1) + "\n")
    if args.figure:
        draw(rows, args.figure)


if __name__ == "__main__":
    main()
