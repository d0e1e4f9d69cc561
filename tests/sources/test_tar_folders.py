"""Tar archives of class folders, and of one archive per class, are read in place."""

import gzip
import tarfile
from io import BytesIO

import pytest

from repa_pipe.errors import SourceError
from repa_pipe.sources import SourceOptions, index_digest, open_source, records_of


def tar_bytes(members):
    sink = BytesIO()
    with tarfile.open(fileobj=sink, mode="w") as archive:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, BytesIO(data))
    return sink.getvalue()


@pytest.fixture
def images(encode):
    """Images of two classes, in the order of no folder."""
    names = ["n02/b.JPEG", "n01/d.JPEG", "n02/a.JPEG", "n01/c.v2.JPEG"]
    return {name: encode(seed) for seed, name in enumerate(names)}


def imagenet(images):
    """ImageNet's training archive as distributed: one archive per class, next to files of macOS."""
    classes = sorted({name.partition("/")[0] for name in images}, reverse=True)
    inner = {
        f"{each}.tar": tar_bytes({name[4:]: data for name, data in images.items() if name.startswith(each)})
        for each in classes
    }
    return {"._n02.tar": b"metadata of macOS", **inner}


def contents(source):
    return {record.key: source.read(record) for record in records_of(source.index())}


def test_a_tar_of_class_folders_has_the_digest_of_the_unpacked_folder(tmp_path, images):
    (tmp_path / "train.tar").write_bytes(tar_bytes(images | {"n01/._d.JPEG": b"", ".DS_Store": b"", "n02/a.txt": b""}))
    source = open_source(str(tmp_path / "train.tar"))
    for name, data in images.items():
        path = tmp_path / "unpacked" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    folder = open_source(str(tmp_path / "unpacked"))
    assert source.class_names == folder.class_names == ("n01", "n02")
    assert index_digest(source.index()) == index_digest(folder.index())
    assert contents(source) == images
    counted = {each.reason: each.count for each in source.skipped}
    assert counted == {"created by other programs": 2, "ending .txt": 1}


def test_a_tar_of_tars_is_read_in_place_with_a_class_per_archive(tmp_path, images, monkeypatch):
    (tmp_path / "ILSVRC2012_img_train.tar").write_bytes(tar_bytes(imagenet(images)))
    source = open_source(str(tmp_path / "ILSVRC2012_img_train.tar"))
    assert source.class_names == ("n01", "n02")
    assert contents(source) == images
    assert [(each.reason, each.count) for each in source.skipped] == [("created by other programs", 1)]
    (tmp_path / "list.txt").write_text("n02\nn01\n")
    listed = open_source(
        str(tmp_path / "ILSVRC2012_img_train.tar"), None, SourceOptions(class_order=str(tmp_path / "list.txt"))
    )
    assert listed.class_names == ("n02", "n01")
    assert listed.index()["label"].to_pylist() == [0, 0, 1, 1]


def test_a_compressed_or_truncated_archive_in_an_archive_is_refused(tmp_path, images):
    inner = imagenet(images)
    (tmp_path / "a.tar").write_bytes(tar_bytes(inner | {"n01.tar": gzip.compress(inner["n01.tar"])}))
    with pytest.raises(SourceError, match=r"n01.tar in .*a.tar is compressed \(gzip\)"):
        open_source(str(tmp_path / "a.tar")).index()
    (tmp_path / "a.tar").write_bytes(tar_bytes(inner | {"n01.tar": inner["n01.tar"][:700]}))
    with pytest.raises(SourceError, match=r"n01.tar in .*a.tar is truncated"):
        open_source(str(tmp_path / "a.tar")).index()


def test_a_folder_around_the_classes_must_be_specified(tmp_path, images):
    file = tmp_path / "packed.tar"
    file.write_bytes(tar_bytes({f"./data/{name}": data for name, data in images.items()} | {"./notes.txt": b""}))
    with pytest.raises(SourceError, match=rf"are inside its folder data: specify {file}/data, or pass --unlabeled"):
        open_source(str(file)).index()
    source = open_source(str(file / "data"))
    assert source.kind == "tar"
    assert source.class_names == ("n01", "n02")
    assert contents(source) == images


def test_the_train_split_of_an_archive_must_be_specified(tmp_path, images):
    members = {f"{split}/{name}": data for split in ("train", "val") for name, data in images.items()}
    (tmp_path / "a.tar").write_bytes(tar_bytes(members))
    with pytest.raises(SourceError, match=r"contains splits \(train, val\), not classes: .*a.tar/train"):
        open_source(str(tmp_path / "a.tar")).index()
    assert contents(open_source(str(tmp_path / "a.tar/train"))) == images


def test_class_folders_may_be_spread_over_several_archives(tmp_path, images):
    names = list(images)
    (tmp_path / "0.tar").write_bytes(tar_bytes({name: images[name] for name in names[:2]}))
    (tmp_path / "1.tar").write_bytes(tar_bytes({name: images[name] for name in names[2:]}))
    (tmp_path / "README.md").write_text("")
    source = open_source(str(tmp_path))
    assert source.class_names == ("n01", "n02")
    assert contents(source) == images
    assert [(each.reason, each.example) for each in source.skipped] == [("not a .tar file", "README.md")]
    (tmp_path / "1.tar").write_bytes(tar_bytes(images))
    with pytest.raises(SourceError, match=r"contains several members with the same name \(n0./.*\): pack it again"):
        open_source(str(tmp_path)).index()


def test_a_folder_of_archives_without_labels_or_folders_is_refused_with_both_remedies(tmp_path, images):
    for each in ("n01", "n02"):
        (tmp_path / f"{each}.tar").write_bytes(imagenet(images)[f"{each}.tar"])
    with pytest.raises(SourceError, match=r"has no label: .*tar -cf classes.tar .*pass --unlabeled"):
        open_source(str(tmp_path)).index()
    source = open_source(str(tmp_path), None, SourceOptions(unlabeled=True))
    assert source.class_names == ("images",)
    assert len(source.index()) == 4


def test_files_of_other_programs_do_not_hide_a_folder_of_archives(tmp_path, images):
    (tmp_path / "a.tar").write_bytes(tar_bytes(images))
    (tmp_path / "._a.tar").write_bytes(b"metadata of macOS")
    (tmp_path / "@eaDir").mkdir()
    source = open_source(str(tmp_path))
    assert source.kind == "tar"
    assert contents(source) == images


def test_a_name_that_leads_out_of_the_archive_is_refused(tmp_path, images):
    (tmp_path / "a.tar").write_bytes(tar_bytes({f"../{name}": data for name, data in images.items()}))
    with pytest.raises(SourceError, match=r"\.\./n02/b.JPEG leads out of its archive: pack it again"):
        open_source(str(tmp_path / "a.tar")).index()
