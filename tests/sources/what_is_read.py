"""What sources read, skip and refuse, as data: docs/sources.md shows it, test_what_is_read.py tries every example.

Run this file to write the table.
"""

import gzip
import io
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs/sources.md"
START, END = "<!-- generated: sources -->", "<!-- end -->"

Members = dict[str, bytes]


def write_folder(path: Path, members: Members) -> Path:
    for name, data in members.items():
        file = path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith("/"):
            (path / name).mkdir(parents=True, exist_ok=True)
        else:
            file.write_bytes(data)
    return path


def write_zip(path: Path, members: Members) -> Path:
    with zipfile.ZipFile(path.with_suffix(".zip"), "w") as archive:
        for name, data in members.items():
            info = zipfile.ZipInfo("a")
            info.filename = name  # the constructor would replace backslashes
            archive.writestr(info, data)
    return path.with_suffix(".zip")


def write_tar(path: Path, members: Members) -> Path:
    path.with_suffix(".tar").write_bytes(tar_bytes(members))
    return path.with_suffix(".tar")


def tar_bytes(members: Members) -> bytes:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w") as archive:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return sink.getvalue()


WRITERS: dict[str, Callable[[Path, Members], Path]] = {"folder": write_folder, "zip": write_zip, "tar": write_tar}


@dataclass(frozen=True)
class Case:
    """One row of the table.

    Attributes:
        kinds: kinds of source to which it applies.
        found: what is found, for the table.
        outcome: `read`, `skipped` or `refused`.
        rule: what happens, for the table.
        members: files of the example, besides GOOD.
        keys: samples of the example, besides those of GOOD.
        classes: class names of the example.
        detail: reason of the skipped file, or a part of the error.
        options: options of the source.
        alone: whether the example does not contain GOOD.
    """

    kinds: tuple[str, ...]
    found: str
    outcome: str
    rule: str
    members: Members
    keys: tuple[str, ...] = ()
    classes: tuple[str, ...] = ("n01", "n02")
    detail: str = ""
    options: dict[str, object] = field(default_factory=dict)
    alone: bool = False


IMAGE = b"an image, as far as listing is concerned"
GOOD: Members = {"n01/a.jpg": IMAGE, "n02/b.png": IMAGE}
ALL = ("folder", "zip", "tar")
PAIR: Members = {"0.jpg": IMAGE, "0.cls": b"1"}

CASES = [
    Case(ALL, "`n01/a.jpg`, `n02/b.png`", "read", "one class per top folder, labels in sorted order", {}),
    Case(ALL, "`n01/C.JPEG`, `n01/c.jfif`, `n01/c.gif`, `n01/c.avif`, `n01/c.heic`", "read",
         "samples; quarantined with a reason if they cannot be decoded",
         {f"n01/{name}": IMAGE for name in ("C.JPEG", "c.avif", "c.gif", "c.heic", "c.jfif")},
         keys=tuple(f"n01/{name}" for name in ("C.JPEG", "c.avif", "c.gif", "c.heic", "c.jfif"))),
    Case(ALL, "`n01/c.txt`, `n01/c.xml`, `n01/c`", "skipped", "counted by ending", {"n01/c.txt": b""},
         detail="ending .txt"),
    Case(ALL, "`.git/`, `.ipynb_checkpoints/`, `n01/.c.jpg`", "skipped", "hidden names are no classes and no samples",
         {".git/c.jpg": IMAGE}, detail="hidden"),
    Case(ALL, "`__MACOSX/`, `._a.jpg`, `.DS_Store`, `Thumbs.db`, `desktop.ini`, `@eaDir/`, `__pycache__/`", "skipped",
         "created by other programs", {"@eaDir/a.jpg": IMAGE}, detail="created by other programs"),
    Case(ALL, "`c.jpg` next to class folders", "skipped", "it has no class (`--unlabeled` reads it)",
         {"c.jpg": IMAGE}, detail="next to class folders"),
    Case(("folder", "zip"), "`a.jpg`, `b.jpg` and no folders", "read", "one class, called `images`",
         {"a.jpg": IMAGE, "b.jpg": IMAGE}, keys=("a.jpg", "b.jpg"), classes=("images",), alone=True),
    Case(ALL, "any folders, with `--unlabeled`", "read", "one class, called `images`", {"c.jpg": IMAGE},
         keys=("c.jpg",), classes=("images",), options={"unlabeled": True}),
    Case(("folder", "zip"), '`dataset.json` with `{"labels": [["n01/a.jpg", 1], …]}`', "read",
         "labels of the file instead of folders",
         {"dataset.json": b'{"labels": [["n01/a.jpg", 1], ["n02/b.png", 0]]}'}, classes=("0", "1")),
    Case(("folder", "zip"), '`dataset.json` with `{"labels": null}`', "refused", "`--unlabeled` reads it",
         {"dataset.json": b'{"labels": null}'}, detail="pass --unlabeled"),
    Case(("folder", "zip"), "an empty class folder", "refused", "remove it, or leave it out of `--class-order FILE`",
         {"n03/": b""}, detail="1 of 3 class folders in"),
    Case(ALL, "`train/`, `val/`", "refused", "specify one of them as the source",
         {f"{split}/{name}": IMAGE for split in ("train", "val") for name in GOOD}, detail="contains splits",
         alone=True),
    Case(("zip", "tar"), "`data/n01/`, `data/n02/` and nothing else", "refused", "specify `ARCHIVE/data` as the source",
         {f"data/{name}": IMAGE for name in GOOD}, detail="are inside its folder data", alone=True),
    Case(("zip", "tar"), "`./n01/c.jpg`, `/n01/c.jpg`, `n01\\c.jpg`", "read", "as `n01/c.jpg`",
         {"./n01/c.jpg": IMAGE, "/n01/d.jpg": IMAGE, "n01\\e.jpg": IMAGE},
         keys=("n01/c.jpg", "n01/d.jpg", "n01/e.jpg")),
    Case(("zip", "tar"), "two members with one name", "refused", "pack the archive again",
         {"n01/a.jpg": IMAGE, "./n01/a.jpg": IMAGE}, detail="several members with the same name"),
    Case(("tar",), "`0.jpg`, `0.cls` or `0.json`", "read", "one WebDataset sample with a number as label", PAIR,
         keys=("example.tar/0.jpg",), classes=("0", "1"), alone=True),
    Case(("tar",), "`0.txt`, `0.seg.png` next to `0.jpg` and `0.cls`", "skipped", "other parts of the sample",
         {**PAIR, "0.seg.png": IMAGE}, keys=("example.tar/0.jpg",), classes=("0", "1"),
         detail="part of a WebDataset sample, not its image", alone=True),
    Case(("tar",), "`0.jpg`, `0.JPG`", "refused", "WebDataset gives both the same name: rename one of them",
         {**PAIR, "0.JPG": IMAGE}, detail="two members for .jpg of one sample", alone=True),
    Case(("tar",), "`0.jpg`, `0.png` and one label", "refused", "which of them is the image is unknown",
         {**PAIR, "0.png": IMAGE}, detail="several images in one sample", alone=True),
    Case(("tar",), "`0.jpg` without label or folder", "refused", "`--unlabeled` reads it", {"0.jpg": IMAGE},
         detail="pass --unlabeled", alone=True),
    Case(("tar",), "`n01.tar`, `n02.tar` (ImageNet's archive as distributed)", "read",
         "in place, one class per archive",
         {"n01.tar": tar_bytes({"a.jpg": IMAGE}), "n02.tar": tar_bytes({"b.png": IMAGE})},
         keys=tuple(GOOD), alone=True),
    Case(("tar",), "`n01.tar.gz` in a tar, or a compressed tar", "refused", "decompress it first",
         {"n01.tar.gz": gzip.compress(tar_bytes({"a.jpg": IMAGE}))}, detail="is compressed (gzip)", alone=True),
]  # fmt: skip


def table() -> str:
    """Return the table of the page."""
    rows = [f"| {', '.join(case.kinds)} | {case.found} | {case.outcome} | {case.rule} |" for case in CASES]
    return "\n".join([START, "| kind | found | outcome | rule |", "|---|---|---|---|", *rows, END])


def page_with_table(page: str) -> str:
    """Return the text of the page with the current table."""
    before, _, rest = page.partition(START)
    return before + table() + rest.partition(END)[2]


if __name__ == "__main__":
    PAGE.write_text(page_with_table(PAGE.read_text()))
