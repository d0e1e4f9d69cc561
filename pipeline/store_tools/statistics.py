"""`repa-pipe store stats` of an encoder: mean and variance of tokens, with which they are normalized as latents."""

from __future__ import annotations

import datetime
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ...converter import shown
from ...errors import ConfigError, WeightsError
from ...models.weight_files import read_weights_file
from ...stores import Store, open_store
from ...stores.checksum import crc32c_bytes
from ...stores.layout import features_group
from ...stores.statistics import (
    PERS,
    GroupStatistics,
    Per,
    StatisticsRecord,
    fingerprint_checksum,
    latents_shape,
    shape_per,
    write_statistics,
)
from ...version import __version__
from ..runtime.printable import one_line
from .token_statistics import Measurement, measure, shards_of


@dataclass(frozen=True, kw_only=True, slots=True)
class StatsOptions:
    """What to measure, or to import."""

    encoder: str
    per: Per
    flip: bool = False
    shards: tuple[int, int] | None = None
    write: bool = False
    from_file: Path | None = None
    note: str | None = None


def options_of(
    encoder: str, *, per: Per, flip: bool, shards: str | None, from_file: str | None, note: str | None, write: bool
) -> StatsOptions:
    """Return the options as the command line states them; raise ConfigError for shards that are not FIRST:STOP."""
    match = re.fullmatch(r"(\d{1,9}):(\d{1,9})", shards) if shards is not None else None
    if shards is not None and match is None:
        raise ConfigError(f"--shards is {shown(shards)}: expected FIRST:STOP, such as 0:100")
    return StatsOptions(
        encoder=encoder,
        per=per,
        flip=flip,
        shards=(int(match[1]), int(match[2])) if match else None,
        write=write,
        from_file=Path(from_file) if from_file else None,
        note=note,
    )


def run(path: str, options: StatsOptions) -> str:
    """Measure or import the statistics of an encoder's tokens; return what was found.

    Raises:
        ConfigError: the shards do not exist, or the imported file holds other statistics.
        StoreError: the group is missing or incomplete, or has no flipped views.
        WeightsError: the file to import cannot be read.
    """
    with open_store(path) as store:
        group = features_group(options.encoder)
        shape = latents_shape(store, group)
        if options.from_file is not None:
            per, found = _imported(options.from_file, shape, options.note)
            write_statistics(store, group, per, found)
        else:
            per, found = options.per, _measured(store, group, options)
    return "\n".join(map(one_line, _lines(group, per, found, options)))


def _lines(group: str, per: Per, found: GroupStatistics, options: StatsOptions) -> list[str]:
    written = ", written to the store" if options.write or options.from_file else ""
    deviations = np.sqrt(found.var)
    return [
        f"{group}: statistics per {per}, {found.record.describe()}{written}",
        f"  mean {found.mean.mean():+.5f} ({found.mean.min():+.5f} to {found.mean.max():+.5f}), standard deviation "
        f"{deviations.mean():.5f} ({deviations.min():.5f} to {deviations.max():.5f})",
    ]


def _measured(store: Store, group: str, options: StatsOptions) -> GroupStatistics:
    """Measure the statistics, and write them into the store if `options.write`."""
    measurement = Measurement(
        store=store, group=group, per=options.per, flip=options.flip, shards=shards_of(store, options.shards)
    )
    state = measure(measurement, keep=options.write)
    record = StatisticsRecord(
        kind="exact",
        samples=state.images,
        shards=options.shards,
        flipped=options.flip,
        fingerprint=fingerprint_checksum(store, group),
        note=options.note,
        program=__version__,
        time=_now(),
    )
    shape = shape_per(options.per, latents_shape(store, group))
    found = GroupStatistics(np.reshape(state.sums.mean, shape), state.sums.var.reshape(shape), record)
    if options.write:
        write_statistics(store, group, options.per, found)
        measurement.state_file.unlink(missing_ok=True)
    return found


def _imported(path: Path, shape: tuple[int, int, int], note: str | None) -> tuple[Per, GroupStatistics]:
    """Read RAE's file of statistics, `{"mean", "var"}`; if one is missing, it is 0 or 1, as there."""
    content = read_weights_file(path)
    arrays = {name: _numbers(content[name], name, path) for name in ("mean", "var") if name in content}
    if not arrays:
        raise WeightsError(f"{path}: expected tensors mean and var, found {', '.join(map(str, list(content)[:6]))}")
    given = next(iter(arrays.values())).shape
    per = next((each for each in PERS if _fits(given, shape_per(each, shape))), None)
    if per is None or any(array.shape != given for array in arrays.values()):
        shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in arrays.items())
        raise ConfigError(
            f"{path} holds {shapes}: expected statistics of latents {list(shape)}, per position or channel, or of all"
        )
    target = shape_per(per, shape)
    mean = arrays.get("mean", np.zeros(given)).reshape(target)
    var = arrays.get("var", np.ones(given)).reshape(target)
    if not (np.isfinite(mean).all() and np.isfinite(var).all() and (var >= 0).all()):
        raise ConfigError(f"{path}: expected finite means and variances of at least 0")
    record = StatisticsRecord(
        kind="imported",
        samples=0,
        source=path.name,
        source_crc32c=crc32c_bytes(path.read_bytes()),
        note=note,
        program=__version__,
        time=_now(),
    )
    return per, GroupStatistics(mean, var, record)


def _fits(given: tuple[int, ...], expected: tuple[int, int, int]) -> bool:
    """Return whether a shape is the expected one, apart from axes of length 1."""
    return [size for size in given if size > 1] == [size for size in expected if size > 1]


def _numbers(value: Any, name: str, path: Path) -> npt.NDArray[np.float64]:
    import torch

    if not isinstance(value, torch.Tensor) or not value.is_floating_point():
        raise WeightsError(f"{path}: {name}: expected a tensor of floating-point numbers, found {shown(value)}")
    return value.detach().double().numpy()


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
