"""The HTML page of a report: the values of its template, and rendering.

The page is self-contained: styles, images, bokeh's script and the data of the curves are embedded, and a content
security policy forbids loading anything else.
"""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

from ...stores import Store
from ...version import __version__
from ..runtime.printable import printable
from .comparison import comparison_table, headline, shared_settings, timing_table
from .curves import curves_note, draw_curves, metrics_over_steps, plot_data
from .distances import draw_distances
from .environment import read_environments
from .epochs import epochs_table
from .gallery import make_gallery
from .log import log_ends
from .metrics import lowest_distance, metrics_table
from .plots import CONTENT_POLICY, line_style
from .runs import Run, train_command
from .samples import commands_to_sample, latest_samples, sample_groups
from .store import describe_store, store_name
from .tables import count_text

ASSETS = "assets"
BOKEH_FILES = ("bokeh.min.js", "bokeh-api.min.js")


def page_values(  # noqa: PLR0917 - as in `report.run`
    runs: list[Run],
    store: Store | None,
    title: str | None,
    notes: Sequence[str],
    commands: Sequence[str],
    source_kind: str | None,
    download: bool,
) -> dict[str, Any]:
    """Return the values of the template; `report.run` documents the arguments."""
    config = runs[0].config
    shown = [latest_samples(run) for run in runs]
    samples, samples_note = sample_groups(runs)
    curves = draw_curves(runs)
    distances, distances_note = draw_distances(runs)
    environments, problems = read_environments(runs)
    encoders = list(dict.fromkeys(encoder for run in runs for encoder in run.config.enc_type))
    warnings = {
        f"{run.name}: {warning}."
        for run, sets in zip(runs, shown, strict=True)
        for one in sets
        if one.metrics
        for warning in one.metrics.warnings
    }
    name = store_name(store.location if store else config.store)
    return {
        "title": title or f"{name}: {count_text(len(runs), 'run', 'runs')}",
        "headline": headline(runs, store),
        "distance": lowest_distance(runs, shown),
        "comparison": comparison_table(runs),
        "metrics": metrics_table(runs, shown),
        "epochs": epochs_table(runs),
        "shared": shared_settings(runs),
        "curves": curves,
        "curves_note": curves_note(runs, curves),
        "metrics_over_steps": metrics_over_steps(runs),
        "distances": distances,
        "distances_note": distances_note,
        "plot_data": plot_data(runs, [*curves, *distances]),
        "samples": samples,
        "commands_to_sample": commands_to_sample(runs),
        "samples_note": samples_note,
        "gallery": make_gallery(store, str(config.vae), encoders, source_kind, download) if store else None,
        "store": describe_store(store) if store else None,
        "timing": timing_table(runs),
        "environments": environments,
        "logs": log_ends(runs),
        "commands": list(commands) or [train_command(run.config) for run in runs],
        "commands_given": bool(commands),
        "notes": [*notes, *problems, *sorted(warnings)],
        "run_names": [run.name for run in runs],
        "line_styles": [line_style(i) for i in range(len(runs))],
        "created": f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M} UTC",
        "version": __version__,
    }


def render(values: dict[str, Any]) -> str:
    """Render the template to HTML."""
    from bokeh.settings import settings  # without models of bokeh, whose import takes longer
    from jinja2 import Environment, StrictUndefined

    assets = files(__package__) / ASSETS
    environment = Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined, finalize=_printable
    )
    names = ("report.html", "report.css", "tables.js", "curves.js")
    page, style, tables, curves = ((assets / name).read_text(encoding="utf-8") for name in names)
    libraries = [(settings.bokehjs_path() / "js" / name).read_text(encoding="utf-8") for name in BOKEH_FILES]
    scripts = {
        "policy": CONTENT_POLICY,
        "style": style,
        "tables_script": tables,
        "curves_script": curves,
        "bokeh": libraries,
    }
    return environment.from_string(page).render(values | scripts)


def _printable(value: Any) -> Any:
    """Return a value of the template; text that is not markup of ours gets visible escapes."""
    return printable(value) if type(value) is str else value
