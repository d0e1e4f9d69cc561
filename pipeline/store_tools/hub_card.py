"""The data card of a store on the Hugging Face Hub, README.md: a YAML header and a section that describes the store.

The section is between two comments. A later push replaces it and leaves everything else as its author has written it;
without the comments, the card is left alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from ...errors import ConfigError
from ...stores import Group, Store
from ...stores.layout import num_shards
from ..reporting.tables import count_text
from ..runtime.printable import one_line
from ..runtime.sizes import bytes_text

CARD = "README.md"
BEGIN, END = "<!-- repa-pipe: generated, replaced by every push -->", "<!-- repa-pipe: end -->"
_SECTION = re.compile(re.escape(BEGIN) + ".*?" + re.escape(END), re.DOTALL)
_LICENSE = re.compile(r"\A(---\n.*?^license:[ \t]*)([^\n]*)", re.DOTALL | re.MULTILINE)
_NAME = re.compile(r"[\w.+-]+")
_SIZES = (
    (1_000, "n<1K"),
    (10_000, "1K<n<10K"),
    (100_000, "10K<n<100K"),
    (1_000_000, "100K<n<1M"),
    (10_000_000, "1M<n<10M"),
    (100_000_000, "10M<n<100M"),
    (1_000_000_000, "100M<n<1B"),
)
_TO_FILL_IN = "*Name and cite the data set that the images come from here: outside of this section, pushes keep it.*"
_REPA = """@inproceedings{yu2025repa,
  title={Representation Alignment for Generation: Training Diffusion Transformers Is Easier Than You Think},
  author={Sihyun Yu and Sangkyung Kwak and Huiwon Jang and Jongheon Jeong and Jonathan Huang and Jinwoo Shin and
          Saining Xie},
  booktitle={International Conference on Learning Representations},
  year={2025}
}"""


class Pushed(NamedTuple):
    """What the repository holds of the store."""

    location: str
    shards: Mapping[str, frozenset[int]]  # by group


def license_of(card: str | None, given: str | None, where: str) -> str:
    """Return the license of the data: the given one, else that of the card.

    Raises:
        ConfigError: there is none, or it is no identifier.
    """
    header = _LICENSE.match(card or "")
    found = given or (header[2].strip().strip("'\"") if header else "")
    if not found:
        raise ConfigError(
            f"{where} has no license yet: pass --license, such as cc-by-4.0, or other; it must be one that the license "
            "of the images allows"
        )
    if not _NAME.fullmatch(found):
        raise ConfigError(f"--license {found}: expected an identifier of the Hub, such as cc-by-4.0, or other")
    return found


def card_of(card: str | None, store: Store, pushed: Pushed, license_name: str, citation: str | None) -> str | None:
    """Return the new data card, or None if the card is to be left alone.

    Args:
        card: the current one; None if there is none.
        store: the store in a folder.
        pushed: what the repository holds of it.
        license_name: identifier of the license.
        citation: text about the source of the images.
    """
    section = "\n".join([BEGIN, *_section(store, pushed, citation), END])
    if card is None:
        return f"{_header(store, license_name)}\n# {one_line(store.path.name)}\n\n{section}\n"
    card = _LICENSE.sub(lambda found: found[1] + license_name, card, count=1)
    return _SECTION.sub(lambda _: section, card, count=1)


def _header(store: Store, license_name: str) -> str:
    size = next((name for limit, name in _SIZES if len(store) < limit), "n>1T")
    tags = ["repa-pipe", "repa", "zarr", "precomputed-features", "diffusion"]
    lines = [f"license: {license_name}", f"size_categories:\n- {size}", "tags:", *(f"- {tag}" for tag in tags)]
    return "\n".join(["---", *lines, "viewer: false", "---", ""])


def _section(store: Store, pushed: Pushed, citation: str | None) -> Iterator[str]:
    manifest = store.manifest
    total = num_shards(len(store), manifest.shard_size)
    bad = store.quarantined([name for name in pushed.shards if name in store])
    yield (
        f"A [repa-pipe](https://github.com/repa-pipe/repa-pipe) store: the output of frozen models for "
        f"{count_text(len(store), 'image', 'images')}, as zarr v3 arrays with checksums. Row i of every array is image "
        "i; `samples.parquet` holds its key and label.\n"
    )
    yield "| | |\n|---|---|"
    yield f"| images | {len(store):,} of {count_text(len(manifest.class_names), 'class', 'classes')} |"
    yield f"| source | {_cell(manifest.source['kind'])} `{_cell(manifest.source['path'])}` |"
    yield f"| crop | {_cell(manifest.crop)}, {manifest.resolution} x {manifest.resolution} pixels |"
    yield f"| quarantined images (could not be decoded) | {len(bad):,} |"
    yield f"| shards | {total:,} of {manifest.shard_size:,} images |"
    yield f"| digest of the sample index | `{manifest.index_digest}` |\n"
    yield "| group | model | arrays per image | shards here | size | SHA-256 of the weights |"
    yield "|---|---|---|---|---|---|"
    for name, shards in pushed.shards.items():
        yield _row(store.group(name), shards) if name in store else f"| `{name}` | | | {len(shards):,} | | |"
    yield _reading(pushed)
    yield f"\n## Citation\n\n{citation or _TO_FILL_IN}\n\n```bibtex\n{_REPA}\n```"


def _row(group: Group, shards: frozenset[int]) -> str:
    arrays = ", ".join(f"`{array.name}` {list(array.sample_shape)} {array.dtype}" for array in group.arrays)
    local = [group.commits[shard] for shard in group.commits if shard in shards]
    size = sum(record["bytes"] for commit in local for record in commit.files.values())
    model = group.attributes.get("vae") or group.attributes.get("encoder")
    weights = group.fingerprint.get("weights_sha256", "not recorded")
    cells = [f"`{group.path}`", _cell(model), arrays, f"{len(shards):,}", bytes_text(size), f"`{_cell(weights)}`"]
    return f"| {' | '.join(cells)} |"


def _reading(pushed: Pushed) -> str:
    encoders = [name.removeprefix("features/") for name in pushed.shards if name.startswith("features/")]
    latents = next((name.removeprefix("latents/") for name in pushed.shards if name.startswith("latents/")), None)
    group = next(iter(pushed.shards), "label")
    arguments = f"latents={latents!r}, encoders={encoders!r}, batch_size=32"
    loop = f"""dataset = AlignmentDataset(open_store("mystore"), {arguments})
for batch in DataLoader(dataset, batch_size=None):
    print(batch.labels.shape)"""
    if latents is None:
        loop = f"""print(open_store("mystore").read([{group!r}], slice(8)))"""
    repo = pushed.location.removeprefix("hf://datasets/").partition("@")[0]
    command = f"repa-pipe store pull {pushed.location} mystore"
    return f"""
## Use

Download it (`pip install repa-pipe`), all of it or with `--group` and `--shards` a part, and train:

    {command}
    repa-pipe train --store mystore

As a PyTorch dataset, for your own trainer:

```python
from repa_pipe.stores import AlignmentDataset, open_store
from torch.utils.data import DataLoader

{loop}
```

With zarr alone; a shard is complete if and only if its record is in `commits/`:

```python
import zarr
from huggingface_hub import snapshot_download

folder = snapshot_download("{repo}", repo_type="dataset")
store = zarr.open_group(folder, mode="r")
print(store["{group}"])
```"""


def _cell(value: object) -> str:
    """Return a text for a cell of a table: one line, without what would end the cell."""
    return one_line(str(value)).replace("|", "\\|").replace("`", "'")
