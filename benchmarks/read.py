"""Shuffled batches: samples a second, cold and warm, beside other formats that hold the same data.

    python benchmarks/read.py [--samples 4096] [--rounds 5] [--codec int8] [--encoder dinov2-vit-g] [--folder DIR]

A sample is the patch tokens of an encoder (DINOv2-B in float16: 393 KB) and SD-VAE moments (33 KB), in random numbers.
In every round each reader in turn reads
- one batch, cold: 256 random samples, after every file's pages were dropped from the page cache;
- an epoch, cold, and then the same again, warm: shuffled batches of 256, for at most `--seconds`.
Readers made for streaming give an epoch in their own order, start of their workers included, and no single batch.
Medians over the rounds are reported; every reader's contents are compared. CPU is processor time of the warm epoch;
"read / asked" is what the cold epoch took from the disk over what was asked for, where the reader has no workers.
`fio` reads random blocks of the tokens' size past the cache with 16 threads: what the disk can do.

Peers that are not installed are left out and named: pip install '.[bench]'.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import resource
import shutil
import statistics
import subprocess
import tempfile
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import peers
from peers import BATCH, PEERS, Arrays, Read
from synthetic import synthetic_store

from repa_pipe.stores import AlignmentDataset, MapStyleDataset, open_store
from repa_pipe.stores.buffers import BufferPool
from repa_pipe.stores.layout import features_group

Epoch = Callable[[], Iterator[Arrays]]


class OurStore:
    """The store under test and the other programs that read it."""

    def __init__(self, path: Path, encoder: str) -> None:
        self.path, self.encoder = path, encoder
        self.names = {"tokens": f"{features_group(encoder)}/tokens", "moments": "latents/sd/moments"}

    def ours(self, direct: bool) -> Read:
        store, pool = open_store(self.path), BufferPool(pin_memory=False)

        def read(rows: np.ndarray[Any, Any]) -> Arrays:
            out = {
                name: pool.take((len(rows), *peers.SHAPES[array][0]), np.dtype(peers.SHAPES[array][1]))
                for array, name in self.names.items()
            }
            found = store.read(list(self.names.values()), rows, out=out, direct=direct)
            return {array: found[name] for array, name in self.names.items()}

        return read

    def in_a_data_loader(self) -> Iterator[Arrays]:
        from torch.utils.data import DataLoader

        with open_store(self.path) as store:
            dataset = AlignmentDataset(store, latents="sd", encoders=[self.encoder], batch_size=BATCH)
            options = {"shuffle": True, "num_workers": peers.WORKERS, "drop_last": True}
            for batch in DataLoader(MapStyleDataset(dataset), BATCH, collate_fn=MapStyleDataset.collate, **options):
                tokens, moments = batch.patch_tokens[0].numpy(), batch.moments.numpy()
                yield {"index": batch.indices, "tokens": tokens, "moments": moments}

    def zarr_python(self) -> Read:
        import zarr

        group = zarr.open_group(str(self.path), mode="r")
        arrays: dict[str, Any] = {array: group[name] for array, name in self.names.items()}
        # one by one: six times faster than `array.oindex[rows]`
        return lambda rows: {name: np.stack([array[i] for i in rows.tolist()]) for name, array in arrays.items()}

    def zarr_python_with_zarrs(self) -> Read:
        import zarr
        import zarrs  # noqa: F401 - registers its pipeline

        with zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"}):
            return self.zarr_python()

    def tensorstore(self) -> Read:
        import tensorstore

        def opened(name: str) -> Any:
            spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": f"{self.path / name}/"}}
            return tensorstore.open(spec, open=True, read=True).result()

        arrays = {array: opened(name) for array, name in self.names.items()}

        def read(rows: np.ndarray[Any, Any]) -> Arrays:
            futures = {name: [array[int(i)].read() for i in rows] for name, array in arrays.items()}
            return {name: np.stack([future.result() for future in found]) for name, found in futures.items()}

        return read


class Reader:
    """One contestant: random batches, or an epoch in its own order."""

    def __init__(self, open_: Callable[[], Read] | None, stream: Epoch | None, files: Path) -> None:
        self._open, self._stream, self._files = open_, stream, files
        self.random = open_() if open_ else None
        self.found: dict[str, list[float]] = defaultdict(list)

    def make_cold(self) -> None:
        """Drop the pages of its files from the page cache; those of open memory maps would stay."""
        self.random = None
        gc.collect()
        drop_cache(self._files)
        self.random = self._open() if self._open else None

    def epoch(self, order: np.ndarray[Any, Any]) -> Iterator[Arrays]:
        if self.random is None:
            assert self._stream is not None
            yield from self._stream()
            return
        for start in range(0, len(order) - BATCH + 1, BATCH):
            rows = order[start : start + BATCH]
            yield self.random(rows) | {"index": rows}


def contestants(folder: Path, args: argparse.Namespace) -> dict[str, Reader]:
    """Write the data in every format, and open it."""
    path = folder / "store"
    synthetic_store(path, args.encoder, args.samples, args.codec)
    store = OurStore(path, args.encoder)
    spec = open_store(path).group(features_group(args.encoder)).arrays[0]
    peers.SHAPES["tokens"] = (spec.sample_shape, spec.dtype)
    makers: dict[str, tuple[Callable[[], Read] | None, Epoch | None, Path]] = {
        "store, past the cache": (lambda: store.ours(direct=True), None, path),
        "store, page cache": (lambda: store.ours(direct=False), None, path),
        "store in a DataLoader": (None, store.in_a_data_loader, path),
        "tensorstore": (store.tensorstore, None, path),
        "zarr-python with zarrs": (store.zarr_python_with_zarrs, None, path),
        "zarr-python": (store.zarr_python, None, path),
    }
    for name, peer in PEERS.items():
        where = folder / peer.write.__name__
        makers[name] = (
            (lambda peer=peer, where=where: peer.open(where)) if peer.open else None,
            (lambda peer=peer, where=where: peer.stream(where)) if peer.stream else None,
            where,
        )
    readers = {}
    for name, (open_, stream, where) in makers.items():
        if args.only and not any(word in name for word in args.only):
            continue
        try:
            if not where.exists():
                PEERS[name].write(where, blocks_of(store), args.samples)
            readers[name] = Reader(open_, stream, where)
        except ImportError as error:
            print(f"{name} left out: {error}")
    return readers


def blocks_of(store: OurStore) -> peers.Blocks:
    read = store.ours(direct=False)
    count = len(open_store(store.path))
    for start in range(0, count, peers.BLOCK):
        rows = np.arange(start, min(start + peers.BLOCK, count))
        yield read(rows) | {"index": rows}


def drop_cache(path: Path) -> None:
    """Drop the pages of a file, or of every file below a folder, from the page cache; no rights are needed for it."""
    for file in [path] if path.is_file() else path.rglob("*"):
        if file.is_file():
            fd = os.open(file, os.O_RDONLY)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(fd)


def fio_samples_a_second(folder: Path, block: int, sample_bytes: int) -> float | None:
    if shutil.which("fio") is None:
        return None
    file = max((folder / "store").rglob("tokens/c/*/*/*"), key=lambda each: each.stat().st_size)
    command = ["fio", "--name=r", f"--filename={file}", "--rw=randread", f"--bs={block}", "--direct=1", "--numjobs=16"]
    command += ["--thread", "--group_reporting", "--time_based", "--runtime=3", "--output-format=json", "--readonly"]
    found = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    return float(found["jobs"][0]["read"]["bw_bytes"]) / sample_bytes


def processor_seconds() -> float:
    uses = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(use.ru_utime + use.ru_stime for use in uses)


def bytes_from_disk() -> int:
    return int(Path("/proc/self/io").read_text().split("read_bytes: ")[1].split()[0])


def run_epoch(
    reader: Reader, order: np.ndarray[Any, Any], seconds: float, expected: Read
) -> tuple[int, float, float, int]:
    """Samples read, and the seconds, processor seconds and bytes from the disk that it took."""
    count, start, cpu, disk = 0, time.perf_counter(), processor_seconds(), bytes_from_disk()
    batches = reader.epoch(order)
    for batch in batches:
        count += len(batch["tokens"])
        elapsed = time.perf_counter() - start
        if elapsed > seconds and reader.random is not None:
            break
    used = processor_seconds() - cpu
    read = bytes_from_disk() - disk
    wanted = expected(np.asarray(batch["index"])[:8])
    assert all(np.array_equal(batch[name][:8], wanted[name]) for name in wanted), "other contents"
    return count, elapsed, used, read


def measure(readers: dict[str, Reader], args: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    sample_bytes = sum(int(np.prod(shape)) * np.dtype(dtype).itemsize for shape, dtype in peers.SHAPES.values())
    block = int(np.prod(peers.SHAPES["tokens"][0])) * np.dtype(peers.SHAPES["tokens"][1]).itemsize
    expected = OurStore(folder / "store", args.encoder).ours(direct=False)
    rng = np.random.default_rng(0)
    disk: list[float | None] = []
    for number in range(args.rounds):
        disk.append(fio_samples_a_second(folder, block, sample_bytes))  # in every round: disks drift
        for reader in readers.values():
            order = rng.permutation(args.samples)
            if reader.random is not None:
                for rows in (order[:BATCH], order[BATCH : 2 * BATCH]):
                    reader.make_cold()
                    start = time.perf_counter()
                    reader.random(rows)
                    reader.found["cold_batch"].append(BATCH / (time.perf_counter() - start))
            reader.make_cold()
            count, elapsed, _, read = run_epoch(reader, order, args.seconds, expected)
            reader.found["cold_epoch"].append(count / elapsed)
            if reader.random is not None:
                reader.found["read_over_asked"].append(read / count / sample_bytes)
            run_epoch(reader, order, args.seconds, expected)
            count, elapsed, cpu, _ = run_epoch(reader, order, args.seconds, expected)
            reader.found["warm_epoch"].append(count / elapsed)
            reader.found["cpu_ms"].append(1000 * cpu / count)
        print(f"round {number + 1} of {args.rounds} done", flush=True)
    rows = [
        {"reader": name} | {what: round(statistics.median(values), 2) for what, values in reader.found.items()}
        for name, reader in readers.items()
    ]
    if None not in disk:
        rows.append({"reader": "fio, 16 threads, O_DIRECT", "cold_batch": round(statistics.median(disk), 2)})  # type: ignore[type-var]
    return rows


COLUMNS = {
    "cold_batch": ("batch, cold", "{:,.0f}"),
    "cold_epoch": ("epoch, cold", "{:,.0f}"),
    "warm_epoch": ("epoch, warm", "{:,.0f}"),
    "cpu_ms": ("CPU ms", "{:.2f}"),
    "read_over_asked": ("read / asked", "{:.2f}"),
}


def show(rows: list[dict[str, Any]]) -> None:
    print(f"{'samples/s':<28}" + "".join(f"{title:>13}" for title, _ in COLUMNS.values()))
    for row in rows:
        cells = (form.format(row[key]) if key in row else "" for key, (_, form) in COLUMNS.items())
        print(f"{row['reader']:<28}" + "".join(f"{cell:>13}" for cell in cells))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4.0, help="of an epoch at most")
    parser.add_argument("--encoder", default="dinov2-vit-b")
    parser.add_argument("--codec", default="float16", choices=["float16", "int8", "int4"])
    parser.add_argument("--only", nargs="*", help="readers whose names contain one of these words")
    parser.add_argument("--folder", default=None, help="where to write the data; default: the temporary folder")
    parser.add_argument("--out", type=Path, default=None, help="JSON file for the rows")
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        readers = contestants(Path(folder), args)
        os.sync()
        rows = measure(readers, args, Path(folder))
    show(rows)
    if args.out:
        facts = {"samples": args.samples, "rounds": args.rounds, "encoder": args.encoder, "codec": args.codec}
        args.out.write_text(json.dumps(facts | {"processors": os.cpu_count(), "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
