"""`repa-pipe store show`: decode what a store holds of some images, as one picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ...errors import ConfigError
from ...stores import open_store
from ..artifacts.decoding import make_decoder
from ..artifacts.images import save_grid

COLUMNS = 8


def show(path: str, out: str, group: str, decoder: str | None, count: int) -> str:
    """Decode samples spread over a store into a grid of images.

    Args:
        path: the store.
        out: the PNG file to write.
        group: `latents/NAME`, decoded from the mean; or `features/NAME`, whose tokens need a decoder.
        decoder: a VAE that decodes latents, or a decoder of tokens. None: the VAE of the group.
        count: number of images.

    Returns:
        A line for each row of images with the numbers of the samples and their classes.

    Raises:
        StoreError: the group is missing or incomplete.
        ConfigError, WeightsError: the decoder is missing, or decodes something else.
    """
    if Path(out).suffix != ".png":
        raise ConfigError(f"--out is {out!r}: expected a name that ends in .png")
    if count < 1:
        raise ConfigError(f"--images is {count}: expected at least 1")
    with open_store(path) as store:
        decode = make_decoder(store, group, decoder)
        valid = store.valid_indices([group])
        rows = valid[np.linspace(0, len(valid) - 1, min(count, len(valid))).astype(np.int64)]
        save_grid(Path(out), decode(rows), COLUMNS)
        names, labels = store.manifest.class_names, store.labels_at(rows)
    lines = [f"{out}: {len(rows)} images of {group}"]
    for start in range(0, len(rows), COLUMNS):
        part = range(start, min(start + COLUMNS, len(rows)))
        lines.append("  " + ", ".join(f"{rows[i]} {names[labels[i]]}" for i in part))
    return "\n".join(lines)
