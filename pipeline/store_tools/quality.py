"""`repa-pipe store quality`: what encoding loses. Decodes stored latents or tokens, and compares them with the images.

The loss is that of everything between the image and what a run is trained on: autoencoder or encoder, the precision of
the store, and its codec. No model that is trained from the store can be better than that.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ...config.paths import place
from ...errors import ConfigError
from ...stores import Store, open_store
from ...stores.files import write_json
from ...stores.layout import features_group, latents_group
from ...version import __version__
from ..artifacts.images import Block, save_grid
from ..artifacts.originals import Originals
from ..runtime.tables import text_table
from .quality_options import PSNR, QualityOptions

if TYPE_CHECKING:
    from .closeness import Closeness

SHOWN = 4  # images in each half of the figure: the worst, and those around the median
GAIN = 4  # of the differences in the figure


def run(path: str, options: QualityOptions) -> str:
    """Compare what a store holds with its images; write JSON and a figure, and return a table.

    Raises:
        StoreError: the group is missing or incomplete.
        SourceError: the images are unavailable, or not those that were encoded.
        ConfigError, WeightsError: the decoder, the detector or a library is unavailable, or does not fit.
    """
    options.validate()
    with open_store(path) as store:
        group = _group(store, options)
        valid = store.valid_indices([group])
        count = len(valid) if options.images is None else min(options.images, len(valid))
        rows = valid[np.linspace(0, len(valid) - 1, count).astype(np.int64)]
        with Originals(store, group, options.source, options.source_kind) as originals:
            found, figure = _measure(store, group, rows, originals, options)
        keys = store.samples.take(figure.rows).column("key").to_pylist()
        values = _record(store, group, options, found, originals.path)
    values["shown"] = [
        {"sample": row, "key": key, "psnr": _finite(found.values[PSNR][rows.tolist().index(row)])}
        for row, key in zip(figure.rows.tolist(), keys, strict=True)
    ]
    picture = str(Path(options.out).with_suffix(".png"))
    figure.save(Path(picture))
    write_json(Path(options.out), values)  # last: then both files are complete
    return "\n".join([_table(values), *values["notes"], f"saved to {options.out} and {picture}"])


def _group(store: Store, options: QualityOptions) -> str:
    if options.token_latents is not None:
        return features_group(options.token_latents)
    if options.vae is not None:
        return latents_group(store.vae_name(options.vae))
    if len(store.vaes) != 1:
        names = ", ".join(store.vaes)
        found = f"holds latents of {names}: pass --vae with one of them" if names else "holds no latents of a VAE"
        raise ConfigError(f"{store.location} {found}")
    return latents_group(store.vaes[0])


@dataclass(frozen=True, slots=True)
class _Figure:
    """Images in columns: original, reconstruction, difference. First the worst, then those around the median."""

    rows: npt.NDArray[np.int64]
    originals: Block
    decoded: Block

    def save(self, path: Path) -> None:
        """Write the figure as PNG, one sample per row."""
        difference = np.abs(self.originals.astype(np.int16) - self.decoded) * GAIN
        columns = self.originals, self.decoded, difference.clip(0, 255).astype(np.uint8)
        save_grid(path, np.stack(columns, 1).reshape(-1, *self.originals.shape[1:]), len(columns))


def _measure(
    store: Store, group: str, rows: npt.NDArray[np.int64], originals: Originals, options: QualityOptions
) -> tuple[Closeness, _Figure]:
    """Decode and compare all samples, and again those of the figure, which are only then known."""
    from ..artifacts.decoding import make_decoder
    from ..runtime.device import choose_device
    from ..runtime.progress import progress
    from .closeness import Closeness

    device = choose_device(options.device)
    decode = make_decoder(store, group, options.decoder, device, same_weights=True)
    found = Closeness(options, store.manifest.resolution, device)
    with progress(f"quality of {group}", len(rows), "images") as bar:
        for start in range(0, len(rows), options.batch_size):
            batch = rows[start : start + options.batch_size]
            images, decoded = originals.read(batch), decode(batch)
            if images.shape != decoded.shape:
                raise ConfigError(
                    f"{options.decoder or group} decodes images of {decoded.shape[1]} pixels, those of "
                    f"{store.location} have {images.shape[1]}: pass the decoder for this resolution"
                )
            found.add(images, decoded)
            bar.update(len(batch))
    order = np.argsort(found.values[PSNR], kind="stable")
    middle = max(0, len(order) // 2 - SHOWN // 2)
    shown = rows[list(dict.fromkeys([*order[:SHOWN], *order[middle : middle + SHOWN]]))]
    return found, _Figure(shown, originals.read(shown), decode(shown))


def _record(store: Store, group: str, options: QualityOptions, found: Closeness, source: str) -> dict[str, Any]:
    """Return the contents of the JSON file."""
    metrics: dict[str, Any] = {}
    for name, values in found.values.items():
        spread = float(np.std(values, ddof=1)) if len(values) > 1 and all(map(math.isfinite, values)) else None
        metrics[name] = {"mean": _finite(float(np.mean(values))), "std": spread, "from": found.libraries[name]}
    for name, value in found.distances().items():
        metrics[name] = {"value": value, "from": found.libraries[name]}
    equal = sum(math.isinf(value) for value in found.values[PSNR])
    notes = [f"{equal:,} images are decoded without any difference: their PSNR is infinite"] if equal else []
    given = replace(options, source=place(options.source) if options.source else None)
    return {
        "metrics": metrics,
        "num_images": len(found.values[PSNR]),
        "equal_images": equal,
        "notes": [*notes, *found.warnings()],
        "group": group,
        "fingerprint": store.group(group).fingerprint,
        "codec": store.group(group).attributes.get("codec"),
        "detector": found.detector_fingerprint,
        "resolution": store.manifest.resolution,
        "index_digest": store.manifest.index_digest,
        "source": source,
        "options": asdict(given) | {"store": place(store.location)},
        "version": __version__,
    }


def _finite(value: float) -> float | None:
    """Return the value, or None for infinity, which JSON does not have."""
    return value if math.isfinite(value) else None


def _table(values: dict[str, Any]) -> str:
    lines: list[Sequence[str]] = []
    for name, entry in values["metrics"].items():
        number = entry.get("mean", entry.get("value"))
        spread = entry.get("std")
        text = "infinite" if number is None else f"{number:.4f}" + (f" ± {spread:.4f}" if spread is not None else "")
        lines.append((name, text + (" dB" if name == PSNR else ""), entry["from"]))
    heading = f"{values['group']}: {values['num_images']:,} images at {values['resolution']} px, mean ± std over images"
    return "\n".join([heading, text_table(("metric", "value", "computed by"), lines)])
