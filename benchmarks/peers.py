"""Other formats for the same samples, each written and read as its documentation recommends.

A sample consists of three arrays: `tokens` float16 `[256, 768]`, `moments` float32 `[8, 32, 32]`, `index` int64.
Formats with random access read globally shuffled batches; streaming formats read an epoch in their own shuffled order.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

TOKENS, MOMENTS = ((256, 768), "float16"), ((8, 32, 32), "float32")
SHAPES = {"tokens": TOKENS, "moments": MOMENTS}
BATCH = 256
BLOCK = 128  # samples per write
ROW_GROUP = 16  # rows per row group of parquet
WORKERS = os.cpu_count() or 1

Arrays = dict[str, np.ndarray[Any, Any]]
Read = Callable[[np.ndarray[Any, Any]], Arrays]
Blocks = Iterator[Arrays]  # blocks of samples, with "index"


@dataclass(frozen=True)
class Peer:
    """A format. `open` returns a reader of random batches, `stream` an epoch of batches in the format's own order.

    `module` is what reading imports, where writing does not.
    """

    write: Callable[[Path, Blocks, int], None]
    open: Callable[[Path], Read] | None = None
    stream: Callable[[Path], Iterator[Arrays]] | None = None
    module: str | None = None


def write_npy(folder: Path, blocks: Blocks, count: int) -> None:
    folder.mkdir()
    for block in blocks:
        for i, index in enumerate(block["index"]):
            for name in SHAPES:
                np.save(folder / f"{index}.{name}.npy", block[name][i])


def open_npy(folder: Path) -> Read:
    return lambda rows: {name: np.stack([np.load(folder / f"{i}.{name}.npy") for i in rows]) for name in SHAPES}


def stream_npy(folder: Path) -> Iterator[Arrays]:
    """Read like the published trainer: a map-style dataset of single files in a DataLoader."""
    count = len(list(folder.glob("*.tokens.npy")))
    yield from _load_batches(_NpyFiles(folder, count), shuffle=True)


class _NpyFiles:
    def __init__(self, folder: Path, count: int) -> None:
        self.folder, self.count = folder, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, i: int) -> Arrays:
        return {name: np.load(self.folder / f"{i}.{name}.npy") for name in SHAPES} | {"index": np.array(i)}


def _load_batches(dataset: Any, shuffle: bool = False) -> Iterator[Arrays]:
    from torch.utils.data import DataLoader

    loader = DataLoader(dataset, batch_size=BATCH, shuffle=shuffle, num_workers=WORKERS, drop_last=True)
    for batch in loader:
        yield {name: batch[name].numpy() for name in (*SHAPES, "index")}


def write_hdf5(path: Path, blocks: Blocks, count: int) -> None:
    import h5py

    with h5py.File(path, "w") as file:
        sets = {
            n: file.create_dataset(n, (count, *shape), dtype, chunks=(1, *shape))
            for n, (shape, dtype) in SHAPES.items()
        }
        for block in blocks:
            rows = slice(int(block["index"][0]), int(block["index"][-1]) + 1)
            for name, data in sets.items():
                data[rows] = block[name]


def open_hdf5(path: Path) -> Read:
    import h5py

    file = h5py.File(path, "r")

    def read(rows: np.ndarray[Any, Any]) -> Arrays:
        out = {name: np.empty((len(rows), *shape), dtype) for name, (shape, dtype) in SHAPES.items()}
        for name, target in out.items():
            for place in np.argsort(rows).tolist():  # single rows are ten times faster than a list of rows
                file[name].read_direct(target, np.s_[rows[place]], np.s_[place])
        return out

    return read


def binary_schema() -> Any:
    import pyarrow as pa

    sizes = {name: int(np.prod(shape)) * np.dtype(dtype).itemsize for name, (shape, dtype) in SHAPES.items()}
    return pa.schema([("index", pa.int64()), *((name, pa.binary(size)) for name, size in sizes.items())])


def binary_table(block: Arrays, schema: Any) -> Any:
    import pyarrow as pa

    columns = [pa.array([row.tobytes() for row in block[name]], schema.field(name).type) for name in SHAPES]
    return pa.table([pa.array(block["index"]), *columns], schema=schema)


def from_binary(table: Any) -> Arrays:
    found: Arrays = {"index": table["index"].to_numpy()}
    for name, (shape, dtype) in SHAPES.items():
        column = table[name].combine_chunks()
        column = column.chunk(0) if hasattr(column, "chunk") else column
        found[name] = np.frombuffer(column.buffers()[1], dtype).reshape(-1, *shape)[column.offset :][: len(column)]
    return found


def write_parquet(path: Path, blocks: Blocks, count: int) -> None:
    import pyarrow.parquet as pq

    schema = binary_schema()
    with pq.ParquetWriter(path, schema, compression="none", use_dictionary=False, write_statistics=False) as writer:
        for block in blocks:
            writer.write_table(binary_table(block, schema), row_group_size=ROW_GROUP)


def stream_parquet(path: Path) -> Iterator[Arrays]:
    """Read row groups of 16 in random order. A batch consists of 16 groups, so only blocks are shuffled."""
    import pyarrow.parquet as pq

    file = pq.ParquetFile(path, memory_map=False)
    groups = np.random.default_rng(0).permutation(file.num_row_groups)
    per_batch = BATCH // ROW_GROUP
    for start in range(0, len(groups) - per_batch + 1, per_batch):
        yield from_binary(file.read_row_groups(groups[start : start + per_batch].tolist()))


def open_parquet(path: Path) -> Read:
    """Read random rows; the row groups that contain them are read completely."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    file = pq.ParquetFile(path, memory_map=False)

    def read(rows: np.ndarray[Any, Any]) -> Arrays:
        groups = np.unique(rows // ROW_GROUP)
        found = from_binary(pa.table(file.read_row_groups(groups.tolist())))
        places = np.searchsorted(groups, rows // ROW_GROUP) * ROW_GROUP + rows % ROW_GROUP
        return {name: found[name][places] for name in SHAPES}

    return read


def write_arrow(path: Path, blocks: Blocks, count: int) -> None:
    import pyarrow as pa

    schema = binary_schema()
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        for block in blocks:
            writer.write_table(binary_table(block, schema))


def open_arrow(path: Path) -> Read:
    import pyarrow as pa

    table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
    return lambda rows: from_binary(table.take(rows))


def write_safetensors(folder: Path, blocks: Blocks, count: int) -> None:
    from safetensors.numpy import save_file

    folder.mkdir()
    for block in blocks:
        save_file(block, folder / f"{int(block['index'][0]) // BLOCK:05d}.safetensors")


def open_safetensors(folder: Path) -> Read:
    from safetensors import safe_open

    files = [safe_open(file, "np") for file in sorted(folder.iterdir())]
    slices = {name: [file.get_slice(name) for file in files] for name in SHAPES}
    return lambda rows: {
        name: np.stack([slices[name][i // BLOCK][i % BLOCK] for i in rows.tolist()]) for name in SHAPES
    }


def _pack(block: Arrays, i: int) -> bytes:
    return b"".join(block[name][i].tobytes() for name in ("index", *SHAPES))


def unpack(data: bytes, shapes: dict[str, tuple[tuple[int, ...], str]]) -> Arrays:
    found, start = {"index": np.frombuffer(data, np.int64, 1)[0]}, 8
    for name, (shape, dtype) in shapes.items():
        array = np.frombuffer(data, dtype, int(np.prod(shape)), start).reshape(shape)
        found[name], start = array, start + array.nbytes
    return found


def stack(samples: Sequence[Arrays]) -> Arrays:
    return {name: np.stack([sample[name] for sample in samples]) for name in samples[0]}


def write_array_record(path: Path, blocks: Blocks, count: int) -> None:
    from array_record.python.array_record_module import ArrayRecordWriter

    writer = ArrayRecordWriter(str(path), "group_size:1,uncompressed")
    for block in blocks:
        for i in range(len(block["index"])):
            writer.write(_pack(block, i))
    writer.close()


def open_array_record(path: Path) -> Read:
    from array_record.python.array_record_module import ArrayRecordReader

    reader = ArrayRecordReader(str(path), "readahead_buffer_size:0")
    return lambda rows: stack([unpack(data, SHAPES) for data in reader.read(rows.tolist())])


def write_mds(folder: Path, blocks: Blocks, count: int) -> None:
    from streaming import MDSWriter

    columns = {"index": "int"} | {
        name: f"ndarray:{dtype}:{','.join(map(str, shape))}" for name, (shape, dtype) in SHAPES.items()
    }
    with MDSWriter(out=str(folder), columns=columns, size_limit=1 << 28) as writer:
        for block in blocks:
            for i, index in enumerate(block["index"]):
                writer.write({"index": int(index)} | {name: block[name][i] for name in SHAPES})


def stream_mds(folder: Path) -> Iterator[Arrays]:
    from streaming import StreamingDataset
    from streaming.base.util import clean_stale_shared_memory

    clean_stale_shared_memory()
    dataset = StreamingDataset(local=str(folder), shuffle=True, batch_size=BATCH)
    yield from _load_batches(dataset)


def write_webdataset(folder: Path, blocks: Blocks, count: int) -> None:
    import webdataset

    folder.mkdir()
    maxcount = min(512, count // WORKERS)  # every worker needs a shard
    with webdataset.ShardWriter(str(folder / "%05d.tar"), maxcount=maxcount, verbose=0) as writer:
        for block in blocks:
            for i, index in enumerate(block["index"]):
                writer.write({"__key__": f"{index:08d}"} | {f"{name}.npy": _npy(block[name][i]) for name in SHAPES})


def _npy(array: np.ndarray[Any, Any]) -> bytes:
    sink = io.BytesIO()
    np.save(sink, array)
    return sink.getvalue()


def stream_webdataset(folder: Path) -> Iterator[Arrays]:
    import webdataset

    files = [str(file) for file in sorted(folder.iterdir())]
    dataset = webdataset.WebDataset(files, shardshuffle=len(files), seed=0).shuffle(512).decode()
    dataset = dataset.map(_from_webdataset)
    yield from _load_batches(dataset)


def _from_webdataset(sample: dict[str, Any]) -> Arrays:
    return {name: sample[f"{name}.npy"] for name in SHAPES} | {"index": np.array(int(sample["__key__"]))}


def write_litdata(folder: Path, blocks: Blocks, count: int) -> None:
    from litdata.streaming.writer import BinaryWriter

    folder.mkdir()
    writer = BinaryWriter(str(folder), chunk_bytes="64MB")
    for block in blocks:
        for i, index in enumerate(block["index"]):
            writer[int(index)] = {"index": int(index)} | {name: block[name][i] for name in SHAPES}
    writer.done()
    writer.merge()


def stream_litdata(folder: Path) -> Iterator[Arrays]:
    from litdata import StreamingDataLoader, StreamingDataset

    dataset = StreamingDataset(str(folder), shuffle=True)
    for batch in StreamingDataLoader(dataset, batch_size=BATCH, num_workers=WORKERS, drop_last=True):
        yield {name: batch[name].numpy() for name in (*SHAPES, "index")}


PEERS = {
    ".npy a sample": Peer(write_npy, open_npy),
    ".npy in a DataLoader": Peer(write_npy, stream=stream_npy),
    "HDF5": Peer(write_hdf5, open_hdf5),
    "parquet": Peer(write_parquet, open_parquet),
    "parquet, shuffled by block": Peer(write_parquet, stream=stream_parquet),
    "Arrow": Peer(write_arrow, open_arrow),
    "safetensors": Peer(write_safetensors, open_safetensors),
    "ArrayRecord": Peer(write_array_record, open_array_record),
    "MosaicML MDS": Peer(write_mds, stream=stream_mds),
    "WebDataset": Peer(write_webdataset, stream=stream_webdataset),
    "LitData": Peer(write_litdata, stream=stream_litdata),
}
