"""Data loaders that bring no format: grain over ArrayRecord, and SPDL over single files. See `peers.py`."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from peers import BATCH, SHAPES, WORKERS, Arrays, Peer, stack, unpack, write_array_record, write_npy

THREADS = 16  # of SPDL; as many as those of grain


def stream_grain(path: Path, workers: int = 0) -> Iterator[Arrays]:
    """Read with the Dataset API of grain: a global shuffle and its 16 threads, in this process or in each worker."""
    import grain

    dataset = (
        grain.MapDataset.source(grain.sources.ArrayRecordDataSource(str(path)))
        .shuffle(seed=0)
        .map(partial(unpack, shapes=dict(SHAPES)))  # workers are new processes, with the default shapes
        .to_iter_dataset()
        .batch(BATCH, drop_remainder=True)
    )
    yield from dataset.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers)) if workers else dataset


def stream_spdl(folder: Path) -> Iterator[Arrays]:
    """Read single files with a pipeline of SPDL: its threads and its decoder of .npy, without processes."""
    import spdl.io
    from spdl.pipeline import PipelineBuilder

    def load(i: int) -> Arrays:
        arrays = {name: spdl.io.load_npy((folder / f"{i}.{name}.npy").read_bytes()) for name in SHAPES}
        return arrays | {"index": np.array(i)}

    count = len(list(folder.glob("*.tokens.npy")))
    source: list[int] = np.random.default_rng(0).permutation(count).tolist()
    builder: Any = PipelineBuilder().add_source(source).pipe(load, concurrency=THREADS)
    builder = builder.aggregate(BATCH, drop_last=True).pipe(stack).add_sink(2)
    pipeline = builder.build(num_threads=THREADS)
    with pipeline.auto_stop():
        yield from pipeline


PEERS = {
    "grain over ArrayRecord": Peer(write_array_record, stream=stream_grain, module="grain"),
    "grain with workers": Peer(write_array_record, stream=partial(stream_grain, workers=WORKERS), module="grain"),
    "SPDL over .npy": Peer(write_npy, stream=stream_spdl, module="spdl.io"),
}
