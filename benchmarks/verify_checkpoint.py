"""Cost of verifying a checkpoint, next to loading it into memory.

    python benchmarks/verify_checkpoint.py                     # a file of 2 GB, deleted afterwards
    python benchmarks/verify_checkpoint.py --gigabytes 7       # as large as that of SiT-XL/2 with its optimizer

"cold": the pages of the file are dropped first. Prints medians of five runs, which alternate.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from repa_pipe.models.checked_zip import find_damage, zip_digest

RUNS = 5
TENSOR = 4 << 20  # numbers; 16 MB


def load(path: Path) -> None:
    """Load and copy all tensors, as a resumed run does."""
    for tensor in torch.load(path, weights_only=True, mmap=True).values():
        tensor.clone()


def drop_pages(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(fd)


def seconds(function: Callable[[Path], object], path: Path, is_cold: bool) -> float:
    if is_cold:
        drop_pages(path)
    start = time.perf_counter()
    function(path)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="folder for the file; default: the temporary folder")
    parser.add_argument("--gigabytes", type=float, default=2.0)
    args = parser.parse_args()
    functions = load, find_damage, zip_digest
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        path = Path(folder) / "checkpoint.pt"
        count = max(1, round(args.gigabytes * 1e9 / TENSOR / 4))
        torch.save({str(number): torch.rand(TENSOR) for number in range(count)}, path)
        os.sync()
        size = path.stat().st_size / 1e9
        print("| cache | load, GB/s | verify, GB/s | digest, ms |\n|---|--:|--:|--:|")
        for cache in ("warm", "cold"):
            turns = [[seconds(function, path, cache == "cold") for function in functions] for _ in range(RUNS)]
            loading, verifying, digest = np.median(turns, axis=0)
            print(f"| {cache} | {size / loading:.2f} | {size / verifying:.2f} | {digest * 1e3:.1f} |", flush=True)


if __name__ == "__main__":
    main()
