"""A sweep, read from a TOML file: its runs, how they are sampled and evaluated, and the resources of a run."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from ...config import Config, EvaluateConfig, SampleConfig, TrainConfig, read_recipe
from ...converter import read_toml, shown, structure
from ...errors import ConfigError

# Settings that cannot be in the file, since `ablate` determines them. Ray is an option of the command, not of a run.
_RAY = {"ray", "ray_workers", "ray_address", "actors"}
_NOT_TRAINING = {"store", "output_dir"} | _RAY
_NOT_SAMPLING = {"checkpoint", "out", "png_folder"} | _RAY
_NOT_EVALUATION = {"samples", "out", "source_kind"}  # a plug-in is code: no file can start it

RECIPE = "recipe"  # of an entry of [[runs]]: its settings come before those of [train]

Values = dict[str, Any]
C = TypeVar("C", bound=Config)


@dataclass(frozen=True, slots=True)
class Resources:
    """The resources of one run. With fractions, runs share a device (on Ray)."""

    processes: int = 1  # ranks of its training, started by torchrun
    cpus: float | None = None
    gpus: float | None = None

    def __post_init__(self) -> None:
        if self.processes < 1:
            raise ConfigError(f"processes is {self.processes}: must be at least 1")
        for name in ("cpus", "gpus"):
            value = getattr(self, name)
            if value is not None and value < 0:
                raise ConfigError(f"{name} is {value}: must be 0 or more")


@dataclass(frozen=True, slots=True)
class _Tables:
    """The tables in the file."""

    train: Values = field(default_factory=dict)
    grid: Values = field(default_factory=dict)
    runs: tuple[Values, ...] | None = None
    sample: Values | None = None
    evaluate: Values | None = None
    resources: Resources = Resources()


@dataclass(frozen=True, slots=True)
class Sweep:
    """A sweep. Its runs are in the order in which they start: grouped by seed, since those read the same batches."""

    runs: tuple[TrainConfig, ...]
    sample: SampleConfig | None  # without a checkpoint
    evaluate: EvaluateConfig | None  # without samples
    every_checkpoint: bool
    resources: Resources


def read_sweep(path: Path, store: str, out: Path) -> Sweep:
    """Read a sweep; raise a ConfigError that names the table and the key for anything invalid."""
    tables = structure(read_toml(path, f"sweep {path}", "; docs/ablations.md shows one"), _Tables, str(path))
    if tables.evaluate is not None and tables.sample is None:
        raise ConfigError(f"{path} has [evaluate] without [sample]: add a table [sample], which may be empty")
    evaluation: Values = dict(tables.evaluate or {})
    every_checkpoint = evaluation.pop("every_checkpoint", False)
    if type(every_checkpoint) is not bool:
        raise ConfigError(f"{path} [evaluate] every_checkpoint is {shown(every_checkpoint)}: expected true or false")
    sampling = _config(SampleConfig, tables.sample or {}, f"{path} [sample]", _NOT_SAMPLING, checkpoint="")
    evaluation = {"reference": store, "device": sampling.device} | evaluation
    evaluated = _config(EvaluateConfig, evaluation, f"{path} [evaluate]", _NOT_EVALUATION, samples="")
    return Sweep(
        runs=tuple(sorted(_runs(path, tables, store, out), key=lambda run: run.seed)),
        sample=None if tables.sample is None else sampling,
        evaluate=None if tables.evaluate is None else evaluated,
        every_checkpoint=every_checkpoint,
        resources=tables.resources,
    )


def _runs(path: Path, tables: _Tables, store: str, out: Path) -> list[TrainConfig]:
    """Return every entry of [[runs]] with every combination of [grid]."""
    for key, choices in tables.grid.items():
        if not isinstance(choices, list) or not choices:
            raise ConfigError(f"{path} [grid] {shown(key)[1:-1]} is {shown(choices)}: expected a list of values")
    entries = ({},) if tables.runs is None else tables.runs
    if not entries or not (tables.grid or tables.runs):
        raise ConfigError(f"{path} has no runs: add a table [grid], or tables [[runs]]")
    runs: dict[str, TrainConfig] = {}
    for entry, combination in itertools.product(entries, itertools.product(*tables.grid.values())):
        chosen = dict(zip(tables.grid, combination, strict=True))
        name = run_name(entry, chosen)
        where = f"{path}, run {shown(name, 200)[1:-1]}"
        if name in runs:
            raise ConfigError(f"{where} occurs twice: change its settings, or give it another exp_name")
        own = {key: value for key, value in entry.items() if key != RECIPE}
        values = {"group": path.stem} | _recipe(entry, where) | tables.train | own | chosen | {"exp_name": name}
        runs[name] = _config(TrainConfig, values, where, _NOT_TRAINING, store=store, output_dir=str(out))
    return list(runs.values())


def _recipe(entry: Values, where: str) -> Values:
    """Return the settings of the recipe that a run names, if any."""
    name = entry.get(RECIPE)
    if name is None:
        return {}
    if not isinstance(name, str):
        raise ConfigError(f"{where}: recipe is {shown(name)}: expected the name of a recipe, or a .toml file")
    return read_recipe(name).settings


def run_name(entry: Mapping[str, Any], combination: Mapping[str, Any]) -> str:
    """Build the name of a run from its settings, such as `enc_type=mae-vit-l,seed=1`.

    An `exp_name` in an entry of [[runs]] stands for the settings of the entry.
    """
    named = entry.get("exp_name")
    own = dict(combination) if named else {**entry, **combination}
    words = [*([str(named)] if named else []), *(f"{key}={_word(value)}" for key, value in own.items())]
    return ",".join(words).replace("/", "-") or "run"


def _word(value: Any) -> str:
    if isinstance(value, list):
        return "+".join(map(_word, value)) or "none"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _config(kind: type[C], values: Values, where: str, excluded: Collection[str], **given: str) -> C:
    """Build a config from a table; raise ConfigError for excluded or unknown keys and for wrong types."""
    for name in values:
        if name in excluded:
            raise ConfigError(f"{where}: {name} cannot be set in a sweep: remove it")
    return kind.from_settings(values | given, where)
