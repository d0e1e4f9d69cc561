"""The results of a sweep as tables: one row per run, and one row per group of runs that differ only in the seed.

They do not depend on time or place: an interrupted sweep ends with the same tables as an uninterrupted one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...converter import read_json, structure, unstructure
from ...errors import ConfigError
from ...stores.files import atomic_write, write_json
from ..artifacts.run_folder import RunFolder
from ..reporting.comparison import settings_that_differ
from ..reporting.epochs import epochs_to_fid
from ..reporting.runs import Run, read_runs
from ..reporting.seeds import comparable_metrics, seed_groups, spread
from .job import Outcome

FILE = "results.json"
EP_FID = "ep_fid@"

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Results:
    """The contents of `results.json`."""

    runs: list[Row]
    over_seeds: list[Row]
    failed: list[Row]


def read_finished(out: Path, run_folders: Sequence[RunFolder]) -> Results | None:
    """Return the contents of `results.json` if they are what the run folders hold now and no run failed; else None."""
    try:
        found = _results(run_folders, ())
        # compared as text, in which NaN equals itself
        return found if repr(read_json(out / FILE)) == repr(unstructure(found)) else None
    except ConfigError:
        return None


def require_results(out: Path) -> Results:
    """Read `results.json`; raise ConfigError if it does not exist or is damaged."""
    return structure(read_json(out / FILE), Results, str(out / FILE))


def write_results(
    out: Path, run_folders: Sequence[RunFolder], outcomes: Sequence[Outcome]
) -> tuple[list[Row], list[Row]]:
    """Write `results.json` and `results.parquet`; return the rows of the runs, and the rows over seeds."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    found = _results(run_folders, outcomes)
    write_json(out / FILE, unstructure(found))
    parquet = (out / FILE).with_suffix(".parquet")
    with atomic_write(parquet) as temporary:
        pq.write_table(pa.Table.from_pylist(found.runs), temporary)
    return found.runs, found.over_seeds


def _results(run_folders: Sequence[RunFolder], outcomes: Sequence[Outcome]) -> Results:
    runs = read_runs([str(run_folder.path) for run_folder in run_folders]) if run_folders else []
    rows = _rows(runs)
    failed = [{"run": one.name, "stage": one.stage, "error": one.error} for one in outcomes if one.error]
    return Results(rows, _means(runs, rows), failed)


def table(means: Sequence[Row]) -> str:
    """Return the rows over seeds as text: settings, number of runs, mean ± standard deviation of every metric."""
    if not means:
        return "no run has started"
    names = list(means[0]["settings"])
    figures = [name for name in means[0]["figures"] if any(row["figures"][name] for row in means)]
    lines = [[*names, "runs", *figures]]
    for row in means:
        settings = [str(row["settings"][name]) for name in names]
        lines.append([*settings, str(row["num_runs"]), *(_text(row["figures"][name]) for name in figures)])
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return "\n".join("  ".join(word.rjust(width) for word, width in zip(line, widths, strict=True)) for line in lines)


def _rows(runs: Sequence[Run]) -> list[Row]:
    different, epochs = settings_that_differ(runs), epochs_to_fid(runs)
    rows = []
    for i, (run, metrics) in enumerate(zip(runs, comparable_metrics(runs), strict=True)):
        row: Row = {"run": run.name, "seed": run.config.seed, "step": run.step}
        row |= {name: _plain(getattr(run.config, name)) for name in different}
        row |= {"denoising_loss": run.final("denoising_loss")}
        row |= {"alignment_loss": run.final("alignment_loss") if run.is_aligned else None}
        row |= {"num_samples": metrics.num_samples, **metrics.metrics} if metrics else {}
        found = {level: reached[i] for level, reached in epochs.items()}
        row |= {f"{EP_FID}{level}": each and each.epochs for level, each in found.items()}
        rows.append(row)
    names = list(dict.fromkeys(name for row in rows for name in row))
    return [{name: row.get(name) for name in names} for row in rows]


def _means(runs: Sequence[Run], rows: Sequence[Row]) -> list[Row]:
    settings = [name for name in settings_that_differ(runs) if name != "seed"]
    known = {"run", "seed", "step", "num_samples", *settings}
    means = []
    for group in seed_groups(runs):
        figures = {}
        for name in rows[0]:
            if name not in known:
                values = [rows[position][name] for position in group]
                # the mean of the seeds that reached a FID would be lower than that of all
                found = None if name.startswith(EP_FID) and None in values else spread(values)
                figures[name] = found and dataclasses.asdict(found)
        shared = {name: rows[group[0]][name] for name in settings}
        seeds = sorted(rows[position]["seed"] for position in group)
        means.append({"settings": shared, "num_runs": len(group), "seeds": seeds, "figures": figures})
    return means


def _plain(value: Any) -> Any:
    return "+".join(value) or "none" if isinstance(value, tuple) else value


def _text(figure: Row | None) -> str:
    if figure is None:
        return "–"
    return f"{figure['mean']:.4f}" + (f" ± {figure['deviation']:.4f}" if figure["deviation"] is not None else "")
