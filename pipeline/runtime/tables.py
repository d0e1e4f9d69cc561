"""Tables as plain text."""

from __future__ import annotations

from collections.abc import Sequence

from .printable import one_line


def text_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table whose columns are as wide as their longest cell; columns of numbers are aligned to the right."""
    columns = [[one_line(str(cell)) for cell in column] for column in zip(header, *rows, strict=True)]
    aligned = [_align(column) for column in columns]
    return "\n".join("  ".join(cells).rstrip() for cells in zip(*aligned, strict=True))


def _align(column: list[str]) -> list[str]:
    width = max(map(len, column))
    is_number = len(column) > 1 and all(cell[:1].isdigit() or cell in ("", "-") for cell in column[1:])
    return [cell.rjust(width) if is_number else cell.ljust(width) for cell in column]
