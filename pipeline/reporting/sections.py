"""A section that a stage adds to its report, above the comparison of runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .tables import Table


@dataclass(frozen=True, slots=True)
class Section:
    """A heading, paragraphs, a figure and a table, in this order."""

    anchor: str  # the section's id in the page
    title: str
    paragraphs: tuple[str, ...]
    figure_title: str = ""
    figure: str = ""  # HTML
    script: str = ""  # draws the figure
    table: Table | None = None


def embed(figure: Any) -> tuple[str, str]:
    """Return a bokeh figure as HTML, and the script that draws it."""
    from bokeh.embed import components

    script, div = components(figure)
    return div, script
