"""Sections of the demo's report: disk space per image by codec, and alignment over training."""

from __future__ import annotations

import typing

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
from ..runtime.sizes import bytes_text
from .plots import Line, line_figure
from .sections import Section, embed
from .tables import Cell, Table, minus

LARGE_ENCODER = "dinov2-vit-b"
CHECKED_IMAGES = 16


def codec_section(store: Store, vae: str, encoder: str, imagenet: int) -> Section:
    """Show the bytes per image of each codec, for this store and for a large encoder on `imagenet` images."""
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
        texts += map(bytes_text, (large_bytes, large_bytes + moments, imagenet * (large_bytes + moments)))
        table_rows.append((Cell(name), *(Cell(text, numeric=True) for text in texts)))
    header = (
        Cell("Codec"),
        Cell("Cosine", "to the float16 tokens: mean (min)", numeric=True),
        Cell("Tokens", _shape_text(encoder, shapes[0]), numeric=True),
        Cell("With moments", numeric=True),
        Cell("Tokens", _shape_text(LARGE_ENCODER, shapes[1]), numeric=True),
        Cell("With moments", numeric=True),
        Cell("ImageNet", f"{imagenet:,} images", numeric=True),
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
