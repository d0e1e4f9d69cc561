"""A store is the same store by every path: it is neither created nor encoded a second time, and runs continue."""

import os
from pathlib import Path

import pytest

from repa_pipe.config import EncodeConfig, RankConfig
from repa_pipe.pipeline import encode, rank, train

SPELLINGS = {
    "trailing slash": lambda store: f"{store}/",
    "doubled slash": lambda store: str(store).replace("/store", "//store"),
    "dot": lambda store: f"{store.parent}/./store",
    "relative": os.path.relpath,
    "home": lambda store: f"~/{store.name}",
    "symbolic link": lambda store: str(store.parent / "link"),
}


@pytest.fixture
def spelled(tmp_path, monkeypatch):
    """Return another path of a store in the temporary folder."""
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "link").symlink_to("store")
    return lambda store, name: SPELLINGS[name](Path(store))


def contents(folder):
    return {path: path.stat().st_mtime_ns for path in sorted(Path(folder).rglob("*")) if path.is_file()}


@pytest.mark.parametrize("name", SPELLINGS)
def test_encoding_into_a_store_by_another_path_does_nothing(reference, tmp_path, spelled, name):
    options = {"source": reference, "vae": "tiny-kl-f8", "device": "cpu"}
    encode.run(EncodeConfig(store=str(tmp_path / "store"), **options))
    before, folders = contents(tmp_path), sorted(os.listdir(tmp_path))
    options["source"] += "/"
    assert encode.run(EncodeConfig(store=spelled(tmp_path / "store", name), **options)).encoded == 0
    assert (contents(tmp_path), sorted(os.listdir(tmp_path))) == (before, folders)


@pytest.mark.parametrize(
    ("name", "exists"), [*((name, False) for name in SPELLINGS), ("relative", True), ("symbolic link", True)]
)
def test_encoding_starts_by_every_path(reference, tmp_path, spelled, name, exists):
    if exists:
        (tmp_path / "store").mkdir()
    store = spelled(tmp_path / "store", name)
    result = encode.run(EncodeConfig(source=reference, store=store, vae="tiny-kl-f8", device="cpu"))
    assert (result.encoded, (tmp_path / "store" / "zarr.json").exists()) == (8, True)


@pytest.mark.parametrize("name", SPELLINGS)
def test_a_finished_run_and_a_ranking_are_recognized_by_every_path(config_of, tmp_path, spelled, caplog, name):
    caplog.set_level("INFO")
    (tmp_path / "initial.txt").write_text("\n".join(map(str, range(40))))
    config = config_of(max_train_steps=1, exp_name=None, indices=str(tmp_path / "initial.txt"))
    ranked = RankConfig(store=config.store, out=str(tmp_path / "rank.json"))
    first = train.run(config)
    rank.run(ranked)
    before = contents(tmp_path)
    store = spelled(config.store, name)
    again = {"store": store, "output_dir": f"{config.output_dir}/", "indices": os.path.relpath(config.indices)}
    assert train.run(config_of(max_train_steps=1, exp_name=None, **again)).run == first.run
    rank.run(RankConfig(store=store, out=ranked.out))
    assert contents(tmp_path) == before
    assert "already has its 1 steps" in caplog.text
    assert "rank.json already exists with the same settings" in caplog.text


@pytest.mark.parametrize("form", [["--store=~/store/"], ["--store", "~/store"], ["~/store/"]])
def test_the_command_line_expands_the_home_folder_in_every_form(config_of, run_cli, spelled, form):
    config_of()
    code, out, errors = run_cli("store", "info", *form)
    assert (code, "latents/tiny" in out) == (0, True), errors


def test_reports_are_written_to_the_home_folder(config_of, tmp_path, run_cli, spelled):
    run = Path(train.run(config_of(max_train_steps=1)).run)
    code, _, errors = run_cli("report", f"--run=~/{run.relative_to(tmp_path)}/", "--out=~/page one.html")
    assert code == 0, errors
    assert (tmp_path / "page one.html").exists()
