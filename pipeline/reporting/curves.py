"""Loss curves of a report: thinned, smoothed, and drawn by bokeh from data embedded in the page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .plots import INTEGERS, line_style
from .runs import Column, Run

MAX_POINTS = 500
SMOOTHING = 0.03  # fraction of a curve's points in the window of the moving average
HEIGHT = 260  # of the frame, in pixels

# As many columns as fit into the window (bokeh's legend has a fixed number), in the page's font and colors.
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
    """Figures as HTML with their titles, and the script that draws them."""

    titles: tuple[str, ...]
    figures: tuple[str, ...]
    script: str
    note: str


def thin(values: Column, points: int = MAX_POINTS) -> Column:
    """Return the means of buckets of consecutive values, at most `points`; the last bucket may be smaller."""
    size = -(-len(values) // points)
    starts = np.arange(0, len(values), max(1, size))
    counts = np.diff([*starts, len(values)])
    means: Column = np.add.reduceat(values, starts) / counts if len(values) else values
    return means


def bucket_ends(steps: Column, points: int = MAX_POINTS) -> Column:
    """Return the last step of each bucket of `thin`."""
    size = max(1, -(-len(steps) // points))
    return steps[np.minimum(np.arange(size - 1, len(steps) + size - 1, size), len(steps) - 1)] if len(steps) else steps


def smooth(values: Column) -> Column:
    """Return the centered moving average; near the ends, the window shrinks on both sides so that it stays centered."""
    half = smoothing_window(len(values)) // 2
    index = np.arange(len(values))
    reach = np.minimum(half, np.minimum(index, len(values) - 1 - index))
    sums = np.concatenate([[0.0], np.cumsum(values)])
    means: Column = (sums[index + reach + 1] - sums[index - reach]) / (2 * reach + 1)
    return means


def smoothing_window(points: int) -> int:
    """Return the window of the moving average for a curve of `points` points: an odd number."""
    return 2 * round(points * SMOOTHING / 2) + 1


def draw_curves(runs: Sequence[Run]) -> Curves | None:
    """Draw denoising and alignment loss of all runs over steps; None when no run has logged a row."""
    from bokeh.embed import components
    from bokeh.models import Range1d

    logged = [(position, run) for position, run in enumerate(runs) if run.num_rows]
    if not logged:
        return None
    last = max(run.step for _, run in logged)
    steps = Range1d(start=0, end=last * 1.01, bounds=(0, last * 1.05))
    sources = [(position, run, _source(run)) for position, run in logged]
    figures, clipped = [_figure("denoising_loss", sources, steps)], []
    titles = ["Denoising loss"]
    aligned = [entry for entry in sources if entry[1].is_aligned]
    if aligned:
        figures.append(_figure("alignment_loss", aligned, steps))
        titles.append("Alignment loss")
    _add_legend(figures, sources)
    for figure in figures:
        figure.y_range, is_clipped = _value_range(figure)
        clipped.append(is_clipped)
    script, divs = components(tuple(figures))
    return Curves(tuple(titles), tuple(divs), script, _note([run for _, run in logged], any(clipped)))


def _note(runs: Sequence[Run], is_clipped: bool) -> str:
    window = smoothing_window(max(len(bucket_ends(run.columns["step"])) for run in runs))
    sentences = []
    if any(run.num_rows > MAX_POINTS for run in runs):
        sentences.append(f"Curves are thinned to at most {MAX_POINTS} points, each the mean of consecutive log rows.")
    if window > 1:
        averages = f"centered moving averages over up to {window} points"
        sentences.append(f"Faint lines are the logged values; solid and dashed lines are {averages}.")
    else:
        sentences.append("Lines are the logged values, which are too few to smooth.")
    if is_clipped:
        sentences.append("The high values of the first steps are above the visible range; pan to see them.")
    return " ".join(sentences)


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
        active_drag=None,  # otherwise a swipe that scrolls the page on a touch screen pans the plot
        toolbar_location="above",
    )
    plot.toolbar.logo = None
    plot.xaxis.formatter = NumeralTickFormatter(format=INTEGERS)
    plot.xaxis.ticker = BasicTicker(desired_num_ticks=5, min_interval=1)
    curves: list[Any] = []
    for position, run, source in sources:
        look = line_style(position)
        if len(source.data["step"]) == 1:  # a line needs two points
            plot.scatter("step", column, source=source, name=run.name, color=look.color, size=8)
        elif smoothing_window(len(source.data["step"])) > 1:
            plot.line("step", column, source=source, name=run.name, line_color=look.color, line_alpha=0.3)
        curves.append(
            plot.line(
                "step",
                f"{column}_smooth",
                source=source,
                name=run.name,
                line_color=look.color,
                line_dash=list(look.dash),
                line_width=2,
            )
        )
    plot.add_tools(
        HoverTool(
            renderers=curves,
            visible=False,
            tooltips=[
                ("run", "$name"),
                ("step", "@step{0,0}"),
                ("smoothed", f"@{column}_smooth{{0.0000}}"),
                ("logged", f"@{column}{{0.0000}}"),
            ],
        )
    )
    return plot


def _add_legend(figures: Sequence[Any], sources: Sequence[tuple[int, Run, Any]]) -> None:
    """Add one legend for all figures: a click on an entry hides or shows the run in all of them."""
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
    """Return a range that high losses of the first steps do not dominate, and whether it clips them."""
    from bokeh.models import Range1d

    values = np.concatenate([line.data_source.data[line.glyph.y] for line in figure.renderers])
    low, high, top = float(values.min()), float(np.percentile(values, 98)), float(values.max())
    is_clipped = top - low > 2 * (high - low)
    if not is_clipped:
        high = top
    margin = 0.05 * (high - low) or 0.5
    return Range1d(start=low - margin, end=high + margin), is_clipped
