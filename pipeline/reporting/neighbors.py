"""The page of `nearest`: generated images, each next to the training images that are nearest to it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from ...config import NearestConfig
from ...errors import RepaPipeError, SourceError
from ...stores import Store
from ...stores.files import atomic_write_bytes
from ...stores.layout import features_group
from ..artifacts.images import Block, open_images
from ..artifacts.originals import Originals
from ..runtime.printable import printable
from .images import EncodedImage, encode_image
from .plots import CONTENT_POLICY

SHOWN = 16  # generated images
SIDE = 192
MAX_BYTES = 24_000

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{{ policy }}">
<title>{{ title }}</title>
<style>body { font: 15px sans-serif; max-width: 60rem; margin: 1rem auto; padding: 0 1rem }
figure { display: inline-block; margin: 0.3rem; width: 192px; vertical-align: top } img { width: 100% }
figcaption { font-size: 12px; overflow-wrap: anywhere }</style></head>
<body><h1>{{ title }}</h1>
{% for paragraph in paragraphs %}<p>{{ paragraph }}</p>
{% endfor %}
{% for row in rows %}<div>
{% for image in row %}<figure><img src="{{ image.uri }}" alt="{{ image.alt }}">
<figcaption>{{ image.caption }}</figcaption></figure>
{% endfor %}</div>
{% endfor %}</body></html>
"""


def write_neighbors(
    path: Path, config: NearestConfig, store: Store, closest: Sequence[dict[str, Any]], paragraphs: Sequence[str]
) -> list[str]:
    """Write the page; return notes about training images that are not shown, or shown as reconstructions.

    Args:
        path: the HTML file.
        config: where generated and training images are.
        store: the store, open.
        closest: generated images with their neighbors, as in `nearest.json`.
        paragraphs: shown above the images.

    Raises:
        SourceError: training images are not at the source that was specified.
    """
    shown = closest[:SHOWN]
    rows = np.array(list(dict.fromkeys(each["index"] for one in shown for each in one["neighbors"])), np.int64)
    images, notes = _training_images(store, config, rows)
    by_row = dict(zip(rows.tolist(), images, strict=True)) if images is not None else {}
    samples = _samples(config, [one["sample"] for one in shown])
    lines: list[list[EncodedImage]] = []
    for one in shown:
        number = one["sample"]
        line = [_encode(samples[number], f"Generated image {number}", f"generated image {number}")]
        for each in one["neighbors"]:
            text = f"{each['distance']:.4f}: {each['index']} {each['class']} {each['key']}"
            if each["index"] in by_row:
                line.append(_encode(by_row[each["index"]], f"Training image {each['key']}", text))
        lines.append(line)
    atomic_write_bytes(path, _render(lines, [*paragraphs, *notes]).encode())
    return notes


def _training_images(
    store: Store, config: NearestConfig, rows: npt.NDArray[np.int64]
) -> tuple[Block | None, list[str]]:
    """Return source images, else reconstructions of the latents, else None; and why."""
    try:
        with Originals(store, features_group(str(config.encoder)), config.source, config.source_kind) as originals:
            return originals.read(rows), []
    except SourceError as error:
        if config.source is not None:
            raise
        reason = f"{error}."
    for group in store.complete_groups("latents"):
        try:
            return _reconstructions(store, group, rows), [f"Training images are decoded from {group}: {reason}"]
        except RepaPipeError as error:
            reason += f" {group} cannot be decoded: {error}."
    return None, [f"Training images are not shown: {reason}"]


def _reconstructions(store: Store, group: str, rows: npt.NDArray[np.int64]) -> Block:
    from ..artifacts.decoding import make_decoder

    return make_decoder(store, group, None)(rows)


def _samples(config: NearestConfig, numbers: Sequence[int]) -> dict[int, Block]:
    """Return some of the generated images, by number."""
    wanted, start = set(numbers), 0
    found: dict[int, Block] = {}
    for block in open_images(config.samples, config.batch_size).blocks:
        found |= {number: block[number - start] for number in wanted if start <= number < start + len(block)}
        start += len(block)
    return found


def _encode(image: Block, alt: str, caption: str) -> EncodedImage:
    return encode_image(Image.fromarray(image), alt, SIDE, MAX_BYTES, caption)


def _render(rows: list[list[EncodedImage]], paragraphs: Sequence[str]) -> str:
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, finalize=_printable)
    title = "Generated images and the nearest training images"
    values = {"title": title, "policy": CONTENT_POLICY, "rows": rows, "paragraphs": paragraphs}
    return environment.from_string(_PAGE).render(values)


def _printable(value: Any) -> Any:
    return printable(value) if isinstance(value, str) else value
