"""Time to index a tar archive: `sources/tar_headers.py` and Python's `tarfile`, in alternating rounds.

    python benchmarks/tar_index.py [--members 100000] [--rounds 5]

Prints the median seconds of both and their ratio, for the three formats that `tarfile` writes.
"""

import argparse
import io
import statistics
import tarfile
import tempfile
import time
from pathlib import Path

from arguments import at_least

from repa_pipe.sources.tar_headers import TarHeaders

FORMATS = {"ustar": tarfile.USTAR_FORMAT, "GNU": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}
MEMBER_BYTES = 1024


def write_archive(path: Path, members: int, kind: int) -> None:
    """Write an archive of small files; with pax, every member has an extended header."""
    data = bytes(MEMBER_BYTES)
    with tarfile.open(path, "w", format=kind) as archive:
        for number in range(members):
            info = tarfile.TarInfo(f"class-{number % 1000:04d}/{number:08d}.jpg")
            info.size, info.mtime = len(data), 0.5 if kind == tarfile.PAX_FORMAT else 0
            archive.addfile(info, io.BytesIO(data))


def index_with_headers(path: Path) -> list[tuple[str, int, int]]:
    """Index the archive with our reader."""
    with path.open("rb") as file:
        return [(member.name, member.offset, member.size) for member in TarHeaders(str(path), file).members()]


def index_with_tarfile(path: Path) -> list[tuple[str, int, int]]:
    """Index the archive with the standard library."""
    with tarfile.open(path, "r:") as archive:
        return [(member.name, member.offset_data, member.size) for member in archive if member.isreg()]


def main() -> None:
    """Parse the command line and print one line per format."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--members", type=at_least(1), default=100_000, help="files in the archive (default: 100000)")
    parser.add_argument("--rounds", type=at_least(1), default=5, help="alternating rounds (default: 5)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for name, kind in FORMATS.items():
            path = Path(folder) / f"{name}.tar"
            write_archive(path, args.members, kind)
            seconds: dict[str, list[float]] = {"ours": [], "tarfile": []}
            for _ in range(args.rounds):
                found = []
                for label, index in (("ours", index_with_headers), ("tarfile", index_with_tarfile)):
                    start = time.perf_counter()
                    found.append(index(path))
                    seconds[label].append(time.perf_counter() - start)
                assert found[0] == found[1]
            ours, theirs = (statistics.median(values) for values in seconds.values())
            print(f"{name:6} ours {ours:.2f} s, tarfile {theirs:.2f} s, ratio {theirs / ours:.1f}")
            path.unlink()


if __name__ == "__main__":
    main()
