"""A sweep as its TOML file says it: which runs, how they are sampled and judged, what a run needs of the machine."""

from __future__ import annotations

import difflib
import itertools
import tomllib
import typing
from collections.abc import Collection
from dataclasses import dataclass, fields
from pathlib import Path
from types import NoneType
from typing import Any, TypeVar

from ...config import Config, EvaluateConfig, SampleConfig, TrainConfig
from ...errors import ConfigError

TABLES = ("train", "grid", "runs", "sample", "evaluate", "resources")
# What the sweep decides itself. Ray is asked for with the command, not by each run.
_RAY = {"ray", "ray_workers", "ray_address", "actors"}
_NOT_TRAINING = {"store", "output_dir"} | _RAY
_NOT_SAMPLING = {"checkpoint", "out", "png_folder"} | _RAY
_NOT_JUDGING = {"samples", "out"}

Values = dict[str, Any]
C = TypeVar("C", bound=Config)


@dataclass(frozen=True, slots=True)
class Resources:
    """What one run needs. Fractions are for Ray, which then lets runs share a device."""

    processes: int = 1  # ranks of its training, started by torchrun
    cpus: float | None = None
    gpus: float | None = None


@dataclass(frozen=True, slots=True)
class Sweep:
    """Runs in the order in which they are started: those of a seed together, since they read the same batches."""

    runs: tuple[TrainConfig, ...]
    sample: SampleConfig | None  # of no checkpoint yet
    evaluate: EvaluateConfig | None  # of no samples yet
    every_checkpoint: bool
    resources: Resources


def read_sweep(path: Path, store: str, out: Path) -> Sweep:
    """Read a sweep; ConfigError that names the table and the key for whatever cannot work."""
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path} cannot be read as a sweep ({error}): docs/ablations.md shows one") from error
    _require_tables(values, path)
    judging: Values = dict(values.get("evaluate", {}))
    every_checkpoint = judging.pop("every_checkpoint", False)
    if "evaluate" in values and "sample" not in values:
        raise ConfigError(
            f"{path} has [evaluate] without [sample]: say how the runs are sampled (an empty table will do)"
        )
    sampling = _table(SampleConfig, values.get("sample", {}), f"{path} [sample]", _NOT_SAMPLING, checkpoint="")
    judged = _table(
        EvaluateConfig,
        {"reference": store, "device": sampling.device} | judging,
        f"{path} [evaluate]",
        _NOT_JUDGING,
        samples="",
    )
    runs = _runs(path, values, store, out)
    return Sweep(
        runs=tuple(sorted(runs, key=lambda run: run.seed)),
        sample=sampling if "sample" in values else None,
        evaluate=judged if "evaluate" in values else None,
        every_checkpoint=every_checkpoint,
        resources=_resources(path, values.get("resources", {})),
    )


def _runs(path: Path, values: Values, store: str, out: Path) -> list[TrainConfig]:
    """Every entry of [[runs]] with every combination of [grid]."""
    grid: Values = values.get("grid", {})
    for key, choices in grid.items():
        if not isinstance(choices, list) or not choices:
            raise ConfigError(f"{path} [grid] {key} is {choices!r}: give a list of values")
    entries: list[Values] = values.get("runs", [{}])
    if not entries or not (grid or "runs" in values):
        raise ConfigError(f"{path} names no run: give a table [grid], or tables [[runs]]")
    runs: dict[str, TrainConfig] = {}
    for entry, combination in itertools.product(entries, itertools.product(*grid.values())):
        chosen = dict(zip(grid, combination, strict=True))
        name = run_name(entry, chosen)
        where = f"{path}, run {name}"
        if name in runs:
            raise ConfigError(f"{where} is there twice: let its settings differ, or give it another exp_name")
        shared = values.get("train", {}) | entry | chosen | {"exp_name": name}
        runs[name] = _table(TrainConfig, shared, where, _NOT_TRAINING, store=store, output_dir=str(out))
    return list(runs.values())


def run_name(entry: Values, combination: Values) -> str:
    """`enc_type=mae-vit-l,seed=1`, from what is the run's own; an entry may have a name for its part of it."""
    named = entry.get("exp_name")
    own = combination if named else entry | combination
    words = [*([str(named)] if named else []), *(f"{key}={_word(value)}" for key, value in own.items())]
    return ",".join(words).replace("/", "-") or "run"


def _word(value: Any) -> str:
    if isinstance(value, list):
        return "+".join(map(_word, value)) or "none"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _resources(path: Path, values: Values) -> Resources:
    _require_known(values, [item.name for item in fields(Resources)], f"{path} [resources]")
    for name, value in values.items():
        is_number = type(value) is int or (type(value) is float and name != "processes")
        if not is_number or value < (name == "processes"):
            raise ConfigError(f"{path} [resources] {name} is {value!r}: give a number, of processes a whole one")
    return Resources(**values)


def _table(config: type[C], values: Values, where: str, not_here: Collection[str], **decided: str) -> C:
    """A config from a table; ConfigError for keys and values that are none of it."""
    hints = typing.get_type_hints(config)
    _require_known(values, [item.name for item in fields(config) if item.name not in not_here], where)
    checked = {name: _value(hints[name], value, f"{where}: {name}") for name, value in values.items()}
    try:
        return config(**checked, **decided)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error


def _value(hint: Any, value: Any, where: str) -> Any:
    kind = next((each for each in typing.get_args(hint) if each is not NoneType), hint)
    if typing.get_origin(hint) is tuple:
        return tuple(_value(kind, each, where) for each in (value if isinstance(value, list) else [value]))
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind and not (value is None and kind is not hint):
        raise ConfigError(f"{where} is {value!r}: {kind.__name__} is expected")
    return value


def _require_tables(values: Values, path: Path) -> None:
    _require_known(values, TABLES, str(path))
    for name, value in values.items():
        is_table = isinstance(value, list) and all(isinstance(each, dict) for each in value)
        if not (is_table if name == "runs" else isinstance(value, dict)):
            raise ConfigError(f"{path}: {name} is {value!r}: write {'[[runs]]' if name == 'runs' else f'[{name}]'}")
    if type(values.get("evaluate", {}).get("every_checkpoint", False)) is not bool:
        raise ConfigError(f"{path} [evaluate] every_checkpoint: true or false is expected")


def _require_known(values: Values, known: Collection[str], where: str) -> None:
    for name in values:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=3) or known
            raise ConfigError(f"{where}: {name!r} is none of its keys: take {' or '.join(near)}")
