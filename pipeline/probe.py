"""`repa-pipe probe`: measure the representations of a SiT's blocks over checkpoints, depth and noise levels.

The two probes of REPA (arXiv 2410.06940): a linear classifier on a block's tokens, averaged over the image, and CKNNA
with 10 neighbors between these averages and those of an encoder's patch tokens. Everything is read from the store; no
encoder is run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.nn.functional import normalize

from ..config import ProbeConfig
from ..converter import read_json
from ..errors import StoreError
from ..metrics import cknna, linear_probe
from ..stores import Store, open_store
from ..stores.files import atomic_write, write_json
from .artifacts.checkpoints import TrainedModel, load_model, resolve_checkpoint
from .artifacts.run_folder import RunFolder, run_of
from .evaluation.probe_features import ProbedImages
from .reporting.plots import Line, line_figure, write_page
from .runtime.device import choose_device

TOPK = 10
MAX_LINES = 8  # checkpoints per figure

Row = dict[str, Any]  # checkpoint, step, time, block, accuracy, cknna_<encoder> …


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """Probes of every checkpoint, noise level and block."""

    rows: list[Row]
    encoders: dict[str, float]  # linear probing accuracy of their patch tokens
    json: str
    parquet: str
    page: str

    @property
    def table(self) -> str:
        """One line per row, then one per encoder."""
        names = ["accuracy", *(f"cknna_{encoder}" for encoder in self.encoders)]
        lines = ["  ".join([f"{'step':>9}", "time", "block", *names])]
        for row in self.rows:
            values = [f"{row[name]:>{len(name)}.4f}" for name in names]
            lines.append("  ".join([f"{row['step']:>9,}", f"{row['time']:>4g}", f"{row['block']:>5}", *values]))
        lines += [f"accuracy of {encoder} tokens: {value:.4f}" for encoder, value in self.encoders.items()]
        return "\n".join(lines)


def run(config: ProbeConfig) -> ProbeResult:
    """Probe every checkpoint that has not been probed with the same settings before.

    Raises:
        CheckpointError: there is no checkpoint.
        StoreError: the store lacks the latents or an encoder.
        ConfigError: the model lacks a requested block.
    """
    device = choose_device(config.device)
    last = resolve_checkpoint(config.checkpoint)
    run_folder = run_of(last) or RunFolder(last.parent)
    checkpoints = RunFolder(Path(config.checkpoint)).checkpoints() or [last]
    out = Path(config.out) if config.out else run_folder.probes
    trained = load_model(last, config.ema)
    with open_store(config.store or trained.config.store) as store:
        latents = config.vae or str(trained.config.vae)
        encoders = config.encoder or store.encoders
        if not encoders:
            raise StoreError(
                f"{store.location} has no encoder to compare with: add one with 'repa-pipe encode … --encoder NAME'"
            )
        images = ProbedImages(store, latents, encoders, config)
        target = {encoder: images.of_encoder(encoder).to(device) for encoder in encoders}
        settings = _settings(config, store, latents, encoders)
        rows = _finished_rows(out, settings)
        accuracies = {encoder: _accuracy(features, images) for encoder, features in target.items()}
        result = ProbeResult(rows, accuracies, str(out), *(str(out.with_suffix(end)) for end in (".parquet", ".html")))
        for checkpoint in checkpoints:
            name = f"{checkpoint.name} {checkpoint.stat().st_mtime_ns}"
            if not any(row["checkpoint"] == name for row in rows):
                trained = load_model(checkpoint, config.ema)
                trained.model.to(device)
                rows += _probe_checkpoint(name, trained, images, target, config.time)
            _write(result, settings, run_folder.name)
    return result


def _probe_checkpoint(
    name: str, trained: TrainedModel, images: ProbedImages, target: dict[str, Tensor], times: Sequence[float]
) -> list[Row]:
    device = trained.model.pos_embed.device
    rows: list[Row] = []
    for time in times:
        for block, features in images.of_blocks(trained, time).items():
            own = features.to(device)
            row: Row = {"checkpoint": name, "step": trained.step, "time": time, "block": block}
            row["accuracy"] = _accuracy(own, images)
            for encoder, tokens in target.items():
                row[f"cknna_{encoder}"] = cknna(normalize(own), normalize(tokens), TOPK)
            rows.append(row)
    return rows


def _accuracy(features: Tensor, images: ProbedImages) -> float:
    cut = images.num_train
    return linear_probe(features[:cut], images.labels[:cut], features[cut:], images.labels[cut:])


def _settings(config: ProbeConfig, store: Store, latents: str, encoders: Sequence[str]) -> dict[str, Any]:
    """Return everything that a checkpoint's rows depend on."""
    settings = config.result_settings()
    del settings["checkpoint"]  # recorded in each row
    digest = store.manifest.index_digest
    return settings | {"store": store.location, "images": digest, "vae": latents, "encoder": list(encoders)}


def _finished_rows(out: Path, settings: dict[str, Any]) -> list[Row]:
    values = read_json(out) if out.exists() else {}
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
    """Draw every measure over depth, with one line per checkpoint, and for the best block over steps and noise."""
    rows = result.rows
    times = sorted({row["time"] for row in rows})
    steps = sorted({row["step"] for row in rows})
    shown = _spaced_evenly(steps, MAX_LINES)
    drawn = []
    for measure in ["accuracy", *(f"cknna_{encoder}" for encoder in result.encoders)]:
        by_depth = [
            _best_line(rows, measure, f"step {step:,}", "block", i, step=step, time=times[0])
            for i, step in enumerate(shown)
        ]
        if measure == "accuracy":
            depth = max(row["block"] for row in rows)
            by_depth += [
                Line(name, [1, depth], [value] * 2, -1 - i) for i, (name, value) in enumerate(result.encoders.items())
            ]
        drawn.append(line_figure("block", measure, by_depth, f"{title}: {measure} over depth at time {times[0]:g}"))
        if len(steps) > 1:
            by_step = [
                _best_line(rows, measure, f"time {time:g}", "step", i, time=time) for i, time in enumerate(times)
            ]
            drawn.append(line_figure("step", measure, by_step, f"{title}: {measure} of the best block over steps"))
        if len(times) > 1:
            by_time = [
                _best_line(rows, measure, f"step {step:,}", "time", i, step=step) for i, step in enumerate(shown)
            ]
            drawn.append(
                line_figure("time", measure, by_time, f"{title}: {measure} of the best block over noise levels", "0.00")
            )
    return drawn


def _spaced_evenly(values: Sequence[int], count: int) -> Sequence[int]:
    """Return at most `count` of the values, including the first and the last."""
    if len(values) <= count:
        return values
    return [values[round(i * (len(values) - 1) / (count - 1))] for i in range(count)]


def _best_line(rows: Sequence[Row], measure: str, name: str, axis: str, position: int, **chosen: Any) -> Line:
    """Return the highest value at each position on the axis, among the rows with the `chosen` values."""
    best: dict[float, float] = {}
    for row in rows:
        if all(row[key] == value for key, value in chosen.items()):
            best[row[axis]] = max(row[measure], best.get(row[axis], -1.0))
    return Line(name, sorted(best), [best[x] for x in sorted(best)], position)
