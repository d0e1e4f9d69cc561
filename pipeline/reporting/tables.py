"""Tables of a report, and how its numbers are written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Cell:
    """One cell of a table."""

    text: str
    small: str = ""  # a second, quieter line
    numeric: bool = False
    best: bool = False
    run: int | None = None  # the run whose line is drawn before the text
    value: float | None = None  # what a sortable table sorts by; None: the text, after all numbers


@dataclass(frozen=True, slots=True)
class Table:
    """A table; the first cell of a row is its header."""

    caption: str
    header: tuple[Cell, ...]
    rows: tuple[tuple[Cell, ...], ...]


@dataclass(frozen=True, slots=True)
class GroupedTable:
    """A table that sorts; the first row of a group stands for the others, which open below it."""

    caption: str
    header: tuple[Cell, ...]
    groups: tuple[tuple[tuple[Cell, ...], ...], ...]


def number_text(value: float) -> str:
    """Four significant digits, thousands whole: `12.34`, `0.6512`, `12,346`."""
    return minus(f"{value:,.0f}" if abs(value) >= 1000 else f"{value:#.4g}")


def minus(number: str) -> str:
    """A number with a minus sign in place of a hyphen."""
    return number.replace("-", "−")


def count_text(count: int, one: str, many: str) -> str:
    """`1 run`, `20 runs`."""
    return f"{count:,} {one if count == 1 else many}"


def bytes_text(count: float) -> str:
    """`393 KB`, `1.3 GB`: decimal units, three digits."""
    for unit in ("bytes", "KB", "MB", "GB", "TB"):
        if count < 999.5 or unit == "TB":
            break
        count /= 1000
    return f"{count:,.0f} {unit}" if unit == "bytes" or count >= 99.5 else f"{count:.1f} {unit}"


def seconds_text(seconds: float) -> str:
    """`4.2 s`, `12 min 3 s`, `31 h 5 min`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60:,} h {minutes % 60} min"


def value_text(value: Any) -> str:
    """A setting's value in words."""
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
    """`a`, `a and b`, `a, b and c`."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
