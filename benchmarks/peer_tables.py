"""Table formats of the Arrow family for the same samples: Lance, Vortex and Hugging Face datasets. See `peers.py`.

Lance and Vortex read random rows with their own engine; Hugging Face datasets are memory-mapped Arrow files.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from peers import BATCH, SHAPES, WORKERS, Arrays, Blocks, Peer, Read, binary_schema, binary_table, from_binary


def write_lance(path: Path, blocks: Blocks, count: int) -> None:
    """Write columns of fixed-size binary values, which are read faster than the fixed-size lists of the guide."""
    import lance
    import pyarrow as pa

    schema = binary_schema()
    batches = (batch for block in blocks for batch in binary_table(block, schema).to_batches())
    lance.write_dataset(pa.RecordBatchReader.from_batches(schema, batches), str(path))


def open_lance(path: Path) -> Read:
    import lance

    dataset = lance.dataset(str(path))
    return lambda rows: from_binary(dataset.take(rows.tolist(), columns=["index", *SHAPES]))


def write_vortex(path: Path, blocks: Blocks, count: int) -> None:
    import pyarrow as pa
    import vortex

    schema = pa.schema(
        [("index", pa.int64())]
        + [(name, pa.list_(_arrow_type(dtype), int(np.prod(shape)))) for name, (shape, dtype) in SHAPES.items()]
    )
    batches = (_list_batch(block, schema) for block in blocks)
    vortex.io.write(pa.RecordBatchReader.from_batches(schema, batches), str(path))


def _arrow_type(dtype: str) -> Any:
    import pyarrow as pa

    return pa.from_numpy_dtype(np.dtype(dtype))


def _list_batch(block: Arrays, schema: Any) -> Any:
    import pyarrow as pa

    columns = [pa.FixedSizeListArray.from_arrays(block[n].reshape(-1), type=schema.field(n).type) for n in SHAPES]
    return pa.record_batch([pa.array(block["index"]), *columns], schema=schema)


def open_vortex(path: Path) -> Read:
    import pyarrow as pa
    import vortex

    file = vortex.open(str(path))

    def read(rows: np.ndarray[Any, Any]) -> Arrays:
        order = np.argsort(rows)  # a scan takes ascending rows
        found = file.scan(list(SHAPES), indices=vortex.array(pa.array(rows[order]))).read_all().to_arrow_table()
        places = np.argsort(order)
        return {name: _from_lists(found[name], name)[places] for name in SHAPES}

    return read


def _from_lists(column: Any, name: str) -> np.ndarray[Any, Any]:
    shape, dtype = SHAPES[name]
    parts = [np.asarray(chunk.flatten()) for chunk in column.chunks]
    return np.concatenate(parts).reshape(-1, *shape).astype(dtype, copy=False)


def write_datasets(folder: Path, blocks: Blocks, count: int) -> None:
    import datasets

    kinds = {2: datasets.Array2D, 3: datasets.Array3D}
    features = {name: kinds[len(shape)](shape=shape, dtype=dtype) for name, (shape, dtype) in SHAPES.items()}

    def samples() -> Iterator[dict[str, Any]]:
        for block in blocks:
            for i, index in enumerate(block["index"]):
                yield {"index": int(index)} | {name: block[name][i] for name in SHAPES}

    cache = folder.with_suffix(".cache")
    made = datasets.Dataset.from_generator(
        samples,
        features=datasets.Features({"index": datasets.Value("int64")} | features),
        cache_dir=str(cache),
        fingerprint="samples",  # else it is computed from the generator, which cannot be pickled
    )
    made.save_to_disk(str(folder))
    shutil.rmtree(cache)


def open_datasets(folder: Path) -> Read:
    import datasets

    dataset = datasets.load_from_disk(str(folder)).with_format("numpy")

    def read(rows: np.ndarray[Any, Any]) -> Arrays:
        found = dataset[rows.tolist()]
        return {name: found[name] for name in SHAPES}

    return read


def stream_datasets(folder: Path) -> Iterator[Arrays]:
    """Read tensors through a DataLoader, which asks the dataset for whole batches."""
    import datasets
    from torch.utils.data import DataLoader

    dataset = datasets.load_from_disk(str(folder)).with_format("torch")
    for batch in DataLoader(dataset, batch_size=BATCH, shuffle=True, num_workers=WORKERS, drop_last=True):
        yield {name: batch[name].numpy() for name in (*SHAPES, "index")}


PEERS = {
    "Lance": Peer(write_lance, open_lance),
    "Vortex": Peer(write_vortex, open_vortex),
    "HF datasets": Peer(write_datasets, open_datasets),
    "HF datasets in a DataLoader": Peer(write_datasets, stream=stream_datasets),
}
