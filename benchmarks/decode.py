"""Compare the speed of decoding and cropping in `encode` with a bare loop of Pillow, per CPU core.

    python benchmarks/decode.py [--images 40] [--rounds 7] [--resolution 256] [--out FILE]
    python benchmarks/decode.py --alternatives          other decoders, and other orders of Pillow's operations

One thread, measured in its CPU time, since other processes may run. Files are in the page cache, in four kinds that are
made from the demo's photographs:

    jpeg        500 x 375 pixels, 4:2:0, quality 96: ImageNet's typical size
    jpeg-large  4000 x 3000 pixels, quality 96: a camera's image, enlarged
    png         500 x 375 pixels
    gray        500 x 375 pixels, a grayscale JPEG

Ways, in turn within each round, image by image:

    pillow      read the file, Pillow's decoder, `convert("RGB")`, ADM's center crop, and nothing else
    encode      what a decoding thread of `encode` does: read and compare the size, limits on bombs, header, decode,
                convert, crop, checksum

The ratio is the median over the rounds of pillow's time divided by that of encode. Crops of both are compared.
`stages` has the time of each part of encode's way, called on its own, in milliseconds per image.

--alternatives: crops by torchvision's and simplejpeg's decoders (the latter if it is installed), by a scaled decode, by
`reduce` instead of halving, by resizing only the box of the crop, and by cropping between the two passes of resizing.
Each is compared with `decode_crop`: speed on the kind jpeg, and pixels of JPEGs of many kinds.
"""

from __future__ import annotations

import argparse
import importlib.util
import io
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import PIL.features
import PIL.Image
import PIL.ImageCms
import PIL.ImageOps
from arguments import at_least

from repa_pipe.sources import Record, Source, decode_crop, open_source, records_of
from repa_pipe.sources.crop import center_crop
from repa_pipe.sources.decoder_limits import Budget, require_limits
from repa_pipe.sources.demo_images import photographs
from repa_pipe.sources.formats import readable_formats
from repa_pipe.sources.pixels import to_rgb
from repa_pipe.sources.source import MAX_IMAGE_BYTES
from repa_pipe.stores.checksum import crc32c_bytes

SMALL, LARGE, QUALITY = (500, 375), (4000, 3000), 96
FEW = 10  # large images: one takes as long as 30 small ones
ENCODE, PILLOW = "encode", "pillow"


def save_jpeg(image: PIL.Image.Image, path: Path) -> None:
    image.save(path.with_suffix(".jpg"), quality=QUALITY)


def write_images(folder: Path, count: int) -> dict[str, Path]:
    """Write `count` images of each kind, cycling through the photographs, and return their folders."""
    kinds: dict[str, tuple[tuple[int, int], str, Callable[[PIL.Image.Image, Path], None]]] = {
        "jpeg": (SMALL, "RGB", save_jpeg),
        "jpeg-large": (LARGE, "RGB", save_jpeg),
        "png": (SMALL, "RGB", lambda image, path: image.save(path.with_suffix(".png"))),
        "gray": (SMALL, "L", save_jpeg),
    }
    originals = [path for path, _ in photographs()]
    for kind, (size, mode, save) in kinds.items():
        (folder / kind / "class").mkdir(parents=True)
        for number in range(min(count, FEW) if size == LARGE else count):
            with PIL.Image.open(originals[number % len(originals)]) as image:
                fitted = PIL.ImageOps.fit(image.convert(mode), size, PIL.Image.Resampling.LANCZOS)
            save(fitted, folder / kind / "class" / f"{number:04d}")
    return {kind: folder / kind for kind in kinds}


def adm_center_crop(image: PIL.Image.Image, size: int) -> np.ndarray:
    """Crop as ADM and REPA do."""
    while min(*image.size) >= 2 * size:
        image = image.resize(tuple(side // 2 for side in image.size), resample=PIL.Image.Resampling.BOX)
    scale = size / min(*image.size)
    image = image.resize(tuple(round(side * scale) for side in image.size), resample=PIL.Image.Resampling.BICUBIC)
    array = np.array(image)
    top, left = (array.shape[0] - size) // 2, (array.shape[1] - size) // 2
    return array[top : top + size, left : left + size]


def by_pillow(path: Path, size: int) -> np.ndarray:
    with PIL.Image.open(io.BytesIO(path.read_bytes())) as image:
        return adm_center_crop(image.convert("RGB"), size)


def by_encode(source: Source, record: Record, files: Budget, size: int) -> np.ndarray:
    """Do what `ShardEncoder` does for one image."""
    with files.hold(record.num_bytes, MAX_IMAGE_BYTES):
        data = source.read(record)
        crop = decode_crop(data, size)
        crc32c_bytes(data)
    return crop


def compare(folder: Path, rounds: int, size: int) -> dict[str, object]:
    """Measure both ways on the images of one folder."""
    source = open_source(str(folder))
    records = list(records_of(source.index()))
    files = Budget()
    ways: dict[str, Callable[[Record], np.ndarray]] = {
        PILLOW: lambda record: by_pillow(folder / record.locator, size),
        ENCODE: lambda record: by_encode(source, record, files, size),
    }
    for record in records:
        np.testing.assert_array_equal(ways[PILLOW](record), ways[ENCODE](record))
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        spent = dict.fromkeys(ways, 0.0)
        for number, record in enumerate(records):
            for name in ways if number % 2 else reversed(ways):
                start = time.thread_time()
                ways[name](record)
                spent[name] += time.thread_time() - start
        for name in ways:
            seconds[name].append(spent[name])
    ratios = [pillow / encode for pillow, encode in zip(seconds[PILLOW], seconds[ENCODE], strict=True)]
    return {
        "images": len(records),
        "mean_bytes": round(statistics.mean(record.num_bytes for record in records)),
        "images_per_s": {name: round(len(records) / statistics.median(seconds[name]), 1) for name in ways},
        "encode / pillow": round(statistics.median(ratios), 3),
        "encode / pillow, all rounds": [round(ratio, 3) for ratio in ratios],
        "stages_ms": stages(source, records, rounds, size),
    }


def stages(source: Source, records: list[Record], rounds: int, size: int) -> dict[str, float]:
    """Return the median milliseconds per image of each part of encode's way."""
    seconds: dict[str, list[float]] = {}

    def timed(name: str, call: Callable[[], object]) -> object:
        start = time.thread_time()
        result = call()
        seconds.setdefault(name, []).append(time.thread_time() - start)
        return result

    for _ in range(rounds):
        for record in records:
            data: bytes = timed("read", lambda record=record: source.read(record))  # type: ignore[assignment]
            timed("limits", lambda data=data: require_limits(data))
            image = timed("header", lambda data=data: PIL.Image.open(io.BytesIO(data), formats=readable_formats()))
            assert isinstance(image, PIL.Image.Image)
            timed("decode", image.load)
            timed("convert and crop", lambda image=image: center_crop(image, size))
            timed("checksum", lambda data=data: crc32c_bytes(data))
    return {name: round(1000 * statistics.mean(values), 3) for name, values in seconds.items()}


# --- alternatives ----------------------------------------------------------------------------------------------------

Crop = Callable[[bytes, int], np.ndarray]
BICUBIC = PIL.Image.Resampling.BICUBIC


def by_torchvision(data: bytes, size: int) -> np.ndarray:
    import torch
    from torchvision.io import ImageReadMode, decode_jpeg

    pixels = decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8), mode=ImageReadMode.RGB)
    return center_crop(PIL.Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy()), size)


def by_simplejpeg(data: bytes, size: int) -> np.ndarray:
    import simplejpeg

    return center_crop(PIL.Image.fromarray(simplejpeg.decode_jpeg(data)), size)


def by_scaled_decode(data: bytes, size: int) -> np.ndarray:
    with PIL.Image.open(io.BytesIO(data)) as image:
        image.draft(None, (2 * size, 2 * size))
        return center_crop(image.convert("RGB"), size)


def by_reduce(data: bytes, size: int) -> np.ndarray:
    with PIL.Image.open(io.BytesIO(data)) as image:
        rgb = image.convert("RGB")
    while min(rgb.size) >= 2 * size:
        rgb = rgb.reduce(2)
    return center_crop(rgb, size)


def scaled(data: bytes, size: int) -> tuple[PIL.Image.Image, int, int]:
    """Return an image that has been halved, and the width and height to which it is scaled next."""
    with PIL.Image.open(io.BytesIO(data)) as image:
        image.load()
        rgb = to_rgb(image)
    while min(rgb.size) >= 2 * size:
        rgb = rgb.resize((rgb.width // 2, rgb.height // 2), PIL.Image.Resampling.BOX)
    scale = size / min(rgb.size)
    return rgb, round(rgb.width * scale), round(rgb.height * scale)


def by_box(data: bytes, size: int) -> np.ndarray:
    rgb, width, height = scaled(data, size)
    left, top, x, y = (width - size) // 2, (height - size) // 2, rgb.width / width, rgb.height / height
    return np.array(rgb.resize((size, size), BICUBIC, box=(left * x, top * y, (left + size) * x, (top + size) * y)))


def by_two_passes(data: bytes, size: int) -> np.ndarray:
    rgb, width, height = scaled(data, size)
    left, top = (width - size) // 2, (height - size) // 2
    rgb = rgb.resize((width, rgb.height), BICUBIC).crop((left, 0, left + size, rgb.height))
    return np.array(rgb.resize((size, height), BICUBIC).crop((0, top, size, top + size)))


def many_kinds() -> dict[str, bytes]:
    """Return JPEGs of many kinds."""
    exif, profile = PIL.Image.Exif(), PIL.ImageCms.ImageCmsProfile(PIL.ImageCms.createProfile("sRGB")).tobytes()
    exif[0x0112] = 6  # rotated
    saves: dict[str, dict[str, object]] = {
        "4:4:4": {"subsampling": 0},
        "4:2:2": {"subsampling": 1},
        "4:2:0": {"subsampling": 2},
        "progressive": {"progressive": True},
        "quality 30": {"quality": 30},
        "restart markers": {"restart_marker_rows": 1},
        "EXIF rotation": {"exif": exif},
        "ICC profile": {"icc_profile": profile},
    }
    found = {}
    sizes = ((500, 375), (375, 500), (501, 333), (257, 1000), (1021, 767), (2000, 1500), (64, 48))
    with PIL.Image.open(photographs()[0][0]) as image:
        photograph = image.convert("RGB")
    for size in sizes:
        fitted = PIL.ImageOps.fit(photograph, size, PIL.Image.Resampling.LANCZOS)
        variants = {name: (fitted, options) for name, options in saves.items()}
        variants |= {"gray": (fitted.convert("L"), {}), "CMYK": (fitted.convert("CMYK"), {})}
        for name, (variant, options) in variants.items():
            with io.BytesIO() as file:
                variant.save(file, "JPEG", **{"quality": QUALITY} | options)  # type: ignore[arg-type]
                found[f"{name}, {size[0]} x {size[1]}"] = file.getvalue()
    whole = found["4:2:0, 500 x 375"]
    return found | {"truncated": whole[: len(whole) // 2], "without its end": whole[:-2]}


def crop_or_none(crop: Crop, data: bytes, size: int) -> np.ndarray | None:
    """Return the crop; None if the decoder refuses the file, with whatever error."""
    try:
        return crop(data, size)
    except ImportError:
        raise
    except Exception:
        return None


def differing_kinds(crop: Crop, kinds: dict[str, bytes], size: int) -> list[str]:
    """Return the kinds of which `crop` gives other pixels than `decode_crop`, or which only one of them refuses."""
    found = []
    for name, data in kinds.items():
        ours, other = crop_or_none(decode_crop, data, size), crop_or_none(crop, data, size)
        if (ours is None) != (other is None) or (ours is not None and not np.array_equal(ours, other)):
            found.append(name)
    return found


def alternatives(folder: Path, rounds: int, size: int) -> dict[str, object]:
    """Compare other ways with `decode_crop` on the images of a folder, and on JPEGs of many kinds."""
    ways: dict[str, Crop] = {
        "torchvision": by_torchvision,
        "simplejpeg": by_simplejpeg,
        "scaled decode": by_scaled_decode,
        "reduce": by_reduce,
        "box": by_box,
        "two passes": by_two_passes,
    }
    if importlib.util.find_spec("simplejpeg") is None:
        del ways["simplejpeg"]
    files = [path.read_bytes() for path in sorted(folder.rglob("*.jpg"))]
    kinds = many_kinds()
    found: dict[str, object] = {"kinds": len(kinds)}
    for name, crop in ways.items():
        crop(files[0], size)  # imports
        ratios = []
        for _ in range(rounds):
            spent = {decode_crop: 0.0, crop: 0.0}
            for number, data in enumerate(files):
                for way in spent if number % 2 else reversed(spent):
                    start = time.thread_time()
                    way(data, size)
                    spent[way] += time.thread_time() - start
            ratios.append(spent[decode_crop] / spent[crop])
        differing = differing_kinds(crop, kinds, size)
        found[name] = {
            "speed relative to decode_crop": round(statistics.median(ratios), 3),
            "kinds that differ": len(differing),
            "of these": differing[:8],
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=at_least(1), default=40, help="images of each kind, at most 10 large ones")
    parser.add_argument("--rounds", type=at_least(1), default=7, help="number of rounds")
    parser.add_argument("--resolution", type=at_least(1), default=256, help="side of the crop in pixels")
    parser.add_argument("--alternatives", action="store_true", help="compare other decoders and other ways to crop")
    parser.add_argument("--out", type=Path, default=None, help="JSON file to write the results to")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folders = write_images(Path(temporary), args.images)
        if args.alternatives:
            found = {"alternatives": alternatives(folders["jpeg"], args.rounds, args.resolution)}
        else:
            found = {"decode": {kind: compare(path, args.rounds, args.resolution) for kind, path in folders.items()}}
    versions = {"pillow": PIL.__version__, "libjpeg-turbo": PIL.features.version_feature("libjpeg_turbo")}
    found |= {"versions": versions, "resolution": args.resolution}
    print(json.dumps(found, indent=1))
    if args.out:
        before = json.loads(args.out.read_text()) if args.out.exists() else {}
        args.out.write_text(json.dumps(before | found, indent=1) + "\n")


if __name__ == "__main__":
    main()
