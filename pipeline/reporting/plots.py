"""Line and dot plots, drawn by bokeh, for self-contained HTML files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...stores.files import atomic_write_bytes
from ..runtime.printable import one_line, printable

# Five colors with a contrast of at least 3:1 on both page backgrounds. They maximize the smallest distance between any
# two under normal, protanopic, deuteranopic and tritanopic vision. With four dashes they distinguish twenty runs.
COLORS = ("#5e8ee9", "#e8721d", "#7c40ff", "#a45d45", "#b583a4")
DASHES: tuple[tuple[int, ...], ...] = ((), (8, 3), (2, 2), (10, 3, 2, 3))
INTEGERS = "0,0"
CONTENT_POLICY = (
    "default-src 'none'; img-src data: blob:; style-src 'unsafe-inline'; script-src 'unsafe-inline'; font-src data:; "
    "base-uri 'none'; form-action 'none'"
)


# bokeh's page template, with a policy that forbids loading anything, and paragraphs above the figures
_PAGE = """{% block preamble %}<meta http-equiv="Content-Security-Policy" content="{{ policy }}">{% endblock %}
{% block contents %}
{% for paragraph in paragraphs %}<p style="font-family: sans-serif; max-width: 46rem">{{ paragraph | e }}</p>
{% endfor %}{{ super() }}{% endblock %}"""


@dataclass(frozen=True, slots=True)
class LineStyle:
    """Color and dash pattern of a run, the same everywhere in a report."""

    color: str
    dash: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a figure."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    position: int  # determines its line style


def line_style(position: int) -> LineStyle:
    """Return the line style of the run at `position`; styles repeat after twenty runs."""
    return LineStyle(COLORS[position % len(COLORS)], DASHES[position % len(DASHES)])


def line_figure(
    x_label: str, y_label: str, lines: Sequence[Line], title: str | None = None, x_format: str | None = INTEGERS
) -> Any:
    """Return a plot with a marker at every point, a legend that toggles lines, and values on hover.

    `x_format` is a format of numeral.js for the ticks of the x axis, "0,0" for integers; None selects bokeh's default.
    """
    from bokeh.models import BasicTicker, HoverTool, NumeralTickFormatter
    from bokeh.plotting import figure

    plot: Any = figure(
        title=title,
        frame_height=260,
        sizing_mode="stretch_width",
        x_axis_label=x_label,
        y_axis_label=y_label,
        tools="pan,box_zoom,reset,save",
        active_drag=None,  # otherwise a swipe that scrolls the page on a touch screen pans the plot
        toolbar_location="above",
    )
    plot.toolbar.logo = None
    if x_format == INTEGERS:
        plot.xaxis.ticker = BasicTicker(min_interval=1)  # ticks at fractions would be rounded to repeated labels
    if x_format:
        plot.xaxis.formatter = NumeralTickFormatter(format=x_format)
    markers: list[Any] = []
    for line in lines:
        look, x, y = line_style(line.position), list(line.x), list(line.y)
        name = one_line(line.name)
        style = {"color": look.color, "legend_label": name, "name": name}
        plot.line(x, y, line_dash=list(look.dash), line_width=2, **style)
        markers.append(plot.scatter(x, y, size=6, **style))
    tooltips = [("", "$name"), (x_label, f"@x{{{x_format}}}" if x_format else "@x"), (y_label, "@y{0.0000}")]
    plot.add_tools(HoverTool(renderers=markers, tooltips=tooltips, visible=False))
    plot.legend.click_policy = "hide"
    plot.add_layout(plot.legend[0], "below")
    return plot


def dot_figure(label: str, names: Sequence[str], values: Sequence[float], errors: Sequence[float]) -> Any:
    """Return a plot with one dot and error bar per name, the first name at the top, and values on hover."""
    from bokeh.models import ColumnDataSource, FactorRange, HoverTool
    from bokeh.models.annotations import Whisker
    from bokeh.plotting import figure

    names = list(map(one_line, names))
    low, high = ([value + sign * error for value, error in zip(values, errors, strict=True)] for sign in (-1, 1))
    source = ColumnDataSource({"name": names, "value": list(values), "low": low, "high": high})
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
    dots = plot.scatter("value", "name", source=source, size=10, color=COLORS[0])
    tooltips = [("", "@name"), (label, "@value{0.0000}")]
    plot.add_tools(HoverTool(renderers=[dots], tooltips=tooltips, visible=False))
    return plot


def write_page(path: Path, title: str, figures: Sequence[Any], paragraphs: Sequence[str] = ()) -> None:
    """Write paragraphs and the figures below them as a self-contained HTML file."""
    from bokeh.embed import file_html
    from bokeh.layouts import column
    from bokeh.resources import INLINE

    page: str = file_html(
        column(*figures, sizing_mode="stretch_width"),
        INLINE,
        printable(title),
        template=_PAGE,
        template_variables={"paragraphs": list(map(printable, paragraphs)), "policy": CONTENT_POLICY},
    )
    atomic_write_bytes(path, page.encode())
