"""Cost of `store verify` compared with only reading the same bytes, with the same threads and read size.

    python benchmarks/verify.py                      # a store of 2 GB, deleted afterwards
    python benchmarks/verify.py --folder /mnt/disk   # on another disk

"warm": all files are in the page cache. "cold": their pages are dropped before every run. Prints medians of five runs,
which alternate between reading and verifying, of wall time and of CPU time (which other programs disturb less).
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
from synthetic import fill_group, new_store

from repa_pipe.stores.layout import ArraySpec, GroupSpec
from repa_pipe.stores.verify import verify_store
from repa_pipe.stores.verify_shard import READ_BYTES

RUNS = 5
ATTRIBUTES = {"encoder": "none", "fingerprint": {}, "num_tokens": 256, "width": 768, "codec": {"name": "none"}}
FLOAT16 = (
    ArraySpec(name="tokens", sample_shape=(256, 768), dtype="float16"),
    ArraySpec(name="cls_token", sample_shape=(768,), dtype="float16"),
)
INT4 = (
    ArraySpec(name="tokens", sample_shape=(256, 384), dtype="uint8"),
    ArraySpec(name="token_scale", sample_shape=(256,), dtype="float16"),
    ArraySpec(name="cls_token", sample_shape=(768,), dtype="float16"),
)


def write_store(path: Path, arrays: tuple[ArraySpec, ...], num_bytes: int) -> None:
    spec = GroupSpec(path="features/benchmark", arrays=arrays, attributes=ATTRIBUTES)
    manifest = new_store(path, num_bytes // spec.sample_bytes)
    fill_group(path, manifest, spec, np.random.default_rng(0))


def read_file(file: Path) -> int:
    buffer = np.empty(READ_BYTES, np.uint8).data
    fd = os.open(file, os.O_RDONLY)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_SEQUENTIAL)
    offset = 0
    while got := os.preadv(fd, [buffer], offset):
        offset += got
    os.close(fd)
    return offset


def read_store(path: Path, workers: int) -> int:
    with ThreadPoolExecutor(workers) as pool:
        return sum(pool.map(read_file, shard_files(path)))


def shard_files(path: Path) -> list[Path]:
    return sorted(file for file in path.glob("*/*/*/c/**/*") if file.is_file())


def drop_pages(path: Path) -> None:
    for file in shard_files(path):
        fd = os.open(file, os.O_RDONLY)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)


def seconds(function: Callable[[], object], before: Callable[[], object]) -> tuple[float, float]:
    """Wall time and CPU time."""
    before()
    start, start_cpu = time.perf_counter(), time.process_time()
    function()
    return time.perf_counter() - start, time.process_time() - start_cpu


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="folder for the store; default: the temporary folder")
    parser.add_argument("--gigabytes", type=float, default=2.0)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, os.cpu_count() or 1])
    args = parser.parse_args()
    print("| store | cache | threads | reading, GB/s | verify, GB/s | ratio | ratio of CPU time |")
    print("|---|---|--:|--:|--:|--:|--:|")
    for title, arrays in (("float16", FLOAT16), ("int4", INT4)):
        with tempfile.TemporaryDirectory(dir=args.folder) as folder:
            path = Path(folder) / "store"
            write_store(path, arrays, int(args.gigabytes * 1e9))
            size = read_store(path, 2)
            for cache, before in (("warm", lambda: None), ("cold", partial(drop_pages, path))):
                for workers in args.workers:
                    functions = partial(read_store, path, workers), partial(verify_store, path, workers=workers)
                    turns = [[seconds(function, before) for function in functions] for _ in range(RUNS)]
                    (reading, reading_cpu), (verifying, verifying_cpu) = np.median(turns, axis=0)
                    print(
                        f"| {title} | {cache} | {workers} | {size / reading / 1e9:.2f} | {size / verifying / 1e9:.2f} "
                        f"| {verifying / reading:.2f} | {verifying_cpu / reading_cpu:.2f} |",
                        flush=True,
                    )


if __name__ == "__main__":
    main()
