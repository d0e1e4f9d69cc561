"""Stores whose source records code: no command runs it."""

import dataclasses
import json

import numpy as np
import pytest

from repa_pipe.pipeline import train
from repa_pipe.pipeline.artifacts.images import write_npz
from repa_pipe.stores.writer import create_store

NEEDED = "was read with the source plug-in 'os:system', and a store cannot start a plug-in: pass --source-kind"


@pytest.fixture
def hostile(helpers, tmp_path):
    """A store that was encoded from "os:system", whose path is a command that creates the file `ran`."""
    path = tmp_path / "hostile"
    source = {"kind": "os:system", "path": f"touch {tmp_path / 'ran'}"}
    manifest = dataclasses.replace(helpers.manifest_of(50, 16), source=source)
    create_store(path, manifest, helpers.samples_of(50))
    for spec in (helpers.LATENTS, helpers.FEATURES):
        helpers.write_group(path, manifest, spec)
    return path


def test_no_command_that_reads_the_images_again_runs_what_a_store_names(hostile, config_of, run_cli, tmp_path):
    samples = tmp_path / "samples.npz"
    write_npz(samples, [np.zeros((8, 32, 32, 3), np.uint8)], np.zeros(8, np.int64), 32)
    commands = {
        "export": ["store", "export", "--store", hostile, "--out", tmp_path / "out"],
        "evaluate": ["evaluate", samples, "--reference", hostile, "--out", tmp_path / "metrics.json"],
        "info": ["store", "info", hostile],
    }
    results = {name: run_cli(*words) for name, words in commands.items()}
    assert (results["export"][0], results["evaluate"][0], results["info"][0]) == (2, 2, 0)
    for name in ("export", "evaluate"):
        assert NEEDED in results[name][2]
        assert results[name][2].count("\n") == 1
    train.run(config_of(store=str(hostile), max_train_steps=1))
    code, _, errors = run_cli("report", tmp_path / "runs/run", "--out", tmp_path / "report.html")
    assert code == 0, errors
    page = (tmp_path / "report.html").read_text()
    assert "Source images are not shown because they cannot be read" in page
    assert "a store cannot start a plug-in" in page
    assert not (tmp_path / "ran").exists()


def test_files_of_settings_and_sweeps_cannot_name_a_plug_in(hostile, run_cli, install_plug_in, tmp_path):
    install_plug_in("open('ran', 'w').close()\ndef make(path): pass", loud="make")
    (tmp_path / "encode.toml").write_text('source_kind = "loud"\n')
    code, _, errors = run_cli("encode", "images", hostile, "--config", tmp_path / "encode.toml")
    assert code == 2
    assert "source_kind 'loud' is a plug-in, which no file can start: remove it, and pass --source-kind on" in errors
    (tmp_path / "sweep.toml").write_text('[grid]\nseed = [1]\n[sample]\n[evaluate]\nsource_kind = "loud"\n')
    code, _, errors = run_cli("ablate", tmp_path / "sweep.toml", hostile, "--out", tmp_path / "out")
    assert code == 2
    assert "source_kind cannot be set in a sweep: remove it" in errors
    assert not (tmp_path / "ran").exists()


def test_a_plug_in_that_is_named_reads_the_images_again(helpers, run_cli, install_plug_in, tmp_path):
    install_plug_in(
        "from repa_pipe.sources.image_folder import FolderSource\ndef make(path): return FolderSource(path)",
        tree="make",
    )
    from PIL import Image

    for i in range(3):
        (tmp_path / "images").mkdir(exist_ok=True)
        Image.new("RGB", (40, 40), (i, i, i)).save(tmp_path / f"images/{i:04d}.png")
    source = {"kind": "tree", "path": str(tmp_path / "images")}
    manifest = dataclasses.replace(helpers.manifest_of(3, 16), source=source)
    samples = helpers.samples_of(3)
    sizes = [(tmp_path / f"images/{i:04d}.png").stat().st_size for i in range(3)]
    create_store(tmp_path / "store", manifest, samples.set_column(2, "num_bytes", [sizes]))
    helpers.write_group(tmp_path / "store", manifest, helpers.LATENTS)
    words = ["store", "export", "--store", tmp_path / "store", "--out", tmp_path / "out"]
    assert run_cli(*words)[0] == 2
    code, _, errors = run_cli(*words, "--source-kind", "tree")
    assert code == 0, errors
    assert len(json.loads((tmp_path / "out/images/dataset.json").read_text())["labels"]) == 3
