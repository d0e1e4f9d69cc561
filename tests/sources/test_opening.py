import pickle
import subprocess
import sys

import pytest

from repa_pipe.errors import SourceError
from repa_pipe.sources import index_digest, open_recorded, open_source, records_of

PLUG_IN = """
from repa_pipe.sources import Listing, Record, Source, build_index

class Countdown(Source):
    def list_records(self, progress):
        size = int(self.path)
        records = [Record(f"number {n}", n % 2, 1) for n in range(size)]
        return Listing(build_index(records), ("even", "odd"))

    def read_bytes(self, record):
        return record.key[-1:].encode()

class TooFewNames(Countdown):
    def list_records(self, progress):
        return Listing(super().list_records(progress).index, ("even",))

not_callable = 3
def returns_a_list(path):
    return [path]
"""


@pytest.fixture
def plug_in(install_plug_in):
    install_plug_in(
        PLUG_IN,
        countdown="Countdown",
        few="TooFewNames",
        missing="Missing",
        number="not_callable",
        lister="returns_a_list",
    )
    return "countdown"


def test_a_plug_in_behaves_like_the_built_in_kinds(plug_in):
    source = open_source("5", plug_in)
    assert source.class_names == ("even", "odd")
    assert source.index()["label"].to_pylist() == [0, 1, 0, 1, 0]
    assert source.describe() == {"kind": "countdown", "path": "5"}
    again = open_source(**source.describe())
    assert index_digest(again.index()) == index_digest(source.index())
    worker = pickle.loads(pickle.dumps(source))
    assert [worker.read(record) for record in records_of(source.index())] == [b"0", b"1", b"2", b"3", b"4"]


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (
            "missing",
            r"plug-in missing \(plug_in_module:Missing\) cannot be loaded: module .* has no attribute 'Missing'",
        ),
        ("number", "is 3: expected a class or function that returns a Source"),
        ("lister", "returned list: expected a repa_pipe.sources.Source"),
        ("other", r"unknown source kind 'other'; .* \(found countdown, few, lister, missing, number\)$"),
        ("plug_in_module:Countdown", "unknown source kind 'plug_in_module:Countdown'; .* not MODULE:CALLABLE"),
    ],
)
def test_an_invalid_plug_in_is_refused(plug_in, kind, message):
    with pytest.raises(SourceError, match=message):
        open_source("5", kind)


def test_a_plug_in_without_images_or_class_names_is_refused(plug_in):
    with pytest.raises(SourceError, match="0 contains no images"):
        open_source("0", plug_in).index()
    with pytest.raises(SourceError, match="expected class names for labels 0 to 1, found 1 names"):
        open_source("5", "few").index()


@pytest.mark.parametrize("kind", ["countdown", "os:system", "plug_in_module:Countdown", "subprocess:run", ":"])
def test_a_recorded_plug_in_does_not_run_unless_it_is_named(plug_in, tmp_path, kind):
    recorded = {"kind": kind, "path": f"touch {tmp_path / 'ran'}"}
    with pytest.raises(SourceError, match=rf"the source plug-in '{kind}', and a store cannot start a plug-in: pass"):
        open_recorded(recorded)
    assert "plug_in_module" not in sys.modules
    assert not (tmp_path / "ran").exists()
    assert open_recorded(recorded | {"path": "5"}, kind="countdown").index().num_rows == 5


@pytest.mark.parametrize(
    ("path", "kind", "message"),
    [
        ("gone", None, r"/gone does not exist: expected a folder, a .zip, .tar, .parquet or .arrow file, or a glob"),
        ("", None, "path is empty"),
        ("gone*", None, "gone.* does not specify a file type: end the glob with .tar, .parquet or .arrow"),
        ("s3://bucket/train", None, "s3://bucket/train is not a local path: mount or download it first"),
        ("notes.txt", None, "notes.txt is a .txt file: expected .zip, .tar, .parquet or .arrow, or a folder"),
        ("notes.txt", "folder", "notes.txt is a file: expected a folder"),
        (".", "lmdb", "unknown source kind 'lmdb'; expected folder, zip, tar, parquet, arrow, or an installed plug-in"),
    ],
)
def test_a_path_that_is_not_a_source_is_refused_immediately(tmp_path, monkeypatch, path, kind, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes.txt").write_text("a")
    with pytest.raises(SourceError, match=message):
        open_source(path, kind)


def test_a_tilde_is_expanded_to_the_home_folder(tree, monkeypatch):
    monkeypatch.setenv("HOME", str(tree.parent))
    assert open_source(f"~/{tree.name}").path == str(tree)


def test_the_kind_of_a_folder_is_inferred_from_its_contents(tmp_path, encode):
    (tmp_path / "README.md").write_text("a dataset")
    (tmp_path / ".cache").mkdir()
    (tmp_path / "a.tar").write_bytes(b"")
    assert open_source(str(tmp_path)).kind == "tar"
    (tmp_path / "a.parquet").write_bytes(b"")
    with pytest.raises(SourceError, match=r"contains .tar and .parquet files: specify one kind with a glob"):
        open_source(str(tmp_path))
    (tmp_path / "n01").mkdir()
    assert open_source(str(tmp_path)).kind == "folder"


@pytest.mark.parametrize("ending", ["tar", "parquet", "arrow"])
def test_the_kind_of_a_folder_may_be_that_of_its_subfolders(tmp_path, encode, ending):
    (tmp_path / "data/more").mkdir(parents=True)
    (tmp_path / "data/notes.txt").write_text("a dataset")
    (tmp_path / f"data/more/a.{ending}").write_bytes(b"")
    (tmp_path / "top.tar").write_bytes(b"")
    assert open_source(str(tmp_path)).kind == ending
    (tmp_path / "data/more/a.png").write_bytes(encode())
    assert open_source(str(tmp_path)).kind == "folder"
    (tmp_path / "data/more/a.png").rename(tmp_path / "a.png")
    assert open_source(str(tmp_path)).kind == "folder"


def test_several_kinds_in_subfolders_are_refused(tmp_path):
    for name in "a/1.tar", "b/2.arrow":
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(SourceError, match=r"contains .tar and .arrow files: .* or with --source-kind"):
        open_source(str(tmp_path))


def test_importing_sources_loads_no_heavy_library():
    heavy = "{'torch', 'torchvision', 'ray', 'scipy', 'diffusers', 'timm', 'zarr'}"
    code = f"import sys, repa_pipe.sources; print(sorted({heavy} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
