"""Time to list a folder of images, compared with `find`, which prints the same sizes and names.

    python benchmarks/source_index.py [--images 200000] [--classes 1000] [--rounds 5] [--folder DIR]

Three folders of empty files: with one folder per class, with two class folders, and flat. In every round, `find`
and the listing of `encode` (keys, labels, sizes, digest) take turns, on directories that are in memory. Results are
medians.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from arguments import at_least

from repa_pipe.sources import open_source
from repa_pipe.sources.index import index_digest


def make_folder(path: Path, images: int, classes: int) -> None:
    """Create empty images in folders named by numbers, or directly in `path` if there are no classes."""
    for label in range(max(1, classes)):
        folder = path / f"n{label:08d}" if classes else path
        folder.mkdir(parents=True)
        for number in range(label, images, max(1, classes)):
            os.close(os.open(f"{folder}/n{label:08d}_{number}.JPEG", os.O_CREAT | os.O_WRONLY))


def timed(work: Callable[..., Any], *args: Any) -> tuple[float, Any]:
    start = time.perf_counter()
    result = work(*args)
    return time.perf_counter() - start, result


def find(path: Path) -> None:
    command = ["find", str(path), "-type", "f", "-printf", "%s %p\\n"]
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=at_least(1), default=200_000, help="files per folder")
    parser.add_argument("--classes", type=at_least(1), default=1000, help="class folders")
    parser.add_argument("--rounds", type=at_least(1), default=5, help="number of rounds")
    parser.add_argument("--folder", default=None, help="folder for the files. Default: the system's temporary folder")
    parser.add_argument("--out", type=Path, default=None, help="JSON file for the results")
    args = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        for name, classes in ((f"{args.classes} classes", args.classes), ("2 classes", 2), ("flat", 0)):
            path = Path(folder) / name
            make_folder(path, args.images, classes)
            times = []
            for _ in range(args.rounds):
                found = timed(find, path)
                listed = timed(open_source(str(path)).list_records, None)
                times.append((found[0], listed[0], timed(index_digest, listed[1].index)[0]))
            of_find, listing, digest = (statistics.median(values) for values in zip(*times, strict=True))
            microseconds = [round(1e6 * value / args.images, 2) for value in (of_find, listing, digest)]
            facts = dict(zip(("find_us", "listing_us", "digest_us"), microseconds, strict=True))
            rows.append({"folder": name} | facts | {"ratio": round(listing / of_find, 2)})
            print(
                f"{name:<16} per image: find {facts['find_us']} us, listing {facts['listing_us']} us "
                f"({rows[-1]['ratio']} times find), digest {facts['digest_us']} us",
                flush=True,
            )
    if args.out:
        args.out.write_text(json.dumps({"images": args.images, "rounds": args.rounds, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
