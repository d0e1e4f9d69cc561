"""Results of runs as values that may be compared: losses at a step, metrics of generated images, cost. No torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from ...config import TrainConfig, flag
from ...config.paths import place
from ..artifacts.metric_files import REFERENCE, MetricRecord, read_metrics_file
from ..artifacts.run_folder import RunFolder
from ..artifacts.run_record import RunRecord
from ..artifacts.sample_files import SampleRecord, sample_sets
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
_NO_LOSSES = (
    *("learning_rate", "images_per_s", "data_wait", "seconds", "memory_gib", "mfu", "grad_norm", "step"),
    *("cpu_cores", "process_gib", "disk_read_mib_per_s", "gpu_memory_gib", "gpu_utilization", "gpu_celsius"),
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
            if name in _NO_LOSSES or not known or not (is_validation or known[-1] == rows[-1]):
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
    for i, run in enumerate(runs):
        for files in sample_sets(RunFolder(run.folder)):
            sampled = files.read_record() if files.all_metrics() else None
            for path in files.all_metrics():
                assert sampled is not None
                record = read_metrics_file(path)
                for name, value in record.metrics.items():
                    yield _evaluation(i, sampled, record, name, value)


def _evaluation(run: int, sampled: SampleRecord, record: MetricRecord, name: str, value: float) -> Measured:
    kind, detector = record.split(name)
    reference = record.num_reference_of(name)
    known = record.detectors.get(detector, {})
    counts = (
        f"{'?' if record.num_samples is None else f'{record.num_samples:,}'} images vs. "
        f"{'statistics' if reference is None else f'{reference:,}'}"
    )
    key: dict[str, Any] = {"step": sampled.step, "images": record.num_samples, "reference images": reference}
    key |= {"detector": known.get("name", detector), "reference": place(record.config.reference)}
    key |= {"content of the reference": record.inputs.get(REFERENCE, "")[:12]}
    key |= {"weights": record.inputs.get(f"weights of {detector}", "")[:12], "--resize": record.config.resize}
    sampling = sampled.config.result_settings()
    key |= {flag(each): _hashable(sampling[each]) for each in sampling if each not in {"checkpoint"}}
    key["kind of reference"] = known.get("reference", {}).get("statistics")
    label = f"step {sampled.step:,}, {counts}"
    return Measured(run, metric_name(kind, detector), value, tuple(key.items()), label)


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
