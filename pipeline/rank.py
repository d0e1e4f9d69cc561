"""`repa-pipe rank`: rank the encoders of a store by the spatial structure of their tokens, before training.

No encoder is run: tokens are read from the store and restored from their codec. All encoders are measured on the same
samples. Without work to do, torch is not imported.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypedDict

import numpy as np
import numpy.typing as npt
from msgspec import Meta

from ..config import RankConfig
from ..config.paths import same_settings
from ..converter import read_record, structure
from ..errors import ConfigError, StoreError
from ..stores import Store, open_store
from ..stores.files import write_json
from ..stores.layout import features_group
from .reporting.plots import dot_figure, write_page
from .runtime.progress import progress
from .runtime.seeds import shuffled

if TYPE_CHECKING:
    from torch import Tensor

logger = logging.getLogger(__name__)

# Functions of `metrics.spatial`.
TITLES = {
    "lds": "LDS (local vs. distant similarity): cosine of adjacent tokens minus cosine of distant tokens",
    "cds": "CDS (correlation decay slope): decrease of the cosine per patch of distance",
    "rmsc": "RMSC (root mean square contrast) of the tokens",
}
PREDICTION = (
    "This ranking is a prediction. Over 27 encoders, iREPA (arXiv 2512.10794) found a correlation with FID of |r| = "
    "0.85 for LDS and 0.26 for linear probing accuracy. Higher is better for all three metrics. Train with the top few "
    "encoders to confirm the order."
)

Row = dict[str, Any]  # encoder, codec, lds, lds_error, …; None where a metric is not defined


@dataclass(frozen=True, slots=True)
class RankRecord:
    """The contents of `rank.json`."""

    rows: Annotated[list[Row], Meta(min_length=1)]
    num_samples: Annotated[int, Meta(ge=1)]
    note: str
    config: RankConfig
    settings: dict[str, Any] | None = None  # None in files of version 0.1.0

    def __post_init__(self) -> None:
        for number, row in enumerate(self.rows):
            structure(row, _RankRow, f"rows[{number}]")


class _RankRow(TypedDict):
    encoder: str
    codec: str
    lds: float | None
    lds_error: float | None
    cds: float | None
    cds_error: float | None
    rmsc: float | None
    rmsc_error: float | None


@dataclass(frozen=True, slots=True)
class RankResult:
    """Metrics of every encoder, by descending LDS."""

    rows: list[Row]
    num_samples: int
    json: str
    page: str

    @property
    def table(self) -> str:
        """One line per encoder: mean over the samples ± standard error."""
        width = max(len("encoder"), *(len(row["encoder"]) for row in self.rows))
        lines = ["  ".join([f"{'encoder':<{width}}", *(f"{name.upper():>17}" for name in TITLES), "stored as"])]
        for row in self.rows:
            values = [f"{_text(row, name):>17}" for name in TITLES]
            lines.append("  ".join([f"{row['encoder']:<{width}}", *values, row["codec"]]))
        return "\n".join([*lines, f"means over {self.num_samples:,} samples ± standard error"])


def run(config: RankConfig) -> RankResult:
    """Measure every complete features group of the store; write the metrics as JSON and the figures as HTML.

    Raises:
        StoreError: the store has no complete features group.
        ConfigError: no metric is defined for any of them.
    """
    with open_store(config.store) as store:
        groups = store.complete_groups("features")
        if not groups:
            raise StoreError(
                f"{config.store} has no complete encoder: add one with 'repa-pipe encode … --encoder NAME'"
            )
        for encoder in store.encoders:
            if features_group(encoder) not in groups:
                logger.warning("skipping %s, which is incomplete: re-run its encode command to finish it", encoder)
        samples = np.sort(shuffled(store.valid_indices(groups), config.seed)[: config.num_samples])
        settings = _settings(config, store, groups)
        rows = _finished_rows(config, settings)
        if rows:
            logger.info("%s already exists with the same settings; skipping", config.out)
            return _result(config, rows, len(samples))
        rows = [_measure(store, group, samples, config.batch_size) for group in groups]
    if all(row[name] is None for row in rows for name in TITLES):
        raise ConfigError(f"no encoder in {config.store} has a square token grid, which the spatial metrics require")
    rows.sort(key=lambda row: (row["lds"] is None, -(row["lds"] or 0.0), row["encoder"]))
    result = _result(config, rows, len(samples))
    paragraphs = PREDICTION, f"Means over {len(samples):,} samples ± one standard error."
    write_page(Path(result.page), f"Ranking of the encoders in {Path(config.store).name}", _figures(rows), paragraphs)
    values = {"rows": rows, "num_samples": len(samples), "note": PREDICTION, "config": config.as_json()}
    write_json(Path(config.out), values | {"settings": settings})  # last: then both files are complete
    return result


def _result(config: RankConfig, rows: list[Row], num_samples: int) -> RankResult:
    return RankResult(rows, num_samples, config.out, str(Path(config.out).with_suffix(".html")))


def _settings(config: RankConfig, store: Store, groups: list[str]) -> dict[str, Any]:
    """Return everything that the rows depend on."""
    fingerprints = {group: store.group(group).fingerprint for group in groups}
    return config.result_settings() | {"images": store.manifest.index_digest, "groups": fingerprints}


def _finished_rows(config: RankConfig, settings: dict[str, Any]) -> list[Row]:
    """Return the rows that were written with the same settings, if any."""
    if not Path(config.out).exists():
        return []
    recorded = read_record(Path(config.out), RankRecord, "delete it, or choose another --out")
    return recorded.rows if same_settings(recorded.settings, settings) else []


def _measure(store: Store, group: str, samples: npt.NDArray[np.int64], batch_size: int) -> Row:
    """Return the row of one group; metrics that are not defined for its token grid are None."""
    import torch

    from ..metrics import spatial
    from ..stores.tokens import codec_of, read_tokens

    found: dict[str, list[Tensor] | None] = {name: [] for name in TITLES}
    with progress(group, len(samples), "samples") as bar:
        for start in range(0, len(samples), batch_size):
            batch = samples[start : start + batch_size]
            tokens = read_tokens(store, group, batch)
            for name, values in found.items():
                if values is not None:
                    try:
                        values.append(getattr(spatial, name)(tokens).double())
                    except ConfigError as error:
                        logger.warning("%s: %s is not available: %s", group, name.upper(), error)
                        found[name] = None
            bar.update(len(batch))
    row: Row = {"encoder": group.split("/", 1)[1], "codec": codec_of(store, group).name}
    for name, values in found.items():
        row[name] = row[f"{name}_error"] = None
        if values is not None:
            joined = torch.cat(values)
            row[name] = float(joined.mean())
            row[f"{name}_error"] = float(joined.std() / len(joined) ** 0.5) if len(joined) > 1 else None
    return row


def _text(row: Row, name: str) -> str:
    if row[name] is None:
        return "–"
    error = row[f"{name}_error"]
    return f"{row[name]:.4f}" + ("" if error is None else f" ± {error:.4f}")


def _figures(rows: list[Row]) -> list[Any]:
    figures: list[Any] = []
    for name, title in TITLES.items():
        shown = sorted((row for row in rows if row[name] is not None), key=lambda row: -float(row[name]))
        if shown:
            names = [row["encoder"] for row in shown]
            errors = [row[f"{name}_error"] or 0.0 for row in shown]
            figures.append(dot_figure(title, names, [row[name] for row in shown], errors))
    return figures
