"""`repa-pipe probe`: measure the representations of a SiT's blocks over checkpoints, depth and noise levels.

The two probes of REPA (arXiv 2410.06940): a linear classifier on a block's tokens, averaged over the image, and CKNNA
with 10 neighbors between these averages and those of an encoder's patch tokens. Everything is read from the store; no
encoder is run.
"""

from __future__ import annotations

import glob
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..config import ProbeConfig
from ..errors import ConfigError, DamagedCheckpointError, StoreError
from ..stores import Store, open_store
from ..stores.files import atomic_write, remove_leftovers, write_json
from ..stores.hub import is_hub
from ..stores.layout import features_group, latents_group
from .artifacts.checkpoints import load_model, resolve_checkpoint, unrecorded
from .artifacts.damaged import read_or_set_aside
from .artifacts.digests import file_digest
from .artifacts.probe_files import Row, probe_file, read_probes, same_probe_settings
from .artifacts.run_folder import RunFolder, run_of
from .reporting.plots import Line, line_figure, write_page
from .runtime.lease import lease
from .runtime.seeds import STREAMS_VERSION

logger = logging.getLogger(__name__)

MAX_LINES = 8  # checkpoints per figure


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
    if is_hub(config.checkpoint):
        config.require(config.out is not None, "out", "expected an output file, since the checkpoint has no folder")
    last = resolve_checkpoint(config.checkpoint)
    run_folder = run_of(last) or RunFolder(last.parent)
    checkpoints = RunFolder(Path(config.checkpoint)).checkpoints() or [last]
    has_config = run_folder.config_file.exists()
    training = run_folder.read_config() if has_config else load_model(last, config.ema, unrecorded(config)).config
    if training.token_latents:
        raise ConfigError(
            f"{config.checkpoint} was trained on tokens of {training.token_latents} (--token-latents): probe reads the "
            "latents of a VAE"
        )
    with open_store(config.store or training.store) as store:
        latents = store.vae_name(config.vae or str(training.vae))
        encoders = config.encoder or store.encoders
        if not encoders:
            raise StoreError(
                f"{store.location} has no encoder to compare with: add one with 'repa-pipe encode … --encoder NAME'"
            )
        store.valid_indices([latents_group(latents), *map(features_group, encoders)])
        settings = _settings(config, store, latents, encoders)
        out = probe_file(config.out, settings, checkpoints)
        with lease(out.parent, out.stem):
            remove_leftovers(out.parent, f"{glob.escape(out.stem)}.*")
            result = _finished(out, settings)
            todo = _todo(checkpoints, result.rows)
            if todo:
                _probe(config, store, todo, result, settings, run_folder.name)
            else:
                logger.info("%s already exists with the same settings; skipping", out)
    return result


def _todo(checkpoints: Sequence[Path], rows: Sequence[Row]) -> dict[str, Path]:
    """Return the checkpoints without rows, by the name that rows record: it has the digest of the file.

    Earlier versions recorded its modification time instead.
    """
    probed = {row["checkpoint"] for row in rows}
    todo = [path for path in checkpoints if f"{path.name} {path.stat().st_mtime_ns}" not in probed]
    names = {f"{path.name} {file_digest(path)}": path for path in todo}
    return {name: path for name, path in names.items() if name not in probed}


def _probe(  # noqa: PLR0917 - called once
    config: ProbeConfig, store: Store, todo: dict[str, Path], result: ProbeResult, settings: dict[str, Any], title: str
) -> None:
    """Add the rows of the checkpoints `todo` to the result, and write it after each of them."""
    from .evaluation.probe_features import ProbedImages, accuracy, probe_checkpoint
    from .runtime.device import choose_device, warn_if_emulated

    device = choose_device(config.device)
    warn_if_emulated(config.precision, device)
    images = ProbedImages(store, settings["vae"], settings["encoder"], config)
    target = {encoder: images.of_encoder(encoder).to(device) for encoder in settings["encoder"]}
    result.encoders.update({encoder: accuracy(features, images) for encoder, features in target.items()})
    for name, checkpoint in todo.items():
        try:
            trained = load_model(checkpoint, config.ema, unrecorded(config))
        except DamagedCheckpointError as error:
            if len(todo) == 1:
                raise
            logger.warning("%s; it is left out", error)
            continue
        trained.model.to(device)
        result.rows.extend(probe_checkpoint(name, trained, images, target, config.time))
        _write(result, settings, title)


def _settings(config: ProbeConfig, store: Store, latents: str, encoders: Sequence[str]) -> dict[str, Any]:
    """Return everything that a checkpoint's rows depend on."""
    settings = config.result_settings()
    del settings["checkpoint"]  # recorded in each row
    digest = store.manifest.index_digest
    return settings | {
        "store": store.location,
        "images": digest,
        "vae": latents,
        "encoder": list(encoders),
        "random_streams": STREAMS_VERSION,
    }


def _finished(out: Path, settings: dict[str, Any]) -> ProbeResult:
    """Return the result that was written with the same settings, else an empty one."""
    recorded = read_or_set_aside(out, lambda: read_probes(out), "all checkpoints are probed again")
    same = recorded is not None and same_probe_settings(recorded.settings, settings)
    rows, encoders = (recorded.rows, recorded.encoder_accuracy) if recorded and same else ([], {})
    return ProbeResult(rows, encoders, str(out), *(str(out.with_suffix(end)) for end in (".parquet", ".html")))


def _write(result: ProbeResult, settings: dict[str, Any], title: str) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    from .evaluation.probe_features import TOPK

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
