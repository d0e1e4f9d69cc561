"""Loss curves of a report: thinned, smoothed, drawn by bokeh from data that the page holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .plots import stroke_of
from .runs import Column, Run

MAX_POINTS = 500
SMOOTHING = 0.03  # of a curve's points
HEIGHT = 260  # pixels, of the frame

# As many columns as fit the window (bokeh's own legend has a fixed number), in the page's font and colors.
_LEGEND_STYLE = """
:host { transform: none !important; left: 0 !important; top: 0 !important; width: 100%;
        padding: 4px 0 8px !important; background: none !important; border: 0 !important; }
.bk-grid { width: 100%; grid-auto-flow: row !important; grid-template-rows: none;
           grid-template-columns: repeat(auto-fill, minmax(min(100%, var(--legend-width)), 1fr)); }
.bk-item .bk-label { min-width: 0 !important; white-space: normal; overflow-wrap: anywhere;
                     color: var(--text) !important; font: inherit !important; font-size: 14px !important; }
.bk-item.bk-inactive { opacity: 0.45; }
.bk-item.bk-inactive .bk-label { text-decoration: line-through; }
"""


@dataclass(frozen=True, slots=True)
class Curves:
    """The figures as HTML, in the order of `names`, and the script that draws them."""

    names: tuple[str, ...]
    figures: tuple[str, ...]
    script: str
    remark: str


def thin(values: Column, points: int = MAX_POINTS) -> Column:
    """Means of equal buckets of neighboring values, at most `points` of them; the last bucket may be smaller."""
    size = -(-len(values) // points)
    starts = np.arange(0, len(values), max(1, size))
    counts = np.diff([*starts, len(values)])
    means: Column = np.add.reduceat(values, starts) / counts if len(values) else values
    return means


def bucket_ends(steps: Column, points: int = MAX_POINTS) -> Column:
    """The last step of each bucket of `thin`."""
    size = max(1, -(-len(steps) // points))
    return steps[np.minimum(np.arange(size - 1, len(steps) + size - 1, size), len(steps) - 1)] if len(steps) else steps


def smooth(values: Column) -> Column:
    """Centered moving average; its window shrinks evenly towards both ends, where fewer neighbors are."""
    half = smoothing_window(len(values)) // 2
    index = np.arange(len(values))
    reach = np.minimum(half, np.minimum(index, len(values) - 1 - index))
    sums = np.concatenate([[0.0], np.cumsum(values)])
    means: Column = (sums[index + reach + 1] - sums[index - reach]) / (2 * reach + 1)
    return means


def smoothing_window(points: int) -> int:
    """How many of a curve's points an average is taken over: an odd number."""
    return 2 * round(points * SMOOTHING / 2) + 1


def draw_curves(runs: Sequence[Run]) -> Curves | None:
    """Denoising and alignment loss of all runs against steps; None when no run has logged a row."""
    from bokeh.embed import components
    from bokeh.models import Range1d

    logged = [(position, run) for position, run in enumerate(runs) if run.num_rows]
    if not logged:
        return None
    last = max(run.step for _, run in logged)
    steps = Range1d(start=0, end=last * 1.01, bounds=(0, last * 1.05))
    sources = [(position, run, _source(run)) for position, run in logged]
    figures, cut = [_figure("denoising_loss", sources, steps)], []
    names = ["Denoising loss"]
    aligned = [entry for entry in sources if entry[1].is_aligned]
    if aligned:
        figures.append(_figure("alignment_loss", aligned, steps))
        names.append("Alignment loss")
    _add_legend(figures, sources)
    for figure in figures:
        figure.y_range, is_cut = _value_range(figure)
        cut.append(is_cut)
    script, divs = components(tuple(figures))
    return Curves(tuple(names), tuple(divs), script, _remark([run for _, run in logged], any(cut)))


def _remark(runs: Sequence[Run], is_cut: bool) -> str:
    points = max(len(bucket_ends(run.columns["step"])) for run in runs)
    parts = []
    if any(run.num_rows > MAX_POINTS for run in runs):
        parts.append(f"Every curve is thinned to at most {MAX_POINTS} points, each the mean of neighboring log rows.")
    if smoothing_window(points) > 1:
        parts.append(
            f"Faint lines are the values as logged; strong lines are centered moving averages over up to "
            f"{smoothing_window(points)} points."
        )
    else:
        parts.append("Lines are the values as logged; there are too few to smooth.")
    if is_cut:
        parts.append("The highest values, of the first steps, lie above the frame; the first tool moves it there.")
    return " ".join(parts)


def _source(run: Run) -> Any:
    from bokeh.models import ColumnDataSource

    data = {"step": bucket_ends(run.columns["step"]).astype(np.int32)}
    for column in ("denoising_loss", "alignment_loss"):
        values = thin(run.columns[column])
        data |= {column: values.astype(np.float32), f"{column}_smooth": smooth(values).astype(np.float32)}
    return ColumnDataSource(data)


def _figure(column: str, sources: Sequence[tuple[int, Run, Any]], steps: Any) -> Any:
    from bokeh.models import BasicTicker, HoverTool, NumeralTickFormatter
    from bokeh.plotting import figure

    plot = figure(
        frame_height=HEIGHT,
        sizing_mode="stretch_width",
        x_range=steps,
        x_axis_label="step",
        y_axis_label=column.replace("_", " "),
        tools="pan,box_zoom,reset,save",
        active_drag=None,  # a finger that scrolls the page must not be caught by a plot
        toolbar_location="above",
    )
    plot.toolbar.logo = None
    plot.xaxis.formatter = NumeralTickFormatter(format="0,0")
    plot.xaxis.ticker = BasicTicker(desired_num_ticks=5)
    strong: list[Any] = []
    for position, run, source in sources:
        stroke = stroke_of(position)
        color = stroke.color
        if len(source.data["step"]) == 1:  # a line of one point is none
            plot.scatter("step", column, source=source, name=run.name, color=color, size=8)
        elif smoothing_window(len(source.data["step"])) > 1:
            plot.line("step", column, source=source, name=run.name, line_color=color, line_alpha=0.3)
        smoothed, dash = f"{column}_smooth", list(stroke.dash)
        strong.append(
            plot.line("step", smoothed, source=source, name=run.name, line_color=color, line_dash=dash, line_width=2)
        )
    plot.add_tools(
        HoverTool(
            renderers=strong,
            visible=False,
            tooltips=[
                ("run", "$name"),
                ("step", "@step{0,0}"),
                ("smoothed", f"@{column}_smooth{{0.0000}}"),
                ("as logged", f"@{column}{{0.0000}}"),
            ],
        )
    )
    return plot


def _add_legend(figures: Sequence[Any], sources: Sequence[tuple[int, Run, Any]]) -> None:
    """One legend for all figures: a click hides a run in each."""
    from bokeh.models import InlineStyleSheet
    from bokeh.models.annotations import Legend, LegendItem

    items = []
    for _, run, source in sources:
        lines = [line for figure in figures for line in figure.renderers if line.data_source is source]
        items.append(LegendItem(label={"value": run.name}, renderers=lines))
    width = 60 + 8 * max(len(run.name) for _, run, _ in sources)
    legend = Legend(
        items=items,
        click_policy="hide",
        glyph_width=36,
        inactive_fill_alpha=0,
        stylesheets=[InlineStyleSheet(css=f":host {{ --legend-width: {width}px; }}{_LEGEND_STYLE}")],
    )
    figures[0].add_layout(legend, "above")


def _value_range(figure: Any) -> tuple[Any, bool]:
    """A range that the first steps, far above all others, do not stretch; and whether it cuts them off."""
    from bokeh.models import Range1d

    values = np.concatenate([line.data_source.data[line.glyph.y] for line in figure.renderers])
    low, high, top = float(values.min()), float(np.percentile(values, 98)), float(values.max())
    is_cut = top - low > 2 * (high - low)
    if not is_cut:
        high = top
    margin = 0.05 * (high - low) or 0.5
    return Range1d(start=low - margin, end=high + margin), is_cut
