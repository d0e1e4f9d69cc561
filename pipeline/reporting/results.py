"""Results of runs as values that may be compared: losses at a step, metrics of generated images, cost. No torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from ...config import TrainConfig, flag
from ..artifacts.metric_bases import bases
from ..artifacts.metric_files import read_metrics_file
from ..artifacts.metrics_log import EVALUATION
from ..artifacts.run_folder import RunFolder
from ..artifacts.run_record import RunRecord
from ..artifacts.sample_files import SampleRecord, sample_sets
from ..runtime.system_metrics import NAMES as SYSTEM
from .metrics import metric_name
from .runs import Run
from .side_by_side import Measured

# Settings that losses of two runs must share: what is denoised at which times, and what is aligned with what.
_DATA = ("classes", "indices")
_DENOISING = (
    *_DATA,
    *("vae", "token_latents", "latents_eps", "path_type", "weighting", "time_mean", "time_std", "time_shift"),
)
_ALIGNMENT = (*_DATA, "enc_type", "alignment_loss")
_OBJECTIVE = (
    *_DENOISING,
    *(name for name in TrainConfig.result_fields() if name.endswith("_coeff")),
    "enc_type",
    "alignment_loss",
    "proj_coeff_decay_steps",
    "alignment_steps",
    "spatial_norm",
    "term",
)
_BASIS = ("images", "reference", "reference images", "--resize", "rule", "library", "weights")  # parts of `bases`
_NO_LOSSES = (
    *("learning_rate", "images_per_s", "data_wait", "seconds", "memory_gib", "mfu", "grad_norm", "step"),
    *SYSTEM,
)


def last_common_step(runs: Sequence[Run]) -> int | None:
    """Return the last step that the logs of all runs have a row for; None if there is none."""
    common = set.intersection(*({int(step) for step in run.columns["step"]} for run in runs))
    return max(common, default=None)


def losses_at(runs: Sequence[Run], step: int | None) -> Iterator[Measured]:
    """Yield the losses of the row at a step, by default of the last row of each run, which is a mean over its steps.

    Of validation losses, the last value up to the step is taken.
    """
    for i, run in enumerate(runs):
        steps = run.columns["step"]
        last = np.inf if step is None else step
        rows = [row for row, at in enumerate(steps) if at <= last]
        for name, column in run.columns.items():
            known = [row for row in rows if not np.isnan(column[row])]
            is_validation = name.startswith("val_")
            if (
                name in _NO_LOSSES
                or name.startswith(EVALUATION)
                or not known
                or not (is_validation or known[-1] == rows[-1])
            ):
                continue
            at = int(steps[known[-1]])
            averaged = () if is_validation else (("steps per row", _steps_of_row(run, known[-1])),)
            key = (("step", at), *averaged, *_settings(run.config, name))
            yield Measured(i, name, float(column[known[-1]]), key)


def _steps_of_row(run: Run, row: int) -> int:
    """Return the number of steps that a row averages: fewer than `--log-steps` after a resume or at a validation."""
    return round(float(run.columns["images_per_s"][row] * run.columns["seconds"][row]) / run.config.batch_size)


def _settings(config: TrainConfig, loss: str) -> tuple[tuple[str, Any], ...]:
    names = {"denoising_loss": _DENOISING, "alignment_loss": _ALIGNMENT}.get(loss.removeprefix("val_"), _OBJECTIVE)
    return tuple((flag(name), getattr(config, name)) for name in names)


def evaluations(runs: Sequence[Run]) -> Iterator[Measured]:
    """Yield the metrics of generated images, of all steps, sampling settings, references and detectors."""
    found = []
    for i, run in enumerate(runs):
        for files in sample_sets(RunFolder(run.folder)):
            found += [(i, files.read_record(), read_metrics_file(path)) for path in files.all_metrics()]
    for name in dict.fromkeys(name for _, _, record in found for name in record.metrics):
        having = [each for each in found if name in each[2].metrics]
        for (i, sampled, record), basis in zip(having, bases([each[2] for each in having], name), strict=True):
            key = {"step": sampled.step, **dict(zip(_BASIS, basis, strict=True)), **_sampling(sampled)}
            label = f"step {sampled.step:,}, {key['images']} vs. {key['reference images']}"
            yield Measured(i, metric_name(*record.split(name)), record.metrics[name], tuple(key.items()), label)


def _sampling(sampled: SampleRecord) -> dict[str, Any]:
    """Return the settings that affect the images by their flags; the numbers of images are in the basis."""
    settings = sampled.config.result_settings()
    return {
        flag(name): _hashable(value)
        for name, value in settings.items()
        if name not in {"checkpoint", "num_fid_samples"}
    }


def _hashable(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def costs(runs: Sequence[Run], records: Sequence[RunRecord | None], step: int | None) -> Iterator[Measured]:
    """Yield training time, throughput and peak memory; memory of a GPU is not compared with that of a process."""
    for i, (run, record) in enumerate(zip(runs, records, strict=True)):
        if not run.num_rows:
            continue
        steps, seconds = run.columns["step"], run.columns["seconds"]
        if step is not None:
            yield Measured(i, f"seconds of training to step {step:,}", float(seconds[steps <= step].sum()))
        yield Measured(i, "seconds of training", float(seconds.sum()), (("step", run.step),))
        yield Measured(i, "images per second (median)", float(np.median(run.columns["images_per_s"])))
        total = float(seconds.sum())
        if total:
            yield Measured(i, "data wait", float((run.columns["data_wait"] * seconds).sum() / total))
        memory = run.columns.get("memory_gib", np.full(1, np.nan))
        if not np.isnan(memory).all():
            on_gpu = bool(record and record.sessions and record.sessions[-1].num_gpus)
            yield Measured(i, "peak memory in GiB", float(np.nanmax(memory)), (("of", "GPU" if on_gpu else "process"),))
