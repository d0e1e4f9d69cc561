"""Compare the speed of the store's writer with zarr-python and tensorstore writing the same array.

    python benchmarks/write.py [--samples 2048] [--rounds 5] [--folder DIR]

Each writer writes patch tokens of DINOv2-B in float16, `[N, 256, 768]`, from memory, shard by shard: 512 samples per
shard, one sample per inner chunk, no compressor. The time ends when the files are on disk (fsync). The store's writer
also computes a checksum of every sample and writes commit records. Writers take turns; results are medians over the
rounds.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from arguments import at_least
from synthetic import features_template, new_store

from repa_pipe.stores.writer import ShardWriter, create_group

SHARD, SHAPE = 512, (256, 768)
Block = np.ndarray[Any, Any]


def store_writer(path: Path, count: int, block: Block) -> None:
    manifest, spec = new_store(path, count, SHARD), features_template("dinov2-vit-b")
    create_group(path, manifest, spec)
    for shard in range(count // SHARD):
        with ShardWriter(path, manifest, spec, shard) as writer:
            for start in range(0, SHARD, 64):  # in batches, like encoding
                writer.append({"tokens": block[start : start + 64]})
            writer.commit(np.zeros(SHARD, np.uint32), ())


def zarr_python(path: Path, count: int, block: Block) -> None:
    import zarr

    array = zarr.create_array(
        str(path), shape=(count, *SHAPE), dtype="float16", chunks=(1, *SHAPE), shards=(SHARD, *SHAPE), compressors=None
    )
    for start in range(0, count, SHARD):
        array[start : start + SHARD] = block
    fsync_files(path)


def tensorstore(path: Path, count: int, block: Block) -> None:
    import tensorstore

    sharding = {
        "name": "sharding_indexed",
        "configuration": {
            "chunk_shape": [1, *SHAPE],
            "codecs": [{"name": "bytes", "configuration": {"endian": "little"}}],
            "index_codecs": [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}],
        },
    }
    grid = {"name": "regular", "configuration": {"chunk_shape": [SHARD, *SHAPE]}}
    metadata = {"shape": [count, *SHAPE], "data_type": "float16", "chunk_grid": grid, "codecs": [sharding]}
    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": f"{path}/"}, "metadata": metadata}
    array = tensorstore.open(spec, create=True).result()
    for start in range(0, count, SHARD):
        array[start : start + SHARD].write(block).result()
    fsync_files(path)


def fsync_files(path: Path) -> None:
    for file in path.rglob("*"):
        fd = os.open(file, os.O_RDONLY)
        os.fsync(fd)
        os.close(fd)


WRITERS: dict[str, Callable[[Path, int, Block], None]] = {
    "store": store_writer,
    "zarr-python": zarr_python,
    "tensorstore": tensorstore,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=at_least(512), default=2048, help="samples per array, a multiple of 512")
    parser.add_argument("--rounds", type=at_least(1), default=5, help="number of rounds")
    parser.add_argument("--folder", default=None, help="folder for the data. Default: the system's temporary folder")
    parser.add_argument("--out", type=Path, default=None, help="JSON file for the results")
    args = parser.parse_args()
    block = np.random.default_rng(0).standard_normal((SHARD, *SHAPE), np.float32).astype("float16")
    size = block.nbytes * (args.samples // SHARD) / 1e6
    speeds: dict[str, list[float]] = {name: [] for name in WRITERS}
    for _ in range(args.rounds):
        for name, write in WRITERS.items():
            folder = Path(tempfile.mkdtemp(dir=args.folder))
            try:
                os.sync()
                start = time.perf_counter()
                write(folder / "array", args.samples, block)
                speeds[name].append(size / (time.perf_counter() - start))
            except ImportError as error:
                print(f"{name} skipped: {error}")
            finally:
                shutil.rmtree(folder)
    rows = [{"writer": name, "MB_per_s": round(statistics.median(values))} for name, values in speeds.items() if values]
    for row in rows:
        print(f"{row['writer']:<14}{row['MB_per_s']:>8,} MB/s")
    if args.out:
        args.out.write_text(json.dumps({"samples": args.samples, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
