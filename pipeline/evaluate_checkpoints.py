"""`repa-pipe evaluate RUN --every-checkpoint`: samples and metrics of all checkpoints, as a curve against steps.

Every checkpoint is sampled with one setting, so with the same noise and labels. What is finished is not done again:
the same command goes on after a kill, and adds what a run that went on has saved since.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..config import EvaluateConfig, SampleConfig, read_config
from ..errors import CheckpointError, ConfigError
from ..stores.files import write_json
from . import evaluate, sample
from .artifacts.checkpoints import FOLDER, list_checkpoints
from .reporting.plots import Line, line_figure, write_page
from .runtime.progress import say


@dataclass(frozen=True, slots=True)
class CurveResult:
    """Metrics of every checkpoint, in the order of their steps."""

    rows: list[dict[str, Any]]  # step, samples, metrics by name, warnings
    json: str
    page: str


def run(sampling: SampleConfig, judging: EvaluateConfig) -> CurveResult:
    """Sample and judge every checkpoint of the run `sampling.checkpoint`; write the curve after each.

    Raises CheckpointError when the run has none, and what sampling and evaluating raise.
    """
    folder = Path(sampling.checkpoint)
    checkpoints = list_checkpoints(folder)
    if not checkpoints:
        raise CheckpointError(f"no checkpoint in {folder / FOLDER}: name the folder of a run of 'repa-pipe train'")
    out = default_out(sampling, judging)
    if out.suffix != ".json":
        raise ConfigError(f"--out is {str(out)!r}: give a name that ends in .json")
    rows: list[dict[str, Any]] = []
    for number, checkpoint in enumerate(checkpoints, start=1):
        say(f"checkpoint {number} of {len(checkpoints)}: {checkpoint.name}")
        made = sample.run(dataclasses.replace(sampling, checkpoint=str(checkpoint), out=None))
        found = _judge(dataclasses.replace(judging, samples=made.npz, out=None))
        names = "metrics", "num_samples", "num_reference", "warnings"
        rows.append({"step": made.step, "samples": made.npz} | {name: found[name] for name in names})
        write_json(out, {"rows": rows, "sampling": sampling.as_json(), "evaluation": judging.as_json()})
        _draw(out.with_suffix(".html"), f"{folder.name}: metrics against steps", rows)
    return CurveResult(rows, str(out), str(out.with_suffix(".html")))


def default_out(sampling: SampleConfig, judging: EvaluateConfig) -> Path:
    """The JSON that is written: in the run's folder where no other is named."""
    if judging.out:
        return Path(judging.out)
    return Path(sampling.checkpoint) / "by-step" / f"{sample.settings_name(sampling)}.json"


def _judge(config: EvaluateConfig) -> dict[str, Any]:
    """The metrics of these samples: those on disk where they were made from the same, else made now."""
    there = evaluate.finished(config)
    if there is None:
        evaluate.run(config)
        there = read_config(evaluate.default_out(config))
    return there


def _draw(path: Path, title: str, rows: list[dict[str, Any]]) -> None:
    """One figure a metric."""
    steps = [row["step"] for row in rows]
    value: Callable[[dict[str, Any], str], float] = lambda row, name: row["metrics"].get(name, float("nan"))  # noqa: E731
    figures = [
        line_figure("step", name, [Line(name, steps, [value(row, name) for row in rows], position)], title)
        for position, name in enumerate(rows[-1]["metrics"])
    ]
    write_page(path, title, figures)
