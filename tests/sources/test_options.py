"""Every kind of source applies an option or refuses it."""

import io
import tarfile
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from repa_pipe.errors import SourceError
from repa_pipe.sources import SourceOptions, open_recorded, open_source
from repa_pipe.sources.opening import KINDS
from repa_pipe.sources.options import FLAGS

VALUES = {
    "split": "train",
    "image_column": "img",
    "label_column": "label",
    "unlabeled": True,
    "class_order": "natural",
}


PLUG_IN = """
from repa_pipe.sources import Source

class PlugIn(Source):
    def list_records(self, progress):
        raise NotImplementedError

    def read_bytes(self, record):
        raise NotImplementedError
"""


@pytest.fixture
def sources(tmp_path, encode):
    """A source of each kind, named train."""
    (tmp_path / "folder/train/a").mkdir(parents=True)
    (tmp_path / "folder/train/a/1.png").write_bytes(encode())
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("train/a/1.png", encode())
    with tarfile.open(tmp_path / "train.tar", "w") as archive:
        for name, content in {"1.png": encode(), "1.cls": b"0"}.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    with tarfile.open(tmp_path / "folders.tar", "w") as archive:
        archive.add(tmp_path / "folder/train", "")
    table = pa.table({"img": [encode()], "label": [0]})
    pq.write_table(table, tmp_path / "train.parquet")
    with pa.ipc.new_stream(str(tmp_path / "train.arrow"), table.schema) as writer:
        writer.write_table(table)
    paths = {"folder": "folder", "zip": "a.zip", "tar": "train.tar", "parquet": "train.parquet", "arrow": "train.arrow"}
    return {kind: str(tmp_path / path) for kind, path in paths.items()}


@pytest.mark.parametrize("name", VALUES)
@pytest.mark.parametrize("kind", KINDS)
def test_an_option_is_applied_or_refused_with_its_flag(sources, kind, name):
    assert VALUES.keys() == FLAGS.keys()
    options = SourceOptions(**{name: VALUES[name]})
    if name == "class_order" and kind in ("folder", "zip", "tar"):
        folders = {"folder": "folder/train", "zip": "a.zip/train", "tar": "folders.tar"}[kind]
        assert open_source(f"{Path(sources['zip']).parent}/{folders}", options=options).class_names == ("a",)
        return
    if name in KINDS[kind].applied_options:
        assert len(open_source(sources[kind], options=options).index()) == 1
        return
    with pytest.raises(
        SourceError, match=f"^{FLAGS[name]} does not apply to .*, a source of kind {kind}, whose options are: --"
    ):
        open_source(sources[kind], options=options)


@pytest.mark.parametrize("name", VALUES)
def test_plug_ins_refuse_all_options(install_plug_in, name):
    install_plug_in(PLUG_IN, own="PlugIn")
    assert open_source("x", "own").path == "x"
    with pytest.raises(SourceError, match=r"does not apply to x, a source of kind own, whose options are: n"):
        open_source("x", "own", SourceOptions(**{name: VALUES[name]}))


@pytest.mark.parametrize("split", ["", ".", "..", "../other", "a/b"])
def test_a_split_is_a_name(split):
    with pytest.raises(SourceError, match="is not the name of a split: expected a name such as train"):
        SourceOptions(split=split)


def test_unlabeled_and_a_label_column_exclude_each_other():
    with pytest.raises(SourceError, match="--unlabeled ignores labels, and --label-column fine reads them: pass one"):
        SourceOptions(unlabeled=True, label_column="fine")


def test_invalid_recorded_options_are_one_line(sources):
    recorded = {"kind": "parquet", "path": sources["parquet"], "options": {"split": ""}}
    with pytest.raises(SourceError, match="source options recorded in the store: --split '' is not the name"):
        open_recorded(recorded)


@pytest.mark.parametrize("kind", KINDS)
def test_the_recorded_source_has_the_same_images(sources, kind):
    source = open_source(sources[kind], options=SourceOptions(split="train"))
    recorded = source.describe()
    assert recorded == {"kind": kind, "path": sources[kind], "options": {"split": "train", "listing": 2}}
    assert open_recorded(recorded).index().equals(source.index())
    assert open_recorded(recorded, sources[kind]).index().equals(source.index())
