"""Names of generated images: images of other settings or of another checkpoint never have the same name."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from repa_pipe.config import SampleConfig
from repa_pipe.pipeline.artifacts.names import digest_of
from repa_pipe.pipeline.artifacts.run_folder import RunFolder
from repa_pipe.pipeline.artifacts.sample_files import (
    SampleFiles,
    SampleResult,
    files_of,
    finished_samples,
    sample_sets,
    sample_settings,
)

PLAIN = "last-ode50-cfg1.5-seed0-50000"


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def checkpoint_at(path):
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(str(path).encode())
    return path


def generate(checkpoint, **options):
    """Write the files that a finished `sample` leaves, with the checkpoint as contents."""
    config = SampleConfig(checkpoint=str(checkpoint), **options)
    files = files_of(config, checkpoint)
    files.npz.parent.mkdir(parents=True, exist_ok=True)
    files.npz.write_bytes(checkpoint.read_bytes())
    result = SampleResult(str(files.npz), str(files.grid), 4, 1, 0.0)
    files.write_record(config, sample_settings(config, checkpoint), result)
    assert finished_samples(config) == result
    return files


def test_checkpoints_with_the_same_file_name_keep_their_images_apart():
    checkpoints = [checkpoint_at(f"{folder}/last.pt") for folder in "abc"]
    made = [generate(checkpoint) for checkpoint in checkpoints]
    assert made[0].npz == Path("samples", f"{PLAIN}.npz")
    assert len({files.npz for files in made}) == 3
    assert all(files.npz.name.startswith(f"{PLAIN}-") for files in made[1:])
    for files, checkpoint in zip(made, checkpoints, strict=True):
        assert files.npz.read_bytes() == checkpoint.read_bytes()
        assert files_of(SampleConfig(checkpoint=str(checkpoint)), checkpoint) == files


def test_unfinished_images_of_another_checkpoint_are_left_alone():
    first, second = checkpoint_at("a/last.pt"), checkpoint_at("b/last.pt")
    config = SampleConfig(checkpoint=str(first))
    files = files_of(config, first)
    files.blocks.mkdir(parents=True)
    files.settings_of_blocks.write_text(json.dumps(sample_settings(config, first) | {"per_proc_batch_size": 8}))
    assert files_of(config, first) == files
    assert files_of(replace(config, checkpoint=str(second)), second) != files


def test_images_of_a_checkpoint_that_was_written_again_elsewhere_are_kept():
    checkpoint = checkpoint_at("a/last.pt")
    first = generate(checkpoint)
    checkpoint.write_bytes(b"another")
    os.utime(checkpoint, (1, 1))
    second = generate(checkpoint)
    assert first.npz != second.npz
    assert first.npz.exists()


def test_images_of_a_checkpoint_that_was_copied_or_touched_are_found():
    checkpoint = checkpoint_at("a/last.pt")
    files = generate(checkpoint)
    os.utime(checkpoint, (1, 1))
    copy = Path("b/last.pt")
    copy.parent.mkdir()
    copy.write_bytes(checkpoint.read_bytes())
    for path in (checkpoint, copy):
        assert files_of(SampleConfig(checkpoint=str(path)), path) == files
        assert finished_samples(SampleConfig(checkpoint=str(path))) is not None


def record_as_before_digests(files, checkpoint):
    """Change a record to that of a version that recorded path, size and time of the checkpoint."""
    record = json.loads(files.record.read_text())
    stat = checkpoint.stat()
    record["settings"]["checkpoint"] = {
        "path": str(checkpoint.resolve()),
        "bytes": stat.st_size,
        "written": stat.st_mtime_ns,
    }
    files.record.write_text(json.dumps(record))
    return record["settings"]


def test_images_recorded_without_a_digest_are_found_until_the_checkpoint_changes():
    first, second = checkpoint_at("a/last.pt"), checkpoint_at("b/last.pt")
    plain, other = generate(first), generate(second)
    record_as_before_digests(plain, first)
    settings = record_as_before_digests(other, second)
    old = SampleFiles(other.npz.with_name(f"{PLAIN}-{digest_of(settings)}.npz"))
    other.npz.rename(old.npz)
    other.record.rename(old.record)
    for checkpoint, files in ((first, plain), (second, old)):
        config = SampleConfig(checkpoint=str(checkpoint))
        assert files_of(config, checkpoint) == files
        assert finished_samples(config) is not None
        os.utime(checkpoint, (1, 1))
        assert finished_samples(config) is None


def test_in_a_run_folder_a_step_that_was_written_again_replaces_its_images():
    checkpoint = checkpoint_at(RunFolder(Path("exps/run")).checkpoint(4))
    first = generate(checkpoint)
    checkpoint.write_bytes(b"another")
    assert finished_samples(SampleConfig(checkpoint=str(checkpoint))) is None
    assert generate(checkpoint) == first
    assert first.npz == Path("exps/run/samples/0000004-ode50-cfg1.5-seed0-50000.npz")
    assert sample_sets(RunFolder(Path("exps/run"))) == [first]


def test_settings_that_look_the_same_in_a_name_have_different_names():
    checkpoint = checkpoint_at(RunFolder(Path("exps/run")).checkpoint(4))
    for folder in ("a/vae", "b/vae"):
        Path(folder).mkdir(parents=True)
    options = [{"vae": "a/vae"}, {"vae": "b/vae"}, {"cfg_scale": 1.8}, {"cfg_scale": 1.8 + 1e-9}]
    made = [generate(checkpoint, **option) for option in options]
    assert len({files.npz for files in made}) == 4
    assert sorted(files.npz for files in sample_sets(RunFolder(Path("exps/run")))) == sorted(f.npz for f in made)


def test_images_are_found_for_every_spelling_of_a_vae_in_old_records():
    checkpoint = checkpoint_at("a/last.pt")
    Path("vae").mkdir()
    files = generate(checkpoint, vae="vae")
    record = json.loads(files.record.read_text())
    record["settings"]["vae"] = "./vae"  # earlier versions recorded what was passed
    files.record.write_text(json.dumps(record))
    for spelling in ("vae", "./vae", "vae/", str(Path("vae").resolve())):
        assert finished_samples(SampleConfig(checkpoint=str(checkpoint), vae=spelling)) is not None


def test_images_with_the_random_streams_of_an_earlier_version_are_left_alone():
    checkpoint = checkpoint_at(RunFolder(Path("exps/run")).checkpoint(4))
    old = generate(checkpoint)
    record = json.loads(old.record.read_text())
    del record["settings"]["random_streams"]
    old.record.write_text(json.dumps(record))
    assert finished_samples(SampleConfig(checkpoint=str(checkpoint))) is None
    new = generate(checkpoint)
    assert new.npz != old.npz
    assert sample_sets(RunFolder(Path("exps/run"))) == [old, new]


def test_names_with_dots_do_not_collide():
    files = [SampleFiles(Path("samples", name)) for name in ("a.v1.npz", "a.v2.npz", "a.npz")]
    names = [{one.grid, one.record, one.blocks, one.metrics} for one in files]
    assert len(set.union(*names)) == 12
    assert files[0].metrics == Path("samples/a.v1.metrics.json")


def test_metrics_of_other_images_are_not_among_those_of_a_set(tmp_path):
    files = SampleFiles(tmp_path / "a.npz")
    others = [tmp_path / f"a.{name}.metrics.json" for name in ("v1", "0123abcg", "0123abcd.0123abcd")]
    mine = [files.metrics, files.metrics_with({"reference": "b"})]
    for age, path in enumerate([*others, *mine]):
        path.write_text("{}")
        os.utime(path, (age, age))
    assert files.all_metrics() == mine
