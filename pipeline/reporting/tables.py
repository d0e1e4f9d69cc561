"""Tables of a report, and the formatting of their values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Cell:
    """One cell of a table."""

    text: str
    small: str = ""  # a second line, in small type
    numeric: bool = False
    best: bool = False
    run: int | None = None  # position of the run whose line style is shown before the text
    value: float | None = None  # sort key in a sortable table; None: sort by text, after all numbers


@dataclass(frozen=True, slots=True)
class Table:
    """A table; the first cell of a row is its header."""

    caption: str
    header: tuple[Cell, ...]
    rows: tuple[tuple[Cell, ...], ...]


@dataclass(frozen=True, slots=True)
class GroupedTable:
    """A sortable table; the first row of a group summarizes the others, which expand below it."""

    caption: str
    header: tuple[Cell, ...]
    groups: tuple[tuple[tuple[Cell, ...], ...], ...]


def number_text(value: float) -> str:
    """Return a number with four significant digits, or as an integer from 1,000: `12.34`, `0.6512`, `12,346`."""
    value += 0.0  # negative zero becomes zero
    return minus(f"{value:,.0f}" if abs(value) >= 1000 else f"{value:#.4g}")


def minus(number: str) -> str:
    """Replace the hyphen of a negative number with a minus sign."""
    return number.replace("-", "−")


def count_text(count: int, one: str, many: str) -> str:
    """Return a count with its noun: `1 run`, `20 runs`."""
    return f"{count:,} {one if count == 1 else many}"


def seconds_text(seconds: float) -> str:
    """Return a duration: `4.2 s`, `12 min 3 s`, `31 h 5 min`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60:,} h {minutes % 60} min"


def value_text(value: Any) -> str:
    """Return the value of a setting as text."""
    if value is None:
        return "default"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, tuple):
        return ", ".join(map(str, value)) or "none"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:g}" if isinstance(value, float) else str(value)


def list_text(names: Sequence[str]) -> str:
    """Return names as an enumeration: `a`, `a and b`, `a, b and c`."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
