"""`repa-pipe compare`: what differs between runs, and their results side by side. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ...errors import ConfigError
from ..artifacts.run_folder import RunFolder
from ..artifacts.run_record import read_run_record
from ..reporting.differences import environment_section, settings_sections, store_section
from ..reporting.results import costs, evaluations, last_common_step, losses_at
from ..reporting.runs import Run, read_runs
from ..reporting.side_by_side import Row, Section, comparable_rows
from ..reporting.tables import count_text


@dataclass(frozen=True, slots=True)
class Comparison:
    """Runs, and the sections of their comparison, whose rows have one value per run."""

    runs: list[str]
    sections: list[Section]

    @property
    def text(self) -> str:
        """The comparison as text."""
        return "\n\n".join(section.text(self.runs) for section in self.sections)


def run(folders: Sequence[str]) -> Comparison:
    """Compare runs.

    Args:
        folders: two or more run folders.

    Raises:
        ConfigError: there are fewer, one is given twice or is no run folder, or a file in it is damaged.
    """
    if len(folders) < 2:
        given = count_text(len(folders), "run is", "runs are")
        raise ConfigError(f"{given} given: expected at least two run folders of 'repa-pipe train'")
    runs = read_runs(folders)
    records = [read_run_record(RunFolder(each.folder)) for each in runs]
    step = last_common_step(runs)
    evaluated, notes = comparable_rows(evaluations(runs), len(runs))
    spent, of_costs = comparable_rows(costs(runs, records, step), len(runs))
    states = tuple(record.sessions[-1].shown_state() if record and record.sessions else None for record in records)
    ends = (Row("state", states), Row("last step", tuple(each.step for each in runs)))
    return Comparison(
        [each.name for each in runs],
        [
            *settings_sections(runs),
            store_section(runs),
            environment_section(records),
            *_losses(runs, step, ends),
            Section("Metrics of generated images", evaluated, notes),
            Section("Cost", spent, of_costs),
        ],
    )


def _losses(runs: Sequence[Run], step: int | None, ends: tuple[Row, ...]) -> list[Section]:
    """Return the losses at the last common step and, if a run continued, at the end of each run."""
    if step is None:
        common = Section("Losses at the last common step", (), ("the logs have no step in common",))
    else:
        common = Section(
            f"Losses at step {step:,}, the last common one", *comparable_rows(losses_at(runs, step), len(runs))
        )
    if all(each.step == step for each in runs):
        return [common, Section("End", ends)]
    rows, notes = comparable_rows(losses_at(runs, None), len(runs))
    return [common, Section("End, with the losses of the last row", (*ends, *rows), notes)]
