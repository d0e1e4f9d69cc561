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
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

PAGE = Path(__file__).parents[2] / "docs/sources.md"
START, END = "<!-- generated: sources -->", "<!-- end -->"

Members = dict[str, Any]  # bytes by name, or the columns of a table by the name of its file


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


def write_parquet(path: Path, members: Members) -> Path:
    path.mkdir()
    for name, columns in members.items():
        pq.write_table(pa.table(columns), path / f"{name}.parquet")
    return path


def write_arrow(path: Path, members: Members) -> Path:
    path.mkdir()
    for name, columns in members.items():
        table = pa.table(columns)
        with pa.OSFile(str(path / f"{name}.arrow"), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
    return path


def encoded(pixels: np.ndarray, file_format: str) -> bytes:
    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, file_format)
    return sink.getvalue()


WRITERS: dict[str, Callable[[Path, Members], Path]] = {
    "folder": write_folder,
    "zip": write_zip,
    "tar": write_tar,
    "parquet": write_parquet,
    "arrow": write_arrow,
}


@dataclass(frozen=True)
class Case:
    """One row of the table.

    Attributes:
        kinds: kinds of source to which it applies.
        found: what is found, for the table.
        outcome: `read`, `skipped` or `refused`.
        rule: what happens, for the table.
        members: files or tables of the example, besides GOOD.
        keys: samples of the example, besides those of GOOD; `{kind}` stands for the ending of a table's file.
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
TABLES = ("parquet", "arrow")
ROWS = ("data.{kind}/0", "data.{kind}/1")
IMAGES = [{"bytes": IMAGE}, {"bytes": IMAGE}]
TWO_LABELS: Members = {"data": {"img": IMAGES, "fine_label": [1, 0], "coarse_label": [0, 0]}}
TEXT_LABELS: Members = {"data": {"image": IMAGES, "label": ["cat", "ant"]}}
NO_LABELS: Members = {"data": {"image": IMAGES}}
SPLITS: Members = {f"{split}-00000-of-00001": {"image": IMAGES, "label": [0, 1]} for split in ("train", "test")}

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
    Case(ALL, "`train/`, `val/`", "refused", "`--split` specifies one, or the path",
         {f"{split}/{name}": IMAGE for split in ("train", "val") for name in GOOD}, detail="contains splits",
         alone=True),
    Case(ALL, "`train/`, `val/` with images and no class folders, also with `--unlabeled`", "refused",
         "they are no classes, and not one set", {f"{split}/a.jpg": IMAGE for split in ("train", "val")},
         detail="contains splits", options={"unlabeled": True}, alone=True),
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
    Case(TABLES, "columns `image` and `label`, or one column of images and one of integers", "read",
         "labels are the numbers; class names come from Hugging Face's metadata",
         {"data": {"picture": IMAGES, "number": [1, 0]}}, keys=ROWS, classes=("0", "1"), alone=True),
    Case(TABLES, "`img`, `fine_label`, `coarse_label`", "refused", "`--label-column` specifies one", TWO_LABELS,
         detail="--label-column", alone=True),
    Case(TABLES, "`img`, `fine_label`, `coarse_label`, with `--label-column fine_label`", "read",
         "labels of the column",
         TWO_LABELS, keys=ROWS, classes=("0", "1"), options={"label_column": "fine_label"}, alone=True),
    Case(TABLES, "class names as text", "refused", "`--label-column` sorts them into classes", TEXT_LABELS,
         detail="--label-column", alone=True),
    Case(TABLES, "class names as text, with `--label-column label`", "read", "distinct names in sorted order",
         TEXT_LABELS, keys=ROWS, classes=("ant", "cat"), options={"label_column": "label"}, alone=True),
    Case(TABLES, "no labels", "refused", "`--unlabeled` reads it", NO_LABELS, detail="--unlabeled", alone=True),
    Case(TABLES, "no labels, with `--unlabeled`", "read", "one class, called `images`", NO_LABELS, keys=ROWS,
         classes=("images",), options={"unlabeled": True}, alone=True),
    Case(TABLES, "a missing label, or the label -1", "refused", "`--unlabeled` reads it",
         {"data": {"image": IMAGES, "label": [0, -1]}}, detail="--unlabeled", alone=True),
    Case(TABLES, "`train-00000-of-00001`, `test-00000-of-00001`", "refused", "`--split` specifies one", SPLITS,
         detail="--split", alone=True),
    Case(TABLES, "paths instead of image bytes", "refused", "the images are not in the files",
         {"data": {"image": pa.array([{"bytes": None, "path": "a.jpg"}] * 2,
                                     pa.struct({"bytes": pa.binary(), "path": pa.string()})), "label": [0, 1]}},
         detail="path", alone=True),
]  # fmt: skip


@dataclass(frozen=True)
class FileCase:
    """One row of the table about single images, which are read or quarantined when they are encoded.

    Attributes:
        found: what is found, for the table.
        outcome: `read` or `quarantined`.
        rule: what happens, for the table.
        data: an example.
        detail: a part of the reason.
    """

    found: str
    outcome: str
    rule: str
    data: bytes
    detail: str = ""


COLOR = np.arange(16 * 16 * 3, dtype=np.uint8).reshape(16, 16, 3)
FILES = [
    FileCase("a PNG called `c.jpg`", "read", "the content decides, not the name", encoded(COLOR, "png")),
    FileCase("gray, palette, alpha, CMYK, 16 or 32 bits", "read", "by the rule of its mode ([pixels](#pixels))",
             encoded(COLOR[:, :, 0].astype(np.uint16) * 257, "png")),
    FileCase("floating-point pixels", "quarantined", "their white is not defined",
             encoded(COLOR[:, :, 0].astype(np.float32), "tiff"), "floating-point"),
    FileCase("HEIC, PDF, HTML, a Git LFS pointer, …", "quarantined", "the reason gives the true format",
             b"%PDF-1.7", "its format is PDF"),
    FileCase("a truncated or damaged image", "quarantined", "nothing is filled in", encoded(COLOR, "png")[:80],
             "truncated or damaged"),
    FileCase("an empty file", "quarantined", "0 bytes", b"", "empty"),
    FileCase("more pixels than `--max-image-pixels`, or a [decompression bomb](#limits)", "quarantined",
             "before any pixel is decoded",
             b"P5 50000 50000 255\n" + bytes(100),
             "more than 178,956,970 pixels"),
    FileCase("a side shorter than 3 pixels", "quarantined", "tracking pixels and divider lines",
             encoded(COLOR[:2], "png"), "shorter than 3"),
]  # fmt: skip


def table() -> str:
    """Return the table of the page."""
    rows = [f"| {', '.join(case.kinds)} | {case.found} | {case.outcome} | {case.rule} |" for case in CASES]
    rows += [f"| any | {case.found} | {case.outcome} | {case.rule} |" for case in FILES]
    return "\n".join([START, "| kind | found | outcome | rule |", "|---|---|---|---|", *rows, END])


def page_with_table(page: str) -> str:
    """Return the text of the page with the current table."""
    before, _, rest = page.partition(START)
    return before + table() + rest.partition(END)[2]


if __name__ == "__main__":
    PAGE.write_text(page_with_table(PAGE.read_text()))
