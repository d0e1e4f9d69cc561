"""The samples of a store that meet a condition: by class, by index, or by a column of the sample index."""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ..errors import ConfigError, first_line
from .indexing import Indices, as_rows

if TYPE_CHECKING:
    import pyarrow.compute as pc

Class: TypeAlias = str | int


def rows_of_classes(
    classes: Class | Sequence[Class], class_names: Sequence[str], labels: npt.NDArray[np.int32]
) -> npt.NDArray[np.int64]:
    """Return the samples of these classes, ascending `[n]` int64.

    Args:
        classes: names or numbers of classes, or one of them.
        class_names: name of label i.
        labels: label of every sample, `[N]`.

    Raises:
        ConfigError: there is no such class.
    """
    chosen = [classes] if isinstance(classes, str | int | np.integer) else classes
    wanted = {label for each in chosen for label in _labels_of(each, class_names)}
    return np.flatnonzero(np.isin(labels, sorted(wanted))).astype(np.int64)


def _labels_of(chosen: Class, class_names: Sequence[str]) -> list[int]:
    """Return the labels with this name; a number, also as text, is a label unless it is the name of a class."""
    named = [label for label, name in enumerate(class_names) if name == chosen]
    if named:
        return named
    text, total = str(chosen), len(class_names)
    if text.isdecimal() and int(text) < total:
        return [int(text)]
    near = difflib.get_close_matches(text, class_names, n=3) or class_names[:3]
    raise ConfigError(
        f"there is no class {chosen!r}: expected a number from 0 to {total - 1}, or a name such as {', '.join(near)}"
    )


def rows_at(indices: Indices, total: int) -> npt.NDArray[np.int64]:
    """Return distinct samples in ascending order, `[n]` int64.

    Raises:
        SampleIndexError: the indices are not those of samples.
        ConfigError: a sample is listed twice, which a set of samples cannot express.
    """
    rows = as_rows(indices, total)
    unique, counts = np.unique(rows, return_counts=True)
    if len(unique) < len(rows):
        raise ConfigError(
            f"sample {unique[counts > 1][0]} is listed more than once: a selection contains a sample once or not at "
            "all (numpy.unique removes repetitions)"
        )
    return unique


def rows_where(condition: pc.Expression, samples: pa.Table) -> npt.NDArray[np.int64]:
    """Return the samples for which an expression over the columns of the sample index is true, ascending `[n]` int64.

    Raises:
        ConfigError: this is not a pyarrow expression, or it does not fit the columns.
    """
    import pyarrow.compute as pc

    columns = ", ".join(f"{field.name} ({field.type})" for field in samples.schema)
    if not isinstance(condition, pc.Expression):
        raise ConfigError(
            f"where is a {type(condition).__name__}: expected a pyarrow expression over the columns {columns}, such as "
            "pyarrow.compute.field('num_bytes') > 10_000"
        )
    numbered = samples.append_column("index", pa.array(np.arange(len(samples), dtype=np.int64)))
    try:
        found: npt.NDArray[np.int64] = numbered.filter(condition).column("index").to_numpy()
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise ConfigError(
            f"where is {condition}: it cannot be applied to the columns {columns} ({first_line(error)})"
        ) from error
    return found


def read_indices(path: Path) -> npt.NDArray[Any]:
    """Read sample indices from a file: an .npy array of integers or booleans `[n]`, or text with one integer per line.

    Raises:
        ConfigError: the file cannot be read, or holds something else.
    """
    try:
        if path.suffix == ".npy":
            found: npt.NDArray[Any] = np.load(path, allow_pickle=False)
        else:
            found = np.array([int(line) for line in path.read_text().split()], dtype=np.int64)
    except (OSError, ValueError, EOFError) as error:
        raise ConfigError(
            f"{path} cannot be read as sample indices ({error}): expected an .npy file, or text with one integer per "
            "line"
        ) from error
    return found


def digest_of_rows(rows: npt.NDArray[np.int64]) -> str:
    """Return the SHA-256 of samples, as hexadecimal digits."""
    return hashlib.sha256(rows.astype("<i8").tobytes()).hexdigest()
