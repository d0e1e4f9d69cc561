"""Sections of the demo's report: the step with and without the encoder, sizes by codec, alignment over training."""

from __future__ import annotations

import typing
from typing import Any

import numpy as np
import torch
from torch.nn.functional import cosine_similarity

from ...config.base import Codec
from ...models.encoders import describe_encoder
from ...stores import Store
from ...stores.codecs import TOKENS, make_codec
from ...stores.codecs import Codec as TokenCodec
from ...stores.layout import features_group, latents_group
from ...stores.tokens import read_tokens
from ..artifacts.metrics_log import read_metrics
from ..artifacts.run_folder import RunFolder
from ..plan import IMAGENET
from ..reporting.plots import COLORS, Line, line_figure
from ..reporting.sections import Section, embed
from ..reporting.tables import Cell, Table, bytes_text, minus
from .online import StepComparison, Steps, StepTimes, median_times

LARGE_ENCODER = "dinov2-vit-b"
CHECKED_IMAGES = 16
PARTS = {"read": "read the store", "decode": "decode images", "encode": "run the encoder", "train": "train"}


def step_section(comparison: StepComparison, model: str, encoder: str) -> Section:
    """Show the times of a step from the store and with the encoder online."""
    ways = {"From the store": comparison.stored, "Encoder online": comparison.online}
    times = {name: median_times(steps.times) for name, steps in ways.items()}
    ratios = sorted(comparison.ratios)
    count, median = len(ratios), float(np.median(ratios))
    first = (
        f"With the encoder in the training loop, a step takes {median:.2f} times as long as the same step from the "
        f"store (median of {count} rounds, lowest {ratios[0]:.2f}, highest {ratios[-1]:.2f})."
    )
    second = (
        f"Measured here, in turn: {model} with batch size {comparison.batch_size}, aligned with {encoder} "
        f"({comparison.device}). Both start from the same weights and take the same steps. Stored and online tokens "
        f"have a cosine of at least {comparison.token_cosine:.6f}, and no loss differs by more than "
        f"{comparison.loss_difference:.1e}. The store is read, and images are decoded, in the step itself."
    )
    third = (
        "How much a store saves depends on the sizes of the model and the encoder. 'repa-pipe plan --model SiT-B/2 "
        f"--encoder {LARGE_ENCODER}' estimates it for other pairs."
    )
    figure, script = embed(_step_figure(times))
    table = _step_table(ways, times)
    title = "Milliseconds per step"
    return Section("step", "A training step from the store", (first, second, third), title, figure, script, table)


def _step_figure(times: dict[str, StepTimes]) -> Any:
    from bokeh.models import ColumnDataSource, FactorRange, HoverTool
    from bokeh.plotting import figure

    data: dict[str, list[Any]] = {"way": list(times)}
    data |= {label: [1000 * getattr(step, part) for step in times.values()] for part, label in PARTS.items()}
    plot: Any = figure(
        y_range=FactorRange(factors=list(reversed(data["way"]))),
        frame_height=130,
        sizing_mode="stretch_width",
        x_axis_label="milliseconds",
        tools="reset,save",
        toolbar_location="above",
    )
    plot.toolbar.logo = None
    plot.x_range.start = 0
    labels = list(PARTS.values())
    colors = [*COLORS[1 : len(labels)], COLORS[0]]
    source = ColumnDataSource(data)
    plot.hbar_stack(labels, y="way", height=0.6, color=colors, source=source, legend_label=labels)
    plot.add_tools(HoverTool(tooltips=[("", "@way: $name"), ("milliseconds", "@$name{0.0}")], visible=False))
    plot.legend.orientation = "horizontal"
    plot.add_layout(plot.legend[0], "below")
    return plot


def _step_table(ways: dict[str, Steps], times: dict[str, StepTimes]) -> Table:
    rows = []
    for name, step in times.items():
        total = float(np.median([one.total for one in ways[name].times]))
        parts = (getattr(step, part) for part in PARTS)
        rows.append((Cell(name), *(Cell(f"{1000 * each:.1f}", numeric=True) for each in (*parts, total))))
    header = (Cell("Step"), *(Cell(text.capitalize(), numeric=True) for text in (*PARTS.values(), "total")))
    count = len(next(iter(ways.values())).times)
    return Table(f"Milliseconds per step, medians of {count} rounds", header, tuple(rows))


def codec_section(store: Store, vae: str, encoder: str) -> Section:
    """Show the bytes per image of each codec: of this store's shapes, and of a large encoder's."""
    group = features_group(encoder)
    moments = store.group(latents_group(vae)).spec.sample_bytes
    rows = store.valid_indices([group])
    tokens = read_tokens(store, group, rows[:: max(1, len(rows) // CHECKED_IMAGES)][:CHECKED_IMAGES])
    large = describe_encoder(LARGE_ENCODER, store.manifest.resolution)
    shapes = ((tokens.shape[1], tokens.shape[2]), (large.num_tokens, large.width))
    table_rows = []
    for name in typing.get_args(Codec):
        codecs = [make_codec(name, *shape) for shape in shapes]
        small_bytes, large_bytes = (sum(array.sample_bytes for array in codec.arrays) for codec in codecs)
        texts = [_cosine(codecs[0], tokens), *map(bytes_text, (small_bytes, small_bytes + moments))]
        texts += map(bytes_text, (large_bytes, large_bytes + moments, IMAGENET * (large_bytes + moments)))
        table_rows.append((Cell(name), *(Cell(text, numeric=True) for text in texts)))
    header = (
        Cell("Codec"),
        Cell("Cosine", "to the float16 tokens: mean (min)", numeric=True),
        Cell("Tokens", _shape_text(encoder, shapes[0]), numeric=True),
        Cell("With moments", numeric=True),
        Cell("Tokens", _shape_text(LARGE_ENCODER, shapes[1]), numeric=True),
        Cell("With moments", numeric=True),
        Cell("ImageNet", f"{IMAGENET:,} images", numeric=True),
    )
    paragraph = (
        f"The moments of the VAE take {bytes_text(moments)} per image; the size of the tokens depends on the codec "
        "('repa-pipe encode … --codec int8'). The alignment loss depends only on the direction of a token, so the "
        "cosine between original and restored tokens shows what a codec loses."
    )
    table = Table("Bytes per image by codec", header, tuple(table_rows))
    return Section("codecs", "Disk space per image", (paragraph,), table=table)


def _cosine(codec: TokenCodec, tokens: torch.Tensor) -> str:
    """Return mean and minimum of the cosine between tokens and what the codec restores."""
    restored = codec.decode(torch.from_numpy(codec.encode(tokens)[TOKENS]))
    cosine = cosine_similarity(restored, tokens, dim=-1)[tokens.any(-1)]
    return f"{cosine.mean():.5f} (min {cosine.min():.5f})"


def _shape_text(encoder: str, shape: tuple[int, int]) -> str:
    return f"{encoder}, {shape[0]} × {shape[1]}"


def alignment_section(run: RunFolder) -> Section:
    """Show the cosine between projected and stored tokens over training: the negative alignment loss."""
    rows = read_metrics(run)
    steps = [row["step"] for row in rows]
    cosines = [-row["alignment_loss"] for row in rows]
    paragraph = (
        "Mean cosine between the hidden tokens of the model, projected, and the stored tokens of the encoder: "
        f"{minus(f'{cosines[0]:.3f}')} at step {steps[0]:,}, {minus(f'{cosines[-1]:.3f}')} at step {steps[-1]:,}. "
        "This is what alignment trains, in addition to denoising."
    )
    figure, script = embed(line_figure("step", "cosine", [Line(run.path.name, steps, cosines, 0)]))
    title = "Cosine between projected and stored tokens vs. training steps"
    return Section("alignment", "Alignment over training", (paragraph,), title, figure, script)
