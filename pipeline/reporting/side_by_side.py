"""Values of several runs side by side. Only values that are comparable are put in one row."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from ..runtime.tables import text_table

NONE = "-"
LABELED = frozenset({"step", "images", "reference images"})


@dataclass(frozen=True, slots=True)
class Row:
    """One value per run; None for a run without it."""

    name: str
    values: tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Section:
    """Rows with a title, and notes on what they do not show."""

    title: str
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()

    def text(self, runs: Sequence[str]) -> str:
        """Return the section as text, below its title."""
        lines = [self.title]
        if self.rows:
            table = text_table(("", *runs), [(row.name, *map(value_text, row.values)) for row in self.rows])
            lines += [f"  {line}" for line in table.splitlines()]
        else:
            lines.append("  none")
        return "\n".join([*lines, *(f"  note: {note}" for note in self.notes)])


@dataclass(frozen=True, slots=True)
class Measured:
    """A value of a run, and everything that another value must share to be comparable.

    Attributes:
        run: position of the run.
        name: of the quantity.
        value: the value.
        key: by aspect, such as `step`, what must be equal.
        label: states the aspects of `LABELED`, if it is not empty.
    """

    run: int
    name: str
    value: Any
    key: tuple[tuple[str, Any], ...] = ()
    label: str = ""


def comparable_rows(found: Iterable[Measured], num_runs: int) -> tuple[tuple[Row, ...], tuple[str, ...]]:
    """Return one row per quantity and key, and a note for each quantity whose runs differ in the key.

    The name of a row states the aspects in which it differs from other rows of the quantity.
    """
    by_name: dict[str, dict[tuple[tuple[str, Any], ...], list[Measured]]] = {}
    for each in found:
        by_name.setdefault(each.name, {}).setdefault(each.key, []).append(each)
    rows, notes = [], []
    for name, by_key in by_name.items():
        aspects = {aspect: {dict(key).get(aspect) for key in by_key} for key in by_key for aspect, _ in key}
        different = [aspect for aspect, values in aspects.items() if len(values) > 1]
        for key, members in by_key.items():
            label = members[0].label
            shown = [aspect for aspect in different if not (label and aspect in LABELED)]
            parts = [label, *(f"{aspect} {value_text(dict(key).get(aspect))}" for aspect in shown)]
            values = {each.run: each.value for each in members}  # the last one of each run
            title = ", ".join([name, *(part for part in parts if part)])
            rows.append(Row(title, tuple(values.get(run) for run in range(num_runs))))
            if any(each.value != values[each.run] for each in members):
                notes.append(f"{title}: a run has several values of the same settings; the last one is shown")
        if different and any(None in row.values for row in rows[-len(by_key) :]):
            notes.append(f"{name} has several rows, which are not comparable: {', '.join(different)} differ")
    return tuple(rows), tuple(notes)


def value_text(value: Any) -> str:
    """Return a value as text; floats with six significant digits."""
    if value is None:
        return NONE
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list | tuple):
        return ", ".join(map(value_text, value)) or NONE
    return f"{value:,}" if isinstance(value, int) else str(value)
