"""The demo's images: the labeled ImageNet photographs that the package foolbox ships, cut into overlapping crops."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from ..errors import SourceError

GRID = 4  # crops a side of every photograph
CROP_SHARE = 0.9  # of the photograph's shorter side
JPEG_QUALITY = 95

# ImageNet's names for the labels of foolbox's photographs
CLASS_NAMES = {
    22: "bald-eagle",
    99: "goose",
    129: "spoonbill",
    243: "bull-mastiff",
    251: "dalmatian",
    305: "dung-beetle",
    317: "leafhopper",
    438: "beaker",
    455: "bottlecap",
    471: "cannon",
    541: "drum",
    559: "folding-chair",
    609: "jeep",
    630: "loafer",
    741: "prayer-rug",
    853: "thatch",
    915: "yurt",
    949: "strawberry",
    990: "buckeye",
}


def photographs() -> list[tuple[Path, int]]:
    """Paths and ImageNet labels of foolbox's 20 photographs; SourceError when the package is not installed."""
    package = importlib.util.find_spec("foolbox")  # importing it takes seconds, and only its folder is wanted
    if package is None or package.origin is None:
        raise SourceError("the demo's photographs come with the package foolbox: pip install 'repa-pipe[demo]'")
    found = sorted((Path(package.origin).parent / "data").glob("imagenet_*.jpg"))
    return [(path, int(path.stem.rsplit("_", 1)[1])) for path in found]


def make_crops(folder: Path) -> int:
    """Cut every photograph into 16 overlapping squares, one folder a class; how many images there are."""
    from PIL import Image

    count = 0
    for path, label in photographs():
        target = folder / f"{label:03d}-{CLASS_NAMES[label]}"
        target.mkdir(parents=True, exist_ok=True)
        with Image.open(path) as photograph:
            image = photograph.convert("RGB")
        side = int(CROP_SHARE * min(image.size))
        for row in range(GRID):
            for column in range(GRID):
                left = (image.width - side) * column // (GRID - 1)
                top = (image.height - side) * row // (GRID - 1)
                crop = image.crop((left, top, left + side, top + side))
                crop.save(target / f"{path.stem}-{row}{column}.jpg", quality=JPEG_QUALITY)
                count += 1
    return count
