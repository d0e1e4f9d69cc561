"""Compare reading random batches from an object store with the client library's own parallel requests.

    python benchmarks/remote.py [--rounds 7] [--latencies 0 20 100] [--codec float16] [--folder DIR]

A local server (`object_server.py`, a process of its own) answers as S3 does; every answer starts after the latency, in
milliseconds. In every round, the readers take turns reading the same 256 random samples, which differ from those of
all other rounds: patch tokens of DINOv2-B and SD-VAE moments.
- `store`: `Store.read` of the samples, which are compared with their checksums, without a cache folder;
- `store, into a cache`: the same with a cache folder, which lacks the samples, so that they are written into it;
- `store, from the cache`: the same samples again;
- obstore: exactly the same byte ranges, and nothing else: `get_range` in 64 or 256 threads, `get_range_async` for all
  of them at once, and `get_ranges` per file, which merges ranges that are up to 1 MB apart.
Results are medians over the rounds, after some that are not counted. "relative" is the median of the ratios, round by
round, to the way of obstore with the highest median.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import obstore
from arguments import at_least
from object_server import serve
from synthetic import synthetic_store

from repa_pipe.stores import Store, open_store
from repa_pipe.stores.buffers import BufferPool

BATCH = 256
ENCODER = "dinov2-vit-b"
WARM_UP = 9  # rounds, in which connections are opened and the number of requests in flight is found

Ranges = list[tuple[str, int, int]]


class Obstore:
    """The ways of the client library to read many ranges."""

    def __init__(self, url: str) -> None:
        self.store = obstore.store.from_url(url, client_options={"allow_http": True})
        self.pools = {threads: ThreadPoolExecutor(threads) for threads in (16, 64, 256)}

    def ways(self) -> dict[str, Callable[[Ranges], int]]:
        return {
            "obstore, 64 threads": lambda ranges: self.in_threads(ranges, 64),
            "obstore, 256 threads": lambda ranges: self.in_threads(ranges, 256),
            "obstore, async": lambda ranges: asyncio.run(self.at_once(ranges)),
            "obstore, get_ranges": self.by_file,
        }

    def in_threads(self, ranges: Ranges, threads: int) -> int:
        def fetch(part: tuple[str, int, int]) -> int:
            return len(obstore.get_range(self.store, part[0], start=part[1], length=part[2]))

        return sum(self.pools[threads].map(fetch, ranges))

    async def at_once(self, ranges: Ranges) -> int:
        calls = [obstore.get_range_async(self.store, key, start=start, length=size) for key, start, size in ranges]
        return sum(map(len, await asyncio.gather(*calls)))

    def by_file(self, ranges: Ranges) -> int:
        files: dict[str, list[tuple[int, int]]] = defaultdict(list)
        for key, start, size in ranges:
            files[key].append((start, size))

        def fetch(key: str) -> int:
            starts, sizes = zip(*files[key], strict=True)
            return sum(map(len, obstore.get_ranges(self.store, key, starts=starts, lengths=sizes)))

        return sum(self.pools[16].map(fetch, files))


class Batches:
    """Reads batches with `Store.read`, into memory that is used again as in training."""

    def __init__(self, names: list[str]) -> None:
        self.names = names
        self.pool = BufferPool(pin_memory=False)

    def read(self, store: Store, rows: np.ndarray[Any, Any]) -> dict[str, np.ndarray[Any, Any]]:
        out = {}
        for name in self.names:
            group, array = name.rsplit("/", 1)
            (spec,) = (spec for spec in store.group(group).arrays if spec.name == array)
            out[name] = self.pool.take((len(rows), *spec.sample_shape), np.dtype(spec.dtype))
        return store.read(self.names, rows, out=out)


def array_names(store: Store) -> list[str]:
    return [f"{group}/{spec.name}" for group in store.group_names() for spec in store.group(group).arrays]


def ranges_of(store: Store, names: list[str], rows: np.ndarray[Any, Any]) -> Ranges:
    """Return the byte range of every sample, from the shard indices of the local store."""
    found = []
    for name in names:
        path, array = name.rsplit("/", 1)
        group = store.group(path)
        index = group.shard_indexes[array]
        for shard, place in zip(*(part.tolist() for part in np.divmod(rows, index.layout.shard_size)), strict=True):
            start = int(index.offsets(shard, group.commits)[place])
            key = str(index.shard_path(shard).relative_to(store.path))
            found.append((key, start, index.layout.spec.sample_bytes))
    return found


def measure(path: Path, url: str, rounds: int, cache: Path) -> dict[str, list[float]]:
    """Return samples per second of every reader and round."""
    local, library = open_store(path), Obstore(url)
    names = array_names(local)
    batches, size = Batches(names), sum(part[2] for part in ranges_of(local, names, np.array([0])))
    rates: dict[str, list[float]] = defaultdict(list)
    order = np.random.default_rng(0).permutation(len(local))

    def timed(name: str, read: Callable[[], Any]) -> Any:
        start = time.perf_counter()
        found = read()
        rates[name].append(BATCH / (time.perf_counter() - start))
        return found

    with open_store(url) as plain, open_store(url, cache=cache) as cached:
        for number in range(WARM_UP + rounds):
            rows = order[number * BATCH : (number + 1) * BATCH]
            ranges, expected = ranges_of(local, names, rows), local.read(names, rows)
            for name, way in library.ways().items():
                assert timed(name, partial(way, ranges)) == size * BATCH
            for name, store in (("store", plain), ("store, into a cache", cached), ("store, from the cache", cached)):
                found = timed(name, partial(batches.read, store, rows))
                assert all(np.array_equal(found[each], expected[each]) for each in names), "contents differ"
            if number == WARM_UP - 1:
                rates.clear()
    return rates


def summary(rates: dict[str, list[float]], latency: float) -> list[dict[str, Any]]:
    """Return a row per reader: the median rate, and the median ratio to the fastest way of obstore."""
    best = max((found for name, found in rates.items() if "obstore" in name), key=statistics.median)
    return [
        {
            "latency_ms": latency,
            "reader": name,
            "samples_per_s": round(statistics.median(found)),
            "relative": round(statistics.median(rate / other for rate, other in zip(found, best, strict=True)), 2),
        }
        for name, found in rates.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=at_least(1), default=7, help="number of rounds that are counted")
    parser.add_argument("--latencies", type=float, nargs="+", default=[0, 20, 100], help="latencies in milliseconds")
    parser.add_argument("--codec", default="float16", choices=["float16", "int8", "int4"], help="codec of the tokens")
    parser.add_argument("--folder", default=None, help="folder for the data. Default: the system's temporary folder")
    parser.add_argument("--out", type=Path, default=None, help="JSON file for the results")
    args = parser.parse_args()
    os.environ |= {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_REGION": "us-east-1"}
    rows = []
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        folder = Path(name)
        path = folder / "objects" / "bucket" / "store"
        path.parent.mkdir(parents=True)
        synthetic_store(path, ENCODER, (WARM_UP + args.rounds) * BATCH, args.codec)
        for latency in args.latencies:
            with serve(folder / "objects", latency / 1000) as url, tempfile.TemporaryDirectory(dir=folder) as cache:
                os.environ |= {"AWS_ENDPOINT": url, "AWS_ALLOW_HTTP": "true"}
                rows += summary(measure(path, "s3://bucket/store", args.rounds, Path(cache)), latency)
            for row in rows[-len({row["reader"] for row in rows}) :]:
                print(f"{latency:>5} ms  {row['reader']:<24}{row['samples_per_s']:>10,} samples/s{row['relative']:>7}")
    if args.out:
        args.out.write_text(
            json.dumps({"processors": os.cpu_count(), "codec": args.codec, "rows": rows}, indent=1) + "\n"
        )


if __name__ == "__main__":
    main()
