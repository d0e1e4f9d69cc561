"""A small labeled folder of images for the demo: overlapping crops of the ImageNet photographs in the package foolbox.

`make_crops` writes a folder that `open_source` reads like any other. foolbox is an optional dependency (the extra
`demo`), and this module is not imported by the others.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

from ..errors import SourceError

_GRID = 4  # crops per side of each photograph
_CROP_FRACTION = 0.9  # of the shorter side of a photograph
_JPEG_QUALITY = 95

# ImageNet's names for the labels of the photographs
_CLASS_NAMES = {
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
    """Return paths and ImageNet labels of the 20 photographs.

    Raises:
        SourceError: foolbox is not installed.
    """
    package = importlib.util.find_spec("foolbox")  # only its folder is needed, and importing it takes seconds
    if package is None or package.origin is None:
        raise SourceError("the demo needs the photographs of the package foolbox: pip install 'repa-pipe[demo]'")
    found = sorted((Path(package.origin).parent / "data").glob("imagenet_*.jpg"))
    return [(path, int(path.stem.rsplit("_", 1)[1])) for path in found]


def make_crops(folder: Path) -> int:
    """Crop every photograph into 16 overlapping squares, one folder per class. Return the number of images.

    Args:
        folder: the folder to write to; created if it does not exist.
    """
    from PIL import Image

    count = 0
    for path, label in photographs():
        target = folder / f"{label:03d}-{_CLASS_NAMES[label]}"
        target.mkdir(parents=True, exist_ok=True)
        with Image.open(path) as photograph:
            image = photograph.convert("RGB")
        side = int(_CROP_FRACTION * min(image.size))
        for row in range(_GRID):
            for column in range(_GRID):
                left = (image.width - side) * column // (_GRID - 1)
                top = (image.height - side) * row // (_GRID - 1)
                crop = image.crop((left, top, left + side, top + side))
                crop.save(target / f"{path.stem}-{row}{column}.jpg", quality=_JPEG_QUALITY)
                count += 1
    return count
