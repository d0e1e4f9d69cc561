"""Random batches from a store: samples a second, cold and warm, against other ways to read the same data.

    python benchmarks/read.py [--samples 4096] [--batches 8] [--rounds 5] [--folder DIR]

Samples are DINOv2-B tokens in float16 and SD-VAE moments, 426 KB each, in random numbers. Every reader reads globally
shuffled batches of 256, in turn within a round; medians over rounds are reported. Cold: every file's pages are dropped
from the page cache before each batch. Warm: the batches are read twice and the second time counts. Readers that are not
installed are left out and named. `fio` reads random blocks of a sample's size past the cache with 16 threads: what the
disk can do.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from synthetic import synthetic_store

from repa_pipe.stores import open_store
from repa_pipe.stores.buffers import BufferPool

ENCODER = "dinov2-vit-b"
BATCH = 256
NAMES = ["latents/sd/moments", f"features/{ENCODER}/tokens"]
Read = Callable[[np.ndarray[Any, Any]], dict[str, np.ndarray[Any, Any]]]


def our_reader(path: Path, direct: bool) -> Read:
    store = open_store(path)
    pool = BufferPool(pin_memory=False)
    layouts = {name: store.group(name.rsplit("/", 1)[0]).readers[name.rsplit("/", 1)[1]].layout for name in NAMES}

    def read(indices: np.ndarray[Any, Any]) -> dict[str, np.ndarray[Any, Any]]:
        out = {name: pool.take((len(indices), *item.spec.sample_shape), item.dtype) for name, item in layouts.items()}
        return store.read(NAMES, indices, out=out, direct=direct)

    return read


def zarr_reader(path: Path) -> Read:
    import zarr

    group = zarr.open_group(str(path), mode="r")
    arrays: dict[str, Any] = {name: group[name] for name in NAMES}
    return lambda indices: {name: array.oindex[indices] for name, array in arrays.items()}


def tensorstore_reader(path: Path) -> Read:
    import tensorstore

    def opened(name: str) -> Any:
        spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": f"{path / name}/"}}
        return tensorstore.open(spec, open=True, read=True).result()

    arrays = {name: opened(name) for name in NAMES}

    def read(indices: np.ndarray[Any, Any]) -> dict[str, np.ndarray[Any, Any]]:
        futures = {name: [array[int(i)].read() for i in indices] for name, array in arrays.items()}
        return {name: np.stack([future.result() for future in found]) for name, found in futures.items()}

    return read


def npy_reader(path: Path) -> Read:
    """One .npy a sample and array, as REPA's release stores latents."""
    folder = path.with_name("npy")
    if not folder.exists():
        store = open_store(path)
        for name in NAMES:
            (folder / name).mkdir(parents=True)
            for start in range(0, len(store), BATCH):
                rows = range(start, min(start + BATCH, len(store)))
                for i, row in zip(rows, store.read([name], rows)[name], strict=True):
                    np.save(folder / name / f"{i}.npy", row)
    return lambda indices: {name: np.stack([np.load(folder / name / f"{i}.npy") for i in indices]) for name in NAMES}


READERS: dict[str, Callable[[Path], Read]] = {
    "store, past the cache": lambda path: our_reader(path, direct=True),
    "store, page cache": lambda path: our_reader(path, direct=False),
    "zarr-python": zarr_reader,
    "tensorstore": tensorstore_reader,
    ".npy a sample": npy_reader,
}


def drop_cache(folder: Path) -> None:
    """Drop the pages of every file below `folder` from the page cache; no rights are needed for it."""
    for file in folder.rglob("*"):
        if file.is_file():
            fd = os.open(file, os.O_RDONLY)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(fd)


def fio_samples_a_second(path: Path, sample_bytes: int) -> float | None:
    if shutil.which("fio") is None:
        return None
    file = max((path / NAMES[1]).rglob("c/*/*/*"), key=lambda each: each.stat().st_size)
    block = open_store(path).group(f"features/{ENCODER}").arrays[0].sample_bytes
    command = ["fio", "--name=r", f"--filename={file}", "--rw=randread", f"--bs={block}", "--direct=1", "--numjobs=16"]
    command += ["--thread", "--group_reporting", "--time_based", "--runtime=5", "--output-format=json", "--readonly"]
    found = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    return float(found["jobs"][0]["read"]["bw_bytes"]) / sample_bytes


def measure(args: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    path = folder / "store"
    synthetic_store(path, ENCODER, args.samples)
    os.sync()
    expected = our_reader(path, direct=False)
    readers: dict[str, Read] = {}
    for name, make in READERS.items():
        try:
            readers[name] = make(path)
        except ImportError as error:
            print(f"{name} left out: {error}")
    rng = np.random.default_rng(0)
    batches = [rng.permutation(args.samples)[:BATCH] for _ in range(args.batches)]
    rates: dict[str, dict[str, list[float]]] = {name: {"cold": [], "warm": []} for name in readers}
    sample_bytes = sum(open_store(path).group(name).spec.sample_bytes for name in ("latents/sd", f"features/{ENCODER}"))
    disk: list[Any] = []
    for _ in range(args.rounds):
        disk.append(fio_samples_a_second(path, sample_bytes))  # in every round: disks drift
        for name, read in readers.items():
            for indices in batches[:2]:
                drop_cache(folder)
                rates[name]["cold"].append(_rate(read, [indices]))
            _rate(read, batches)
            rates[name]["warm"].append(_rate(read, batches))
            got, wanted = read(batches[0]), expected(batches[0])
            assert all(np.array_equal(got[key], wanted[key]) for key in NAMES), name
    rows: list[dict[str, Any]] = [
        {"reader": name, **{kind: round(statistics.median(values)) for kind, values in found.items()}}
        for name, found in rates.items()
    ]
    if None not in disk:
        rows.append({"reader": "fio, 16 threads, O_DIRECT", "cold": round(statistics.median(disk)), "warm": None})
    return rows


def _rate(read: Read, batches: list[np.ndarray[Any, Any]]) -> float:
    start = time.perf_counter()
    for indices in batches:
        read(indices)
    return sum(map(len, batches)) / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=4096)
    parser.add_argument("--batches", type=int, default=8, help="batches of a warm round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", default=None, help="where to write the data; default: the temporary folder")
    parser.add_argument("--out", type=Path, default=None, help="JSON file for the rows")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        rows = measure(args, Path(folder))
    print(f"{'samples/s':<28}{'cold':>8}{'warm':>8}")
    for row in rows:
        print(f"{row['reader']:<28}{row['cold']:>8,}{row['warm'] or '':>8}")
    if args.out:
        args.out.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
