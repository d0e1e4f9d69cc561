"""`repa-pipe evaluate-checkpoints`: sample and evaluate every checkpoint of a run, as a curve over steps.

Every checkpoint is sampled with the same settings, hence with the same noise and labels. Finished work is not repeated:
re-running the command resumes after an interruption, and adds checkpoints saved since then.
"""

from __future__ import annotations

import dataclasses
import glob
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..config import EvaluateConfig, SampleConfig
from ..errors import CheckpointError, ConfigError, DamagedCheckpointError
from ..stores.files import remove_leftovers, write_json
from . import evaluate, sample
from .artifacts.damaged import read_or_set_aside
from .artifacts.digests import file_digest
from .artifacts.metric_bases import bases, differences
from .artifacts.metric_files import (
    MetricRecord,
    curve_file,
    finished_metrics,
    metrics_file,
    read_curve,
    read_metrics_file,
)
from .artifacts.run_folder import RunFolder
from .reporting.plots import Line, line_figure, write_page
from .runtime.lease import lease

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class CurveResult:
    """Metrics of every checkpoint, in the order of their steps."""

    rows: list[dict[str, Any]]  # step, samples, metrics by name, warnings
    json: str
    page: str
    reference: str = ""  # what the samples were compared with, as printed


def run(sampling: SampleConfig, evaluation: EvaluateConfig) -> CurveResult:
    """Sample and evaluate every checkpoint of a run; write the curve after each of them.

    Args:
        sampling: how checkpoints are sampled; `checkpoint` is the run folder.
        evaluation: how the generated images are evaluated; `samples` is not used.

    Returns:
        One row per checkpoint, and the files that hold the curve.

    Raises:
        CheckpointError: the run has no checkpoint that can be read.
        ConfigError: checkpoints were evaluated with different libraries, rules or weights.
        RepaPipeError: sampling or evaluation raised it.
    """
    run_folder = RunFolder(Path(sampling.checkpoint))
    checkpoints = run_folder.require_checkpoints()
    out = curve_file(sampling, evaluation)
    with lease(out.parent, out.stem):
        remove_leftovers(out.parent, f"{glob.escape(out.stem)}.*")
        return _evaluate_all(checkpoints, sampling, evaluation, out)


def _evaluate_all(
    checkpoints: Sequence[Path], sampling: SampleConfig, evaluation: EvaluateConfig, out: Path
) -> CurveResult:
    page = out.with_suffix(".html")
    result = CurveResult([], str(out), str(page))
    rows = result.rows
    curve = read_or_set_aside(out, lambda: read_curve(out), "the curve is written again")
    recorded = curve.rows if curve else []
    records: dict[str, MetricRecord] = {}
    for number, checkpoint in enumerate(checkpoints, start=1):
        logger.info("checkpoint %d of %d: %s", number, len(checkpoints), checkpoint.name)
        try:
            made = sample.run(dataclasses.replace(sampling, checkpoint=str(checkpoint), out=None))
        except DamagedCheckpointError as error:
            logger.warning("%s; it is left out", error)
            continue
        found = _evaluate(dataclasses.replace(evaluation, samples=made.npz, out=None))
        records[made.npz] = found
        _require_one_basis(records, evaluation)
        result = dataclasses.replace(result, reference=found.reference_text())
        rows.append(
            {
                "step": made.step,
                "checkpoint": file_digest(checkpoint),
                "samples": made.npz,
                "metrics": found.metrics,
                "num_samples": found.num_samples,
                "num_reference": found.num_reference,
                "warnings": list(found.warnings),
            }
        )
        if rows != recorded[: len(rows)]:
            _write(result, sampling, evaluation)
    if not rows:
        raise CheckpointError(f"all checkpoints in {checkpoints[0].parent} are damaged: restore them from a copy")
    logger.info("images compared with %s", result.reference)
    if rows != recorded or not page.exists():
        _write(result, sampling, evaluation)
    return result


def _write(result: CurveResult, sampling: SampleConfig, evaluation: EvaluateConfig) -> None:
    title = f"{RunFolder(Path(sampling.checkpoint)).name}: metrics over steps"
    _draw(Path(result.page), title, result.rows)
    settings = {"sampling": sampling.as_json(), "evaluation": evaluation.as_json()}
    values = {"rows": result.rows, "reference": result.reference, **settings}
    write_json(Path(result.json), values)


def _evaluate(config: EvaluateConfig) -> MetricRecord:
    """Return the metrics of the samples, read from disk if they were computed with the same settings before."""
    record = finished_metrics(config)
    if record is None:
        evaluate.run(config)
        record = read_metrics_file(metrics_file(config))
    return record


def _require_one_basis(records: dict[str, MetricRecord], evaluation: EvaluateConfig) -> None:
    """Raise ConfigError if metrics of the checkpoints are not comparable: one line of a figure would join them."""
    for metric in next(iter(records.values())).metrics:
        found = differences(bases(list(records.values()), metric))
        for images, text in zip(records, found, strict=True):
            if text != found[0]:
                file = metrics_file(dataclasses.replace(evaluation, samples=images, out=None))
                raise ConfigError(
                    f"{metric} of {images}: expected {found[0]}, as for the checkpoints before, found {text}; delete "
                    f"{file} or theirs, and re-run the same command to compute them in the same way"
                )


def _draw(path: Path, title: str, rows: list[dict[str, Any]]) -> None:
    """Draw one figure per metric."""
    steps = [row["step"] for row in rows]
    value: Callable[[dict[str, Any], str], float] = lambda row, name: row["metrics"].get(name, float("nan"))  # noqa: E731
    figures = [
        line_figure("step", name, [Line(name, steps, [value(row, name) for row in rows], position)], title)
        for position, name in enumerate(rows[-1]["metrics"])
    ]
    write_page(path, title, figures)
