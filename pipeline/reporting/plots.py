"""Lines against numbers, drawn by bokeh: for pages that need nothing but themselves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...stores.files import atomic_write_bytes

# Contrast of at least 3:1 with both page backgrounds, and the largest least distance between any two under normal,
# protanopic, deuteranopic and tritanopic vision. Five colors and four dashes tell twenty runs apart.
COLOURS = ("#5e8ee9", "#e8721d", "#7c40ff", "#a45d45", "#b583a4")
DASHES: tuple[tuple[int, ...], ...] = ((), (8, 3), (2, 2), (10, 3, 2, 3))


# bokeh's own page, with text above the figures
_PAGE = """{% block contents %}
{% for paragraph in paragraphs %}<p style="font-family: sans-serif; max-width: 46rem">{{ paragraph | e }}</p>
{% endfor %}{{ super() }}{% endblock %}"""


@dataclass(frozen=True, slots=True)
class Stroke:
    """How a line looks, everywhere on a page."""

    color: str
    dash: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a figure."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    position: int  # of its stroke


def stroke_of(position: int) -> Stroke:
    """The line of the run at `position`: all twenty combinations before any comes again."""
    return Stroke(COLOURS[position % len(COLOURS)], DASHES[position % len(DASHES)])


def line_figure(
    x_label: str, y_label: str, lines: Sequence[Line], title: str | None = None, x_format: str = "0,0"
) -> Any:
    """Lines with a mark at every point, a legend whose entries hide them, and values under the pointer."""
    from bokeh.models import HoverTool, NumeralTickFormatter
    from bokeh.plotting import figure

    plot: Any = figure(
        title=title,
        frame_height=260,
        sizing_mode="stretch_width",
        x_axis_label=x_label,
        y_axis_label=y_label,
        tools="pan,box_zoom,reset,save",
        active_drag=None,  # a finger that scrolls the page must not be caught by a plot
        toolbar_location="above",
    )
    plot.toolbar.logo = None
    plot.xaxis.formatter = NumeralTickFormatter(format=x_format)
    marks: list[Any] = []
    for line in lines:
        stroke, x, y = stroke_of(line.position), list(line.x), list(line.y)
        style = {"color": stroke.color, "legend_label": line.name, "name": line.name}
        plot.line(x, y, line_dash=list(stroke.dash), line_width=2, **style)
        marks.append(plot.scatter(x, y, size=6, **style))
    tooltips = [("", "$name"), (x_label, f"@x{{{x_format}}}"), (y_label, "@y{0.0000}")]
    plot.add_tools(HoverTool(renderers=marks, tooltips=tooltips, visible=False))
    plot.legend.click_policy = "hide"
    plot.add_layout(plot.legend[0], "below")
    return plot


def dot_figure(label: str, names: Sequence[str], values: Sequence[float], errors: Sequence[float]) -> Any:
    """A dot a name with its error bar, the first name on top, and values under the pointer."""
    from bokeh.models import ColumnDataSource, FactorRange, HoverTool
    from bokeh.models.annotations import Whisker
    from bokeh.plotting import figure

    low, high = ([value + sign * error for value, error in zip(values, errors, strict=True)] for sign in (-1, 1))
    source = ColumnDataSource({"name": list(names), "value": list(values), "low": low, "high": high})
    plot: Any = figure(
        y_range=FactorRange(factors=list(reversed(names))),
        x_axis_label=label,
        frame_height=40 + 24 * len(names),
        sizing_mode="stretch_width",
        tools="reset,save",
        toolbar_location="above",
    )
    plot.toolbar.logo = None
    plot.add_layout(Whisker(base="name", lower="low", upper="high", source=source, dimension="width"))
    dots = plot.scatter("value", "name", source=source, size=10, color=COLOURS[0])
    tooltips = [("", "@name"), (label, "@value{0.0000}")]
    plot.add_tools(HoverTool(renderers=[dots], tooltips=tooltips, visible=False))
    return plot


def write_page(path: Path, title: str, figures: Sequence[Any], paragraphs: Sequence[str] = ()) -> None:
    """Write paragraphs, then figures, as one HTML page that loads nothing."""
    from bokeh.embed import file_html
    from bokeh.layouts import column
    from bokeh.resources import INLINE

    page: str = file_html(
        column(*figures, sizing_mode="stretch_width"),
        INLINE,
        title,
        template=_PAGE,
        template_variables={"paragraphs": list(paragraphs)},
    )
    atomic_write_bytes(path, page.encode())
