"""`repa-pipe report`: training runs of one store on one HTML page that needs nothing but itself.

The page loads nothing from anywhere: style, pictures, bokeh's script and the curves' data stand in it, and a content
security policy forbids the rest.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any

from .. import __version__
from ..errors import ConfigError, StoreError
from ..stores import Store, open_store
from ..stores.files import atomic_write_bytes
from .reporting.comparison import comparison, headline, losses_at_steps, shared_settings, timing
from .reporting.curves import draw_curves
from .reporting.distances import draw_distances
from .reporting.gallery import make_gallery
from .reporting.metrics import distance_fact, metrics_table
from .reporting.plots import stroke_of
from .reporting.runs import Run, read_runs, train_command
from .reporting.samples import latest_samples, sample_groups
from .reporting.store import describe_store, store_name
from .reporting.tables import count_text

ASSETS = "assets"


def run(  # noqa: PLR0917 - each has one meaning, and callers name most of them
    runs: Sequence[str],
    out: str,
    store: str | None = None,
    title: str | None = None,
    notes: Sequence[str] = (),
    commands: Sequence[str] = (),
) -> Path:
    """Write the page about `runs` to `out` and return its path.

    `runs` are folders of `repa-pipe train`; `store` is where their store lies now. Default: where the first run found
    it, and when it is not there any more, the page says so. `notes` and `commands` are shown as they are; without
    commands those of the training are derived from the runs' configs.

    Raises ConfigError for a folder that is no run and a page that cannot be written, StoreError for a `store` that is
    none.
    """
    found = read_runs(runs)
    with _open_store(found, store) as (opened, problem):
        page = _page(found, opened, title, [*notes, *problem], commands)
    path = Path(out)
    try:
        atomic_write_bytes(path, _render(page).encode())
    except OSError as error:
        raise ConfigError(f"--out {path} cannot be written ({error.strerror}): name another file") from error
    return path


@contextmanager
def _open_store(runs: Sequence[Run], asked: str | None) -> Iterator[tuple[Store | None, list[str]]]:
    """The store, or None and the reason why: only a store that was asked for must be there."""
    paths = list(dict.fromkeys(str(Path(run.config.store).resolve()) for run in runs))
    problems = []
    if asked is None and len(paths) > 1:
        problems.append(f"The runs name {len(paths)} stores; what is said of the store is said of {paths[0]}.")
    try:
        opened = open_store(asked or runs[0].config.store)
    except StoreError as error:
        if asked is not None:
            raise
        yield None, [*problems, f"Nothing is said of the store, as it is not where it was trained from: {error}."]
        return
    with opened:
        yield opened, problems


def _page(
    runs: list[Run], store: Store | None, title: str | None, notes: list[str], commands: Sequence[str]
) -> dict[str, Any]:
    """Everything that the template shows."""
    config = runs[0].config
    shown = [latest_samples(run) for run in runs]
    samples, left_out = sample_groups(runs)
    encoders = list(dict.fromkeys(encoder for run in runs for encoder in run.config.enc_type))
    warnings = {
        f"{run.name}: {warning}."
        for run, sets in zip(runs, shown, strict=True)
        for one in sets
        if one.metrics
        for warning in one.metrics.warnings
    }
    where = store_name(store.path) if store else Path(config.store).name
    return {
        "title": title or f"{where}: {count_text(len(runs), 'run', 'runs')}",
        "headline": headline(runs, store),
        "distance": distance_fact(runs, shown),
        "comparison": comparison(runs),
        "metrics": metrics_table(runs, shown),
        "shared": shared_settings(runs),
        "curves": draw_curves(runs),
        "losses": losses_at_steps(runs),
        "distances": draw_distances(runs),
        "samples": samples,
        "samples_left_out": left_out,
        "gallery": make_gallery(store, str(config.vae), encoders) if store else None,
        "store": describe_store(store) if store else None,
        "timing": timing(runs),
        "commands": list(commands) or [train_command(run.config) for run in runs],
        "commands_given": bool(commands),
        "notes": [*notes, *sorted(warnings)],
        "strokes": [stroke_of(i) for i in range(len(runs))],
        "written": f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M} UTC",
        "version": __version__,
    }


def _render(page: dict[str, Any]) -> str:
    from bokeh.resources import Resources
    from jinja2 import Environment, StrictUndefined

    assets = files(f"{__package__}.reporting") / ASSETS
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined)
    template = environment.from_string((assets / "report.html").read_text(encoding="utf-8"))
    style, script = ((assets / f"report.{ending}").read_text(encoding="utf-8") for ending in ("css", "js"))
    drawn = page["curves"] or page["distances"]
    bokeh = Resources(mode="inline", components=["bokeh"], log_level="error").render_js() if drawn else ""
    return template.render(page | {"style": style, "script": script, "bokeh": bokeh})
