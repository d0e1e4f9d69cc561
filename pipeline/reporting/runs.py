"""What a report reads of a run's folder: its config, its logged rows, the samples made from it and their metrics."""

from __future__ import annotations

import dataclasses
import shlex
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ...config import SampleConfig, TrainConfig, flag, read_config
from ...errors import ConfigError
from ..artifacts.checkpoints import list_checkpoints
from ..artifacts.metrics_log import FILE as METRICS_FILE
from ..artifacts.metrics_log import read_metrics
from ..training.guards import CONFIG_FILE

Column: TypeAlias = npt.NDArray[np.float64]

COLUMNS = ("step", "denoising_loss", "alignment_loss", "images_per_s", "data_wait", "seconds")
MACHINE_FILE = "machine.json"
METRICS_ENDING = ".metrics.json"
# Image i depends on neither of these: not on where it lies, where it was computed, or how many others were made.
_NOT_SETTINGS = {"checkpoint", "out", "num_fid_samples"} | {
    item.name for item in dataclasses.fields(SampleConfig) if item.metadata["harmless"]
}


@dataclass(frozen=True, slots=True)
class Metrics:
    """What `repa-pipe evaluate` found."""

    values: dict[str, float]
    num_samples: int | None
    num_reference: int | None
    reference: str
    detectors: tuple[str, ...]
    warnings: tuple[str, ...]

    def split(self, name: str) -> tuple[str, str]:
        """`fd_efficientnet-lite0` → ("fd", "efficientnet-lite0"); Inception's metrics carry no name of their own."""
        for detector in self.detectors:
            if name.endswith(f"_{detector}"):
                return name.removesuffix(f"_{detector}"), detector
        return name, "inception"


@dataclass(frozen=True, slots=True)
class SampleSet:
    """Images that `repa-pipe sample` made."""

    config: SampleConfig
    step: int
    num_images: int
    seconds: float
    grid: Path | None
    metrics: Metrics | None

    @property
    def settings(self) -> tuple[tuple[str, Any], ...]:
        """All that shaped the images besides the model: equal settings mean the same noise and the same labels."""
        return tuple((name, value) for name, value in vars(self.config).items() if name not in _NOT_SETTINGS)


@dataclass(frozen=True, slots=True)
class Run:
    """One training run."""

    name: str
    folder: Path
    config: TrainConfig
    columns: dict[str, Column]  # each of COLUMNS, one value a logged row
    samples: tuple[SampleSet, ...]
    last_checkpoint: str
    gpus: float | None = None  # that its training had; known of runs of a sweep, 0 without GPUs

    @property
    def num_rows(self) -> int:
        """Rows logged."""
        return len(self.columns["step"])

    @property
    def step(self) -> int:
        """The last step logged; 0 before the first row."""
        return int(self.columns["step"][-1]) if self.num_rows else 0

    @property
    def is_aligned(self) -> bool:
        """Whether the run had an encoder to align with."""
        return bool(self.config.enc_type)

    def final(self, column: str) -> float | None:
        """Mean of the last twentieth of the rows (at least one); None before the first row."""
        count = max(1, self.num_rows // 20)
        return float(self.columns[column][-count:].mean()) if self.num_rows else None


def read_runs(folders: Sequence[str]) -> list[Run]:
    """Read run folders, in the order given.

    Raises ConfigError for no folder at all, for one that `repa-pipe train` did not make, and for damaged files.
    """
    if not folders:
        raise ConfigError("no run is named: give the folder of at least one run of 'repa-pipe train'")
    paths = [Path(folder) for folder in folders]
    repeated = [str(path) for path, count in Counter(path.resolve() for path in paths).items() if count > 1]
    if repeated:
        raise ConfigError(f"the run {repeated[0]} is named twice: name every run once")
    return [_read_run(path, name) for path, name in zip(paths, _names(paths), strict=True)]


def train_command(config: TrainConfig) -> str:
    """The command line that makes a run of this config: every flag that is not at its default."""
    parts = [f"repa-pipe {config.kind}"]
    for item in dataclasses.fields(config):
        value = getattr(config, item.name)
        if value == item.default:
            continue
        if isinstance(value, bool):
            parts.append(flag(item.name) if value else f"--no-{flag(item.name)[2:]}")
        else:
            values = value if isinstance(value, tuple) else (value,)
            parts += [f"{flag(item.name)} {shlex.quote(str(one))}" for one in values]
    return " \\\n  ".join(parts)


def _names(paths: list[Path]) -> list[str]:
    """The folders' names, with as much of the path before them as tells them apart."""
    parts = [path.resolve().parts for path in paths]
    depth = 1
    while len({found[-depth:] for found in parts}) < len(parts):
        depth += 1
    return ["/".join(found[-depth:]) for found in parts]


def _read_run(folder: Path, name: str) -> Run:
    path = folder / CONFIG_FILE
    if not path.is_file():
        what = "is no run (it has no" if folder.is_dir() else "does not exist (expected a folder with"
        raise ConfigError(f"{folder} {what} {CONFIG_FILE}): name a folder that 'repa-pipe train' made")
    try:
        config = TrainConfig.from_json(read_config(path))
    except (ConfigError, TypeError, AttributeError) as error:
        raise ConfigError(f"{path} is no config of this version of repa-pipe ({error}): report with its own") from error
    checkpoints = list_checkpoints(folder)
    return Run(
        name=name,
        folder=folder,
        config=config,
        columns=_read_columns(folder),
        samples=tuple(_read_samples(folder)),
        last_checkpoint=checkpoints[-1].name if checkpoints else "",
        gpus=_read_gpus(folder),
    )


def _read_gpus(folder: Path) -> float | None:
    path = folder / MACHINE_FILE
    return float(read_config(path).get("gpus", 0)) if path.exists() else None


def _read_columns(folder: Path) -> dict[str, Column]:
    try:
        rows = read_metrics(folder)
        return {name: np.array([row[name] for row in rows], dtype=np.float64) for name in COLUMNS}
    except (pa.ArrowInvalid, OSError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{folder / METRICS_FILE} cannot be read as a run's log ({error}): copy it from the run again"
        ) from error


def _read_samples(folder: Path) -> Iterator[SampleSet]:
    for path in sorted((folder / "samples").glob("*.json")):
        if path.name.endswith(METRICS_ENDING):
            continue
        values = read_config(path)
        grid = path.with_suffix(".png")
        try:
            yield SampleSet(
                config=SampleConfig.from_json(values["config"]),
                step=int(values["step"]),
                num_images=int(values["num_images"]),
                seconds=float(values.get("seconds", 0.0)),
                grid=grid if grid.exists() else None,
                metrics=_read_sample_metrics(path.with_name(path.stem + METRICS_ENDING)),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigError(f"{path} does not describe samples ({error!r}): sample again") from error


def _read_sample_metrics(path: Path) -> Metrics | None:
    if not path.exists():
        return None
    values = read_config(path)
    try:
        return Metrics(
            values={name: float(value) for name, value in values["metrics"].items()},
            num_samples=values.get("num_samples"),
            num_reference=values.get("num_reference"),
            reference=str(values.get("config", {}).get("reference", "")),
            detectors=tuple(values.get("detectors", ())),
            warnings=tuple(values.get("warnings", ())),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ConfigError(f"{path} does not hold metrics ({error!r}): evaluate the samples again") from error
