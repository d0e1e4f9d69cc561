"""`repa-pipe probe`: what a SiT's blocks know of the images, over checkpoints, depth and noise.

The two probes of REPA (arXiv 2410.06940): a linear classifier on a block's tokens, averaged over the image, and CKNNA,
with 10 neighbors, between these and an encoder's patch tokens, averaged too. All from the store: no encoder runs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.nn.functional import normalize

from ..config import ProbeConfig, read_config
from ..errors import StoreError
from ..metrics import cknna, linear_probe
from ..stores import Store, open_store
from ..stores.files import atomic_write, write_json
from .artifacts.checkpoints import FOLDER, TrainedModel, list_checkpoints, load_model, resolve_checkpoint
from .evaluation.probe_features import ProbedImages
from .reporting.plots import Line, line_figure, write_page
from .runtime.device import choose_device

TOPK = 10
MAX_LINES = 8  # checkpoints in a figure over depth

Row = dict[str, Any]  # checkpoint, step, time, block, accuracy, cknna_<encoder> …


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """The figures of every checkpoint, noise level and block."""

    rows: list[Row]
    encoders: dict[str, float]  # accuracy of the encoders' own tokens
    json: str
    parquet: str
    page: str

    @property
    def table(self) -> str:
        """One line a row."""
        names = ["accuracy", *(f"cknna_{encoder}" for encoder in self.encoders)]
        lines = ["  ".join([f"{'step':>9}", "time", "block", *names])]
        for row in self.rows:
            values = [f"{row[name]:>{len(name)}.4f}" for name in names]
            lines.append("  ".join([f"{row['step']:>9,}", f"{row['time']:>4g}", f"{row['block']:>5}", *values]))
        lines += [f"accuracy of {encoder}'s own tokens: {value:.4f}" for encoder, value in self.encoders.items()]
        return "\n".join(lines)


def run(config: ProbeConfig) -> ProbeResult:
    """Probe every checkpoint; what an earlier run of the same settings has done is not done again.

    Raises CheckpointError, StoreError and ConfigError for what cannot work.
    """
    device = choose_device(config.device)
    last = resolve_checkpoint(config.checkpoint)
    run_folder = last.parent.parent if last.parent.name == FOLDER else last.parent
    checkpoints = list_checkpoints(Path(config.checkpoint)) or [last]
    out = Path(config.out) if config.out else run_folder / "probe.json"
    facts = load_model(last, config.ema)
    with open_store(config.store or facts.config.store) as store:
        latents = config.vae or str(facts.config.vae)
        encoders = config.encoder or _encoders_of(store)
        images = ProbedImages(store, latents, encoders, config)
        target = {encoder: images.of_encoder(encoder).to(device) for encoder in encoders}
        settings = _settings(config, store, latents, encoders)
        rows = _finished(out, settings)
        accuracies = {encoder: _accuracy(features, images) for encoder, features in target.items()}
        result = ProbeResult(rows, accuracies, str(out), *(str(out.with_suffix(end)) for end in (".parquet", ".html")))
        for checkpoint in checkpoints:
            name = f"{checkpoint.name} {checkpoint.stat().st_mtime_ns}"
            if not any(row["checkpoint"] == name for row in rows):
                trained = load_model(checkpoint, config.ema)
                trained.model.to(device)
                rows += _probe(name, trained, images, target, config.time)
            _write(result, settings, run_folder.name)
    return result


def _encoders_of(store: Store) -> tuple[str, ...]:
    names = tuple(name.split("/", 1)[1] for name in store.group_names() if name.startswith("features/"))
    if not names:
        raise StoreError(f"{store.location} has no encoder to compare with: run 'repa-pipe encode … --encoder' first")
    return names


def _probe(
    name: str, trained: TrainedModel, images: ProbedImages, target: dict[str, Tensor], times: Sequence[float]
) -> list[Row]:
    """Rows of one checkpoint."""
    device = trained.model.pos_embed.device
    rows: list[Row] = []
    for time in times:
        for block, features in images.of_blocks(trained, time).items():
            own = features.to(device)
            row: Row = {"checkpoint": name, "step": trained.step, "time": time, "block": block}
            row["accuracy"] = _accuracy(own, images)
            for encoder, theirs in target.items():
                row[f"cknna_{encoder}"] = cknna(normalize(own), normalize(theirs), TOPK)
            rows.append(row)
    return rows


def _accuracy(features: Tensor, images: ProbedImages) -> float:
    cut = images.num_train
    return linear_probe(features[:cut], images.labels[:cut], features[cut:], images.labels[cut:])


def _settings(config: ProbeConfig, store: Store, latents: str, encoders: Sequence[str]) -> dict[str, Any]:
    """All that shapes a checkpoint's rows."""
    harmless = {item.name for item in dataclasses.fields(config) if item.metadata["harmless"]} | {"checkpoint"}
    shaped = {name: value for name, value in config.as_json().items() if name not in harmless}
    digest = store.manifest.index_digest
    return shaped | {"store": str(store.path), "images": digest, "vae": latents, "encoder": list(encoders)}


def _finished(out: Path, settings: dict[str, Any]) -> list[Row]:
    values = read_config(out) if out.exists() else {}
    return list(values["rows"]) if values.get("settings") == settings else []


def _write(result: ProbeResult, settings: dict[str, Any], title: str) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    values = {"rows": result.rows, "encoder_accuracy": result.encoders, "settings": settings, "cknna_topk": TOPK}
    write_json(Path(result.json), values)
    parquet = Path(result.parquet)
    with atomic_write(parquet) as temporary:
        pq.write_table(pa.Table.from_pylist(result.rows), temporary)
    write_page(Path(result.page), f"{title}: probes", figures(result, title))


def figures(result: ProbeResult, title: str) -> list[Any]:
    """Every measure over depth (a line a checkpoint), and of the best block over steps and over noise levels."""
    rows = result.rows
    times = sorted({row["time"] for row in rows})
    steps = sorted({row["step"] for row in rows})
    shown = steps if len(steps) <= MAX_LINES else [steps[round(i * (len(steps) - 1) / 7)] for i in range(MAX_LINES)]
    drawn = []
    for measure in ["accuracy", *(f"cknna_{encoder}" for encoder in result.encoders)]:

        def line(name: str, axis: str, position: int, measure: str = measure, **chosen: Any) -> Line:
            """The best value at each place of the axis, of the rows that are chosen."""
            best: dict[float, float] = {}
            for row in rows:
                if all(row[key] == value for key, value in chosen.items()):
                    best[row[axis]] = max(row[measure], best.get(row[axis], -1.0))
            return Line(name, sorted(best), [best[place] for place in sorted(best)], position)

        by_depth = [line(f"step {step:,}", "block", i, step=step, time=times[0]) for i, step in enumerate(shown)]
        if measure == "accuracy":
            depth = max(row["block"] for row in rows)
            flat = [
                Line(name, [1, depth], [value] * 2, -1 - i) for i, (name, value) in enumerate(result.encoders.items())
            ]
            by_depth += flat
        drawn.append(line_figure("block", measure, by_depth, f"{title}: {measure} over depth at time {times[0]:g}"))
        if len(steps) > 1:
            by_step = [line(f"time {time:g}", "step", i, time=time) for i, time in enumerate(times)]
            drawn.append(line_figure("step", measure, by_step, f"{title}: {measure} of the best block over steps"))
        if len(times) > 1:
            by_time = [line(f"step {step:,}", "time", i, step=step) for i, step in enumerate(shown)]
            drawn.append(line_figure("time", measure, by_time, f"{title}: best block over noise levels", "0.00"))
    return drawn
