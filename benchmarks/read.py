"""Compare reading shuffled batches, cold and warm, with other formats that hold the same data.

    python benchmarks/read.py [--samples 4096] [--rounds 5] [--codec int8] [--encoder dinov2-vit-g] [--folder DIR]

A sample consists of the patch tokens of an encoder (DINOv2-B in float16: 393 KB) and SD-VAE moments (33 KB), filled
with random numbers. In every round, the readers take turns reading
- one batch, cold: 256 random samples, after the pages of the reader's files were dropped from the page cache;
- an epoch, cold, and then the same again, warm: shuffled batches of 256, for at most `--seconds`.
Streaming readers read epochs in their own order, including the start of their workers, and no single batches. Results
are medians over the rounds; the contents of all readers are compared. "CPU ms" is the CPU time per sample in the warm
epoch; "read / requested" is the bytes read from disk in the cold epoch divided by the bytes requested, for readers
without workers. `fio` reads random blocks of the size of the tokens with 16 threads, bypassing the cache: the limit of
the disk.

Formats that are not installed are skipped with a message: pip install '.[bench]'.
"""

from __future__ import annotations

import argparse
import gc
import importlib
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
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import peer_loaders
import peer_tables
import peers
from arguments import at_least
from peers import BATCH, Arrays, Read
from synthetic import synthetic_store

from repa_pipe.stores import AlignmentDataset, Batch, MapStyleDataset, open_store
from repa_pipe.stores.buffers import BufferPool
from repa_pipe.stores.layout import features_group

Epoch = Callable[[], Iterator[Arrays]]
PEERS = peers.PEERS | peer_tables.PEERS | peer_loaders.PEERS
OURS_IN_LOADER, FIO = "store in a DataLoader", "fio, 16 threads, O_DIRECT"


class OurStore:
    """The store under test, read by this package and by other libraries."""

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

    def dataset(self) -> AlignmentDataset:
        return AlignmentDataset(str(self.path), latents="sd", encoders=[self.encoder], batch_size=BATCH)

    def data_loader(self) -> Iterable[Batch]:
        from torch.utils.data import DataLoader

        options = {"shuffle": True, "num_workers": peers.WORKERS, "drop_last": True, "persistent_workers": True}
        return DataLoader(MapStyleDataset(self.dataset()), BATCH, collate_fn=MapStyleDataset.collate, **options)

    def zarr_python(self) -> Read:
        import zarr

        group = zarr.open_group(str(self.path), mode="r")
        arrays: dict[str, Any] = {array: group[name] for array, name in self.names.items()}
        # single rows are six times faster than `array.oindex[rows]`
        return lambda rows: {name: np.stack([array[i] for i in rows.tolist()]) for name, array in arrays.items()}

    def zarr_python_with_zarrs(self) -> Read:
        import zarr
        import zarrs  # noqa: F401 - registers its codec pipeline

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


def arrays_of(batches: Iterable[Batch]) -> Epoch:
    """Return a function that iterates over batches of a store again."""

    def epoch() -> Iterator[Arrays]:
        for batch in batches:
            tokens, moments = batch.patch_tokens[0].numpy(), batch.moments.numpy()
            yield {"index": batch.indices, "tokens": tokens, "moments": moments}

    return epoch


class Reader:
    """A reader of random batches, or of an epoch in its own order, and its measurements."""

    def __init__(self, open_: Callable[[], Read] | None, stream: Epoch | None, files: Path) -> None:
        self._open, self._stream, self._files = open_, stream, files
        self.random = open_() if open_ else None
        self.measurements: dict[str, list[float]] = defaultdict(list)

    def make_cold(self) -> None:
        """Drop the pages of the files from the page cache. The reader is reopened, since memory maps keep pages."""
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


def open_readers(folder: Path, args: argparse.Namespace) -> dict[str, Reader]:
    """Write the data in every format, and open it."""
    path = folder / "store"
    synthetic_store(path, args.encoder, args.samples, args.codec)
    store = OurStore(path, args.encoder)
    spec = open_store(path).group(features_group(args.encoder)).arrays[0]
    peers.SHAPES["tokens"] = (spec.sample_shape, spec.dtype)
    makers: dict[str, tuple[Callable[[], Read] | None, Epoch | None, Path]] = {
        "store, past the cache": (lambda: store.ours(direct=True), None, path),
        "store, page cache": (lambda: store.ours(direct=False), None, path),
        "store, AlignmentDataset": (None, arrays_of(store.dataset()), path),
        OURS_IN_LOADER: (None, arrays_of(store.data_loader()), path),
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
            if name in PEERS and (module := PEERS[name].module):
                importlib.import_module(module)
            if not where.exists():
                PEERS[name].write(where, blocks_of(store), args.samples)
            readers[name] = Reader(open_, stream, where)
        except ImportError as error:
            print(f"{name} skipped: {error}")
    return readers


def blocks_of(store: OurStore) -> peers.Blocks:
    read = store.ours(direct=False)
    count = len(open_store(store.path))
    for start in range(0, count, peers.BLOCK):
        rows = np.arange(start, min(start + peers.BLOCK, count))
        yield read(rows) | {"index": rows}


def drop_cache(path: Path) -> None:
    """Drop the pages of a file, or of every file in a folder, from the page cache. Needs no privileges."""
    for file in [path] if path.is_file() else path.rglob("*"):
        if file.is_file():
            fd = os.open(file, os.O_RDONLY)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(fd)


def fio_samples_per_second(folder: Path, block: int, sample_bytes: int) -> float | None:
    """Return the speed of the disk, or None if fio is not installed."""
    if shutil.which("fio") is None:
        return None
    file = max((folder / "store").rglob("tokens/c/*/*/*"), key=lambda each: each.stat().st_size)
    command = ["fio", "--name=r", f"--filename={file}", "--rw=randread", f"--bs={block}", "--direct=1", "--numjobs=16"]
    command += ["--thread", "--group_reporting", "--time_based", "--runtime=3", "--output-format=json", "--readonly"]
    found = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    return float(found["jobs"][0]["read"]["bw_bytes"]) / sample_bytes


def cpu_seconds() -> float:
    """Return the CPU time of this process and of its finished children."""
    uses = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(use.ru_utime + use.ru_stime for use in uses)


def bytes_from_disk() -> int:
    """Return the number of bytes that this process has read from disk."""
    return int(Path("/proc/self/io").read_text().split("read_bytes: ")[1].split()[0])


def run_epoch(
    reader: Reader, order: np.ndarray[Any, Any], seconds: float, expected: Read
) -> tuple[int, float, float, int]:
    """Read an epoch; return the number of samples, seconds, CPU seconds and bytes read from disk."""
    count, start, cpu, disk = 0, time.perf_counter(), cpu_seconds(), bytes_from_disk()
    batches = reader.epoch(order)
    for batch in batches:
        count += len(batch["tokens"])
        elapsed = time.perf_counter() - start
        if elapsed > seconds and reader.random is not None:
            break
    used = cpu_seconds() - cpu
    read = bytes_from_disk() - disk
    samples = expected(np.asarray(batch["index"])[:8])
    assert all(np.array_equal(batch[name][:8], samples[name]) for name in samples), "contents differ"
    return count, elapsed, used, read


def measure(readers: dict[str, Reader], args: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """Measure all readers in turn; return one row of medians per reader."""
    sample_bytes = sum(int(np.prod(shape)) * np.dtype(dtype).itemsize for shape, dtype in peers.SHAPES.values())
    block = int(np.prod(peers.SHAPES["tokens"][0])) * np.dtype(peers.SHAPES["tokens"][1]).itemsize
    expected = OurStore(folder / "store", args.encoder).ours(direct=False)
    rng = np.random.default_rng(0)
    disk: list[float | None] = []
    for number in range(args.rounds):
        disk.append(fio_samples_per_second(folder, block, sample_bytes))  # in every round: disk speed drifts
        for reader in readers.values():
            order = rng.permutation(args.samples)
            if reader.random is not None:
                for rows in (order[:BATCH], order[BATCH : 2 * BATCH]):
                    reader.make_cold()
                    start = time.perf_counter()
                    reader.random(rows)
                    reader.measurements["cold_batch"].append(BATCH / (time.perf_counter() - start))
            reader.make_cold()
            count, elapsed, _, read = run_epoch(reader, order, args.seconds, expected)
            reader.measurements["cold_epoch"].append(count / elapsed)
            if reader.random is not None:
                reader.measurements["read_over_asked"].append(read / count / sample_bytes)
            run_epoch(reader, order, args.seconds, expected)
            count, elapsed, cpu, _ = run_epoch(reader, order, args.seconds, expected)
            reader.measurements["warm_epoch"].append(count / elapsed)
            reader.measurements["cpu_ms"].append(1000 * cpu / count)
        print(f"round {number + 1} of {args.rounds} done", flush=True)
    rows = [
        {"reader": name}
        | {figure: round(statistics.median(values), 2) for figure, values in reader.measurements.items()}
        for name, reader in readers.items()
    ]
    if None not in disk:
        rows.append({"reader": FIO, "cold_batch": round(statistics.median(disk), 2)})  # type: ignore[type-var]
    return rows


COLUMNS = {
    "cold_batch": ("batch, cold", "{:,.0f}"),
    "cold_epoch": ("epoch, cold", "{:,.0f}"),
    "warm_epoch": ("epoch, warm", "{:,.0f}"),
    "cpu_ms": ("CPU ms", "{:.2f}"),
    "read_over_asked": ("read / requested", "{:.2f}"),
}


def print_table(rows: list[dict[str, Any]]) -> None:
    print(f"{'samples/s':<28}" + "".join(f"{title:>18}" for title, _ in COLUMNS.values()))
    for row in rows:
        cells = (form.format(row[key]) if key in row else "" for key, (_, form) in COLUMNS.items())
        print(f"{row['reader']:<28}" + "".join(f"{cell:>18}" for cell in cells))


def print_comparison(rows: list[dict[str, Any]]) -> None:
    """Print the speed of every other format relative to the store, and which formats are faster.

    The store is the fastest of our readers, and then, for those who stay with a DataLoader, the one in a DataLoader.
    """
    keys = [key for key in COLUMNS if key.startswith(("cold_", "warm_"))]
    ours = [row for row in rows if row["reader"].startswith("store")]
    others = [row for row in rows if row not in ours and row["reader"] != FIO]
    in_loader = [row for row in ours if row["reader"] == OURS_IN_LOADER]
    for title, chosen in (("the store", ours), (OURS_IN_LOADER, in_loader)):
        best = {key: max(row[key] for row in chosen if key in row) for key in keys if any(key in row for row in chosen)}
        print(f"\n{f'relative to {title}':<35}" + "".join(f"{COLUMNS[key][0]:>14}" for key in best))
        for row in others:
            cells = (f"{row[key] / best[key]:.2f}" if key in row else "" for key in best)
            print(f"{row['reader']:<35}" + "".join(f"{cell:>14}" for cell in cells))
        for key, fastest in best.items():
            faster = [row["reader"] for row in others if row.get(key, 0) > fastest]
            print(f"faster than {title}, {COLUMNS[key][0]}: {', '.join(faster) or 'none'}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=at_least(256), default=4096, help="samples per format")
    parser.add_argument("--rounds", type=at_least(1), default=5, help="number of rounds")
    parser.add_argument("--seconds", type=float, default=4.0, help="maximum duration of an epoch")
    parser.add_argument("--encoder", default="dinov2-vit-b", help="encoder with the shape of the tokens")
    parser.add_argument("--codec", default="float16", choices=["float16", "int8", "int4"], help="codec of the tokens")
    parser.add_argument("--only", nargs="*", help="use only readers whose name contains one of these words")
    parser.add_argument("--folder", default=None, help="folder for the data. Default: the system's temporary folder")
    parser.add_argument("--out", type=Path, default=None, help="JSON file for the results")
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        readers = open_readers(Path(folder), args)
        os.sync()
        rows = measure(readers, args, Path(folder))
    print_table(rows)
    print_comparison(rows)
    if args.out:
        settings = {"samples": args.samples, "rounds": args.rounds, "encoder": args.encoder, "codec": args.codec}
        args.out.write_text(json.dumps(settings | {"processors": os.cpu_count(), "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
