"""Time and memory to decode the largest images that `encode` accepts, each in a process of its own.

    python benchmarks/large_images.py [--side 13300]

Prints CPU seconds, the growth of peak memory, and bytes per pixel, for every format and for a JPEG with 100 scans.
"""

import argparse
import io
import multiprocessing
import resource
import time

import PIL.Image
from arguments import at_least

from repa_pipe.sources import decode_crop
from repa_pipe.sources.decoder_limits import MAX_SCANS

FORMATS = {
    "JPEG": ("RGB", {}),
    "JPEG, progressive": ("RGB", {"progressive": True}),
    "JPEG, 100 scans": ("RGB", {"progressive": True}),
    "PNG": ("RGB", {}),
    "PNG, alpha": ("RGBA", {}),
    "TIFF, deflate": ("RGB", {"compression": "tiff_adobe_deflate"}),
    "TIFF, 16 bits": ("I;16", {"compression": "tiff_adobe_deflate"}),
    "GIF": ("P", {}),
    "WebP, lossless": ("RGB", {"lossless": True, "quality": 0, "method": 0}),
    "AVIF": ("RGB", {"speed": 10}),
    "AVIF, alpha": ("RGBA", {"speed": 10}),
    "JPEG2000": ("RGB", {}),
    "JPEG2000, alpha": ("RGBA", {}),
}


def encoded(name: str, side: int) -> bytes:
    """Return a blank image; its last scan is repeated where more scans are wanted than Pillow writes."""
    mode, options = FORMATS[name]
    file = io.BytesIO()
    PIL.Image.MAX_IMAGE_PIXELS = None
    PIL.Image.new(mode, (side, side)).save(file, name.partition(",")[0], **options)
    data = file.getvalue()
    if "scans" not in name:
        return data
    last = data.rindex(b"\xff\xda")
    return data[:-2] + data[last:-2] * (MAX_SCANS - data.count(b"\xff\xda")) + data[-2:]


def write(name: str, side: int, results: multiprocessing.SimpleQueue) -> None:
    """Encode an image, in a process of its own; None if its library cannot write so many pixels."""
    try:
        results.put(encoded(name, side))
    except OSError:
        results.put(None)


def decode(data: bytes, results: multiprocessing.SimpleQueue) -> None:
    """Measure one decoding: CPU seconds, and bytes by which the peak of memory grew."""
    decode_crop(encoded("JPEG", 64), 256)
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    decode_crop(data, 256)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    results.put((time.process_time() - start, 1024 * (peak - before)))


def in_process(function, *args):
    """Return what a function puts into a queue, from a new process."""
    context = multiprocessing.get_context("spawn")
    results = context.SimpleQueue()
    process = context.Process(target=function, args=(*args, results))
    process.start()
    value = results.get()
    process.join()
    return value


def main() -> None:
    """Parse the command line and print one line per format."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=at_least(64), default=13_300, help="pixels per side (default: 13300)")
    args = parser.parse_args()
    for name in FORMATS:
        data = in_process(write, name, args.side)
        if data is None:
            print(f"{name:18} cannot be written in this size")
            continue
        seconds, memory = in_process(decode, data)
        print(
            f"{name:18} {seconds:5.1f} s  {memory / 1e9:5.2f} GB  {memory / args.side**2:4.1f} bytes per pixel",
            flush=True,
        )


if __name__ == "__main__":
    main()
