"""What callers may pass as samples and as names: indices as in numpy, and one name where several are expected."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from ..errors import SampleIndexError


class SupportsArray(Protocol):
    """Arrays of numpy, tensors on the CPU, selections of a store, columns of pyarrow and pandas."""

    def __array__(self) -> npt.NDArray[Any]: ...


Indices: TypeAlias = Sequence[int] | SupportsArray | slice


def as_single(index: object) -> int | None:
    """Return the integer that refers to a single sample, also as a 0-dimensional array; None for any other index."""
    if isinstance(index, bool | np.bool_) or getattr(index, "ndim", 0) > 0:
        return None
    try:
        return operator.index(index)  # type: ignore[arg-type]
    except TypeError:
        return None


def as_rows(indices: Indices | int, total: int) -> npt.NDArray[np.int64]:
    """Return the samples that indices refer to, in their order: `[B]` int64 in [0, total).

    Args:
        indices: a slice, integers `[B]` (negative ones count from the end), or one boolean per sample, `[total]`. A
            single integer is refused, since it has no batch dimension.
        total: number of samples.

    Raises:
        SampleIndexError: the indices have another form, or refer to samples that do not exist.
    """
    if isinstance(indices, slice):
        return np.arange(*indices.indices(total), dtype=np.int64)
    rows = np.asarray(indices)
    if rows.dtype == np.bool_ and rows.ndim == 1:
        if len(rows) != total:
            raise SampleIndexError(f"boolean indices must have one value per sample ({total}), found {len(rows)}")
        return np.flatnonzero(rows).astype(np.int64)
    if rows.ndim != 1 or (rows.size and not np.issubdtype(rows.dtype, np.integer)):
        single = rows.ndim == 0 and np.issubdtype(rows.dtype, np.integer)
        found = f"{rows}: pass [{rows}]" if single else f"{indices!r:.60} (shape {rows.shape}, {rows.dtype})"
        raise SampleIndexError(
            f"indices must be a slice or a one-dimensional array of integers or booleans, found {found}"
        )
    if rows.size and (rows.min() < -total or rows.max() >= total):
        raise SampleIndexError(f"indices must be in [{-total}, {total}), found {rows.min()} to {rows.max()}")
    rows = rows.astype(np.int64)
    return np.where(rows < 0, rows + total, rows)


def as_names(names: str | Sequence[str]) -> tuple[str, ...]:
    """Return names as a tuple. A single string is one name, not a sequence of letters."""
    return (names,) if isinstance(names, str) else tuple(names)
