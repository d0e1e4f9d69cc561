"""The same training steps from the store and with the encoder online: their times, and a section that shows them."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .plots import COLORS
from .sections import Section, embed
from .tables import Cell, Table

PARTS = {"read": "read the store", "decode": "decode images", "encode": "run the encoder", "train": "train"}
NOISY = 2  # highest relative to lowest ratio, above which other programs must have been running


@dataclass(frozen=True, slots=True)
class StepTimes:
    """Seconds of the parts of a step. Without an encoder, `decode` and `encode` are 0."""

    read: float
    decode: float
    encode: float
    train: float

    @property
    def total(self) -> float:
        """Seconds of the step."""
        return self.read + self.decode + self.encode + self.train


def median_times(steps: Sequence[StepTimes]) -> StepTimes:
    """Return the median of each part."""
    names = [field.name for field in dataclasses.fields(StepTimes)]
    return StepTimes(**{name: statistics.median(getattr(step, name) for step in steps) for name in names})


@dataclass(frozen=True, slots=True)
class Steps:
    """Steps of one model."""

    times: list[StepTimes]  # of the steps after a warm-up
    losses: npt.NDArray[np.float32]  # [steps, losses]


@dataclass(frozen=True, slots=True)
class StepComparison:
    """The same steps from the store and with the encoder online."""

    stored: Steps
    online: Steps
    losses: tuple[str, ...]  # names
    batch_size: int
    device: str
    token_cosine: float  # smallest cosine between a stored token and the same token online

    @property
    def ratios(self) -> list[float]:
        """Time of each step with the encoder online, relative to the same step from the store."""
        pairs = zip(self.online.times, self.stored.times, strict=True)
        return [online.total / stored.total for online, stored in pairs]

    @property
    def loss_difference(self) -> float:
        """Largest absolute difference of a loss in any step."""
        return float(np.abs(self.stored.losses - self.online.losses).max())


def step_section(comparison: StepComparison, model: str, encoder: str) -> Section:
    """Show the times of a step from the store and with the encoder online."""
    ways = {"From the store": comparison.stored, "Encoder online": comparison.online}
    times = {name: median_times(steps.times) for name, steps in ways.items()}
    ratios = sorted(comparison.ratios)
    count, median = len(ratios), float(np.median(ratios))
    first = (
        f"With the encoder in the training loop, a step takes {median:.2f} times as long as the same step from the "
        f"store (median of {count} rounds, lowest {ratios[0]:.2f}, highest {ratios[-1]:.2f})."
    )
    if ratios[-1] > NOISY * ratios[0]:
        first += " The rounds differ widely: repeat the demo when nothing else runs on this machine."
    second = (
        f"Measured here, in turn: {model} with batch size {comparison.batch_size}, aligned with {encoder} "
        f"({comparison.device}). Both start from the same weights and take the same steps. Stored and online tokens "
        f"have a cosine of at least {comparison.token_cosine:.6f}, and no loss differs by more than "
        f"{comparison.loss_difference:.1e}. The store is read, and images are decoded, in the step itself."
    )
    third = (
        "How much a store saves depends on the sizes of the model and the encoder. 'repa-pipe plan --model SiT-B/2 "
        "--encoder dinov2-vit-b' estimates it for other pairs."
    )
    figure, script = embed(_step_figure(times))
    table = _step_table(ways, times)
    title = "Milliseconds per step"
    return Section("step", "A training step from the store", (first, second, third), title, figure, script, table)


def _step_figure(times: dict[str, StepTimes]) -> Any:
    from bokeh.models import ColumnDataSource, FactorRange, HoverTool
    from bokeh.plotting import figure

    data: dict[str, list[Any]] = {"way": list(times)}
    data |= {label: [1000 * getattr(step, part) for step in times.values()] for part, label in PARTS.items()}
    plot: Any = figure(
        y_range=FactorRange(factors=list(reversed(data["way"]))),
        frame_height=130,
        sizing_mode="stretch_width",
        x_axis_label="milliseconds",
        tools="reset,save",
        toolbar_location="above",
    )
    plot.toolbar.logo = None
    plot.x_range.start = 0
    labels = list(PARTS.values())
    colors = [*COLORS[1 : len(labels)], COLORS[0]]
    source = ColumnDataSource(data)
    plot.hbar_stack(labels, y="way", height=0.6, color=colors, source=source, legend_label=labels)
    plot.add_tools(HoverTool(tooltips=[("", "@way: $name"), ("milliseconds", "@$name{0.0}")], visible=False))
    plot.legend.orientation = "horizontal"
    plot.add_layout(plot.legend[0], "below")
    return plot


def _step_table(ways: dict[str, Steps], times: dict[str, StepTimes]) -> Table:
    rows = []
    for name, step in times.items():
        total = float(np.median([one.total for one in ways[name].times]))
        parts = (getattr(step, part) for part in PARTS)
        rows.append((Cell(name), *(Cell(f"{1000 * each:.1f}", numeric=True) for each in (*parts, total))))
    header = (Cell("Step"), *(Cell(text.capitalize(), numeric=True) for text in (*PARTS.values(), "total")))
    count = len(next(iter(ways.values())).times)
    return Table(f"Milliseconds per step, medians of {count} rounds", header, tuple(rows))
