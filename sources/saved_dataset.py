"""Folders that `save_to_disk` of Hugging Face's datasets writes: a Dataset, or a DatasetDict of splits."""

from pathlib import Path
from typing import Any

from ..converter import read_json
from ..errors import SourceError
from .files import Files, skipped_files
from .splits import select_split

_DICT_FILE = "dataset_dict.json"  # of a DatasetDict: {"splits": ["train", "test"]}
_STATE_FILE = "state.json"  # of a Dataset: its files, and whether only some rows are selected
_INDICES_KEYS = ("_indices_data_files", "_indices_files")


def is_saved_dataset(path: str) -> bool:
    """Return whether `save_to_disk` wrote this folder."""
    folder = Path(path)
    return (folder / _DICT_FILE).is_file() or ((folder / _STATE_FILE).is_file() and any(folder.glob("*.arrow")))


def find_saved_files(path: str, split: str | None) -> Files:
    """Find the files of a saved dataset, in its order.

    Args:
        path: the folder.
        split: the split to read. None: the only one.

    Raises:
        SourceError: a file is missing or invalid, or several splits are saved and none is chosen.
    """
    if Path(path, _DICT_FILE).is_file():
        found = _read(path, _DICT_FILE).get("splits")
        if not isinstance(found, list) or not all(map(_is_name, found)) or not found:
            raise SourceError(f"{path}/{_DICT_FILE} states no splits: save the dataset again")
        chosen = select_split(path, {name: [name] for name in found}, split, f"specify {path}/{{split}}")[0]
        names = tuple(f"{chosen}/{name}" for name in _data_files(f"{path}/{chosen}"))
    else:
        names = tuple(_data_files(path))
        _require_split(path, split)
    return Files(path, names, skipped_files(path, ".arrow", names))


def _require_split(path: str, split: str | None) -> None:
    saved = _read(path, _STATE_FILE).get("_split")
    if split is not None and split != saved:
        stated = f"the split {saved}" if saved else "no splits"
        raise SourceError(f"{path} is a single dataset with {stated}: remove --split {split}")


def _data_files(folder: str) -> list[str]:
    """Return the names of the files of a Dataset."""
    state = _read(folder, _STATE_FILE)
    if any(state.get(key) for key in _INDICES_KEYS):
        raise SourceError(
            f"{folder} is a selection of rows (indices in {_STATE_FILE}): save it again after flatten_indices()"
        )
    try:
        names = [file["filename"] for file in state["_data_files"]]
    except (KeyError, TypeError):
        names = []
    if not names or not all(map(_is_name, names)):
        raise SourceError(f"{folder}/{_STATE_FILE} states no data files: save the dataset again")
    missing = [name for name in names if not Path(folder, name).is_file()]
    if missing:
        raise SourceError(f"{folder}/{missing[0]} is missing, which {_STATE_FILE} states: copy the folder again")
    return names


def _is_name(name: object) -> bool:
    """Return whether a value may be the name of a file in the folder."""
    return isinstance(name, str) and name == Path(name).name and len(name) < 200 and name.isprintable()


def _read(folder: str, name: str) -> dict[str, Any]:
    return read_json(Path(folder, name), SourceError)
