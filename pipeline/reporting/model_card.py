"""The model card of an exported model: what it is, how it was trained, and what was measured of it.

A folder gets `README.md`, as the Hugging Face Hub shows it, and next to it `curves.png` and `samples.png`, if the run
has a log and generated images of this step.
"""

from __future__ import annotations

import json
import logging
import math
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...config import TrainConfig
from ...errors import RepaPipeError
from ...stores.hub import HubLocation, is_hub
from ...version import __version__
from ..artifacts.hub_models import HubModel
from ..artifacts.metric_files import MetricRecord, read_curve, read_metrics_file
from ..artifacts.metrics_log import read_metrics
from ..artifacts.run_folder import RunFolder
from ..artifacts.sample_files import SampleFiles, SampleRecord, sample_sets, settings_name
from .tables import number_text

logger = logging.getLogger(__name__)

CARD, CURVES, SAMPLES = "README.md", "curves.png", "samples.png"
_LOSSES = ("denoising_loss", "alignment_loss", "val_denoising_loss")
_MAX_POINTS = 400
_PANEL, _MARGIN, _TITLE = (460, 300), (70, 20), 30  # pixels: size; left and right; top and bottom


@dataclass(frozen=True, slots=True, kw_only=True)
class Described:
    """What a card describes."""

    name: str
    license: str
    config: TrainConfig
    shared: TrainConfig  # the same settings without folders, as they are published
    step: int
    ema: bool
    num_weights: int
    vae: str | None
    classes: int
    checkpoint: str | None  # what `sample --checkpoint` takes; None if there is no such file
    has_pipeline: bool


@dataclass(frozen=True, slots=True)
class _Measured:
    """One evaluation of images of the exported step."""

    images: SampleRecord
    metrics: MetricRecord


def write_card(folder: Path, described: Described, run: RunFolder | None) -> None:
    """Write the card and its pictures; `run` is the run folder of the checkpoint, if it is in one."""
    curves = _curves_of(run) if run else []
    if curves:
        draw_panels(folder / CURVES, curves)
    sets = list(_sets(run, described)) if run else []
    grid = next((files.grid for files, _ in sets if files.grid.is_file()), None)
    if grid:
        shutil.copyfile(grid, folder / SAMPLES)
    parts = [
        _header(described),
        _model(described),
        _usage(described),
        _training(described),
        f"## Curves\n\n![{', '.join(name for name, _ in curves)} over steps]({CURVES})" if curves else "",
        _metrics(list(_measured(sets))),
        f"## Samples\n\n![Generated images]({SAMPLES})" if grid else "",
        f"Written by repa-pipe {__version__}.",
    ]
    (folder / CARD).write_text("\n\n".join(part for part in parts if part) + "\n", encoding="utf-8")


def _header(described: Described) -> str:
    """Return the metadata of the Hub, in YAML; text is quoted as JSON, which YAML contains."""
    config = described.config
    entries = {
        "license": json.dumps(described.license),
        "library_name": "diffusers" if described.has_pipeline else "repa-pipe",
        "pipeline_tag": "unconditional-image-generation",
        "tags": json.dumps(["repa-pipe", "diffusion", config.model.split("-")[0].lower()]),
    }
    if is_hub(config.init_from):
        entries["base_model"] = json.dumps(HubModel.parse(str(config.init_from)).repo)
    if is_hub(config.store):
        entries["datasets"] = json.dumps([HubLocation.parse(config.store).repo])
    return "\n".join(["---", *(f"{name}: {value}" for name, value in entries.items()), "---"])


def _model(described: Described) -> str:
    config = described.config
    weights = "EMA" if described.ema else "without EMA"
    images = described.step * config.batch_size
    rows = {
        "model": f"{config.model}, {described.num_weights / 1e6:,.1f} M parameters, weights {weights}",
        "step": f"{described.step:,} of batches of {config.batch_size:,} ({images:,} images)",
        "latents": f"VAE {described.vae}" if described.vae else f"tokens of {config.token_latents}",
        "classes": f"{described.classes:,}",
        "aligned with": ", ".join(config.enc_type) if config.proj_coeff and config.enc_type else "no encoder",
        "path": config.path_type,
    }
    return f"# {described.name}\n\n" + _table(("", ""), list(rows.items()))


def _usage(described: Described) -> str:
    parts = []
    if described.checkpoint:
        parts.append(f"```sh\nrepa-pipe sample --checkpoint {described.checkpoint} --out samples.npz\n```")
    if described.has_pipeline:
        parts.append(
            "```python\nfrom diffusers import DiffusionPipeline\n\n"
            f"pipeline = DiffusionPipeline.from_pretrained({json.dumps(described.name)}, trust_remote_code=True)\n"
            "image = pipeline([0], guidance_scale=1.5, num_inference_steps=50).images[0]\n```"
        )
    return "## Use\n\n" + "\n\n".join(parts)


def _training(described: Described) -> str:
    settings = json.dumps(described.shared.as_json(), indent=1)
    return (
        f"## Training\n\n```sh\n{described.shared.command()}\n```\n\n"
        f"<details><summary>All settings</summary>\n\n```json\n{settings}\n```\n\n</details>"
    )


def _sets(run: RunFolder, described: Described) -> Iterator[tuple[SampleFiles, SampleRecord]]:
    """Yield the generated images of the exported weights; files that cannot be read are reported."""
    for files in sample_sets(run):
        try:
            record = files.read_record()
        except RepaPipeError as error:
            logger.warning("left out of the card: %s", error)
            continue
        if record.step == described.step and record.config.ema == described.ema:
            yield files, record


def _measured(sets: Sequence[tuple[SampleFiles, SampleRecord]]) -> Iterator[_Measured]:
    for files, record in sets:
        for path in files.all_metrics():
            try:
                yield _Measured(record, read_metrics_file(path))
            except RepaPipeError as error:
                logger.warning("left out of the card: %s", error)


def _metrics(measured: Sequence[_Measured]) -> str:
    """Return a table of metrics, each with its detector, the numbers of images, the reference and how to sample."""
    rows = [
        (
            kind,
            number_text(value),
            detector,
            f"{each.metrics.num_samples:,}" if each.metrics.num_samples else "–",
            f"{each.metrics.reference_text()} ({Path(each.metrics.config.reference).name})",
            settings_name(each.images.config),
        )
        for each in measured
        for name, value in each.metrics.metrics.items()
        for kind, detector in [each.metrics.split(name)]
    ]
    head = ("metric", "value", "detector", "generated images", "compared with", "sampling")
    return f"## Metrics\n\n{_table(head, rows)}" if rows else ""


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(' '.join(cell.split()).replace('|', '/') for cell in line)} |" for line in lines)


Curve = tuple[str, list[tuple[float, float]]]  # name, and (step, value)


def _curves_of(run: RunFolder) -> list[Curve]:
    """Return the losses in the log, and the metrics of every checkpoint."""
    curves: list[Curve] = []
    try:
        rows = read_metrics(run)
        for name in _LOSSES:
            curves.append((name, [(row["step"], row[name]) for row in rows if _is_number(row.get(name))]))
    except RepaPipeError as error:
        logger.warning("left out of the card: %s", error)
    for path in sorted(run.curves.glob("*.json")):
        try:
            found = read_curve(path).rows
        except RepaPipeError as error:
            logger.warning("left out of the card: %s", error)
            continue
        names = dict.fromkeys(name for row in found for name in row["metrics"])
        for name in names:
            points = [(row["step"], row["metrics"][name]) for row in found if _is_number(row["metrics"].get(name))]
            curves.append((f"{name} ({path.stem})", points))
    return [(name, points) for name, points in curves if points]


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def draw_panels(path: Path, curves: Sequence[Curve], columns: int = 2) -> None:
    """Draw one panel per curve as a PNG file, with the range of steps and values at the axes."""
    from PIL import Image, ImageDraw

    width, height = _PANEL
    rows = -(-len(curves) // columns)
    image = Image.new("RGB", (width * min(columns, len(curves)), height * rows), "white")
    draw = ImageDraw.Draw(image)
    for number, (name, points) in enumerate(curves):
        left, top = number % columns * width, number // columns * height
        box = (left + _MARGIN[0], top + _TITLE, left + width - _MARGIN[1], top + height - _TITLE)
        draw.rectangle(box, outline="gray")
        draw.text((box[0], top + 8), name, fill="black")
        _draw_curve(draw, box, points)
    image.save(path)


def _draw_curve(draw: Any, box: tuple[int, int, int, int], points: Sequence[tuple[float, float]]) -> None:
    every = -(-len(points) // _MAX_POINTS)
    shown = [*points[::every], points[-1]]
    (x_low, x_high), (y_low, y_high) = ((min(axis), max(axis)) for axis in zip(*shown, strict=True))
    width, height = box[2] - box[0], box[3] - box[1]
    line = [
        (
            box[0] + width * (x - x_low) / (x_high - x_low or 1),
            box[3] - height * (y - y_low) / (y_high - y_low or 1),
        )
        for x, y in shown
    ]
    draw.line(line, fill="#1f5fa8", width=2)
    for x, y, text in (
        (box[0] - 62, box[1], number_text(y_high)),
        (box[0] - 62, box[3] - 12, number_text(y_low)),
        (box[0], box[3] + 6, f"step {x_low:,.0f}"),
        (box[2] - 90, box[3] + 6, f"step {x_high:,.0f}"),
    ):
        draw.text((x, y), text.replace("−", "-"), fill="black")  # Pillow's font lacks the minus sign
