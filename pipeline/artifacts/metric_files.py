"""Files of metrics, of one set of images or of all checkpoints of a run: their names, contents and completeness."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...config import EvaluateConfig, SampleConfig
from ...converter import read_json, structure, unstructure
from ...errors import ConfigError, RepaPipeError
from ...stores.files import last_change, write_json
from .run_folder import RunFolder
from .sample_files import SampleFiles, sample_sets, settings_name

INCEPTION = "inception"  # the detector whose metrics are named without it


@dataclass(frozen=True, slots=True)
class MetricRecord:
    """The contents of `<name>.metrics.json`."""

    metrics: dict[str, float]
    num_samples: int | None
    num_reference: int | None  # None when a statistics file does not record it
    detectors: dict[str, dict[str, Any]]
    warnings: tuple[str, ...]
    config: EvaluateConfig
    seconds: float = 0.0

    def split(self, name: str) -> tuple[str, str]:
        """Split the name of a metric: `fd_efficientnet-lite0` → `("fd", "efficientnet-lite0")`.

        Metrics of Inception are named without a detector: `fid` → `("fid", "inception")`.
        """
        for detector in self.detectors:
            if name.endswith(f"_{detector}"):
                return name.removesuffix(f"_{detector}"), detector
        return name, INCEPTION


def resolve_samples(config: EvaluateConfig) -> EvaluateConfig:
    """Return the config with a run folder replaced by the images that were generated from its last checkpoint.

    Raises:
        ConfigError: no images were generated from it, or several sets of images.
    """
    run = RunFolder(Path(config.samples))
    if not run.config_file.exists():
        return config
    last = run.last_checkpoint().stem
    found = [files.npz for files in sample_sets(run) if files.npz.name.startswith(f"{last}-") and files.npz.exists()]
    if not found:
        raise ConfigError(
            f"{run.path} has no images of its last checkpoint, {last}: run 'repa-pipe sample --checkpoint {run.path}'"
        )
    if len(found) > 1:
        listed = ", ".join(map(str, found))
        raise ConfigError(f"{run.path} has {len(found)} sets of images of its last checkpoint: specify one of {listed}")
    return dataclasses.replace(config, samples=str(found[0]))


def metrics_file(config: EvaluateConfig) -> Path:
    """Return the file that evaluating with `config` writes: `--out`, else next to the samples."""
    return Path(config.out) if config.out else SampleFiles(Path(config.samples)).metrics


def curve_file(sampling: SampleConfig, evaluation: EvaluateConfig) -> Path:
    """Return the file of the metrics of every checkpoint: `--out`, else `by-step/<settings>.json` in the run folder."""
    if not evaluation.out:
        return RunFolder(Path(sampling.checkpoint)).curves / f"{settings_name(sampling)}.json"
    if not evaluation.out.endswith(".json"):
        raise ConfigError(f"--out is {evaluation.out!r}: expected a name that ends in .json")
    return Path(evaluation.out)


def write_metrics_file(path: Path, record: MetricRecord) -> None:
    """Write a file of metrics."""
    write_json(path, unstructure(record))


def read_metrics_file(path: Path) -> MetricRecord:
    """Read a file of metrics; raise ConfigError when it is damaged or not from this version."""
    return structure(read_json(path), MetricRecord, str(path))


def finished_metrics(config: EvaluateConfig) -> MetricRecord | None:
    """Return the metrics of an earlier, finished evaluation of the same images with the same settings, if any."""
    path = metrics_file(config)
    if not path.exists() or not Path(config.samples).exists():
        return None
    inputs = (config.samples, config.reference, *(config.weights_of(name) for name in config.detector))
    if path.stat().st_mtime_ns < max(last_change(Path(given)) for given in inputs if given):
        return None
    try:
        record = read_metrics_file(path)
    except RepaPipeError:  # damaged, or from another version: evaluate again
        return None
    return record if record.config.same_result_as(config) else None
