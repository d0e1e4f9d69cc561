"""The names of the files in a run folder, and which checkpoints are listed and kept."""

import dataclasses
import inspect
from pathlib import Path

import pytest

from repa_pipe.config import TrainConfig
from repa_pipe.errors import CheckpointError, ConfigError
from repa_pipe.pipeline.artifacts.run_folder import RunFolder, run_of


@pytest.fixture
def run(tmp_path):
    folder = RunFolder(tmp_path / "exps" / "name")
    folder.checkpoint_folder.mkdir(parents=True)
    return folder


def add_checkpoints(run, *steps):
    for step in steps:
        run.checkpoint(step).touch()


def test_the_names_of_all_files():
    run = RunFolder(Path("exps/name"))
    properties = [name for name, _ in inspect.getmembers(RunFolder, lambda member: isinstance(member, property))]
    names = {name: str(getattr(run, name)) for name in properties}
    assert names == {
        "name": "name",
        "config_file": "exps/name/train.json",
        "checkpoint_folder": "exps/name/checkpoints",
        "metrics_log": "exps/name/metrics.parquet",
        "metrics_log_copy": "exps/name/metrics.parquet.copy",
        "samples": "exps/name/samples",
        "curves": "exps/name/by-step",
        "probes": "exps/name/probe.json",
        "machine_file": "exps/name/machine.json",
        "record_file": "exps/name/run.json",
        "log": "exps/name/log.txt",
        "evaluation_log": "exps/name/eval.log",
        "aim_id": "exps/name/aim_id",
        "trackers_file": "exps/name/trackers.json",
        "trackio_name": "exps/name/trackio_name",
        "tensorboard": "exps/name/tensorboard",
        "wandb_id": "exps/name/wandb_id",
    }
    assert str(run.checkpoint(50_000)) == "exps/name/checkpoints/0050000.pt"
    assert str(run.nonfinite_checkpoint(50_000)) == "exps/name/checkpoints/nan-0050000.pt"
    assert str(run.nonfinite_report(50_000)) == "exps/name/nan-0050000.json"
    assert str(run.sample_grid(50_000)) == "exps/name/samples/step-0050000.png"


def test_checkpoints_are_listed_by_step(run):
    add_checkpoints(run, 2, 10, 9_999_999, 10_000_000, 1)
    assert [int(path.stem) for path in run.checkpoints()] == [1, 2, 10, 9_999_999, 10_000_000]
    assert run.last_checkpoint() == run.checkpoint(10_000_000)


def test_temporary_and_nonfinite_files_are_not_checkpoints(run):
    add_checkpoints(run, 3)
    run.nonfinite_checkpoint(4).touch()
    for name in ("0000005.pt.tmp-host-1-abc", ".0000006.pt", "0000007.pt.partial", "best.pt", "0000008.json"):
        (run.checkpoint_folder / name).touch()
    assert run.checkpoints() == [run.checkpoint(3)]


def test_a_run_without_checkpoints_is_empty_and_an_error_names_its_folder(run, tmp_path):
    for folder in (run, RunFolder(tmp_path / "nowhere")):
        assert folder.checkpoints() == []
        with pytest.raises(CheckpointError, match=f"no checkpoint in {folder.checkpoint_folder}: .*'repa-pipe train'"):
            folder.last_checkpoint()


@pytest.mark.parametrize(
    ("keep", "milestone_steps", "left"),
    [
        (0, 0, [1, 2, 3, 4, 5, 6]),
        (0, 4, [1, 2, 3, 4, 5, 6]),
        (1, 0, [5, 6]),
        (2, 0, [4, 5, 6]),
        (1, 2, [2, 4, 5, 6]),
        (1, 4, [4, 5, 6]),
        (9, 0, [1, 2, 3, 4, 5, 6]),
    ],
)
def test_the_last_checkpoints_and_milestones_are_kept(run, keep, milestone_steps, left):
    add_checkpoints(run, 1, 2, 3, 4, 5, 6)
    run.nonfinite_checkpoint(1).touch()
    run.drop_old_checkpoints(keep, milestone_steps)
    assert [int(path.stem) for path in run.checkpoints()] == left
    assert run.nonfinite_checkpoint(1).exists()


def test_settings_are_read_as_they_were_written(run):
    config = TrainConfig(store="s", enc_type=("a", "b"), spatial_norm=0.6, flip=True)
    run.write_config(config)
    assert run.read_config() == config
    run.config_file.write_text('{"store": "s", "new_setting": 1}')
    with pytest.raises(ConfigError, match=r"train\.json: unknown key 'new_setting'"):
        run.read_config()
    run.config_file.unlink()
    with pytest.raises(ConfigError, match=r"train\.json cannot be read"):
        run.read_config()


def test_a_run_with_checkpoints_is_only_resumed_with_the_same_settings(run):
    config = TrainConfig(store="s")
    run.write_config(config)
    other = dataclasses.replace(config, seed=1, proj_coeff=1.0)
    run.require_same_settings(other)  # nothing has been trained yet
    add_checkpoints(run, 1)
    run.require_same_settings(dataclasses.replace(config, store="moved", max_train_steps=7, log_steps=1))
    with pytest.raises(ConfigError) as raised:
        run.require_same_settings(other)
    assert "(--proj-coeff: recorded 0.5, requested 1.0; --seed: recorded 0, requested 1)" in str(raised.value)
    assert "another --exp-name" in str(raised.value)


def test_the_run_of_a_checkpoint_is_found_from_its_path(run):
    assert run_of(run.checkpoint(3)) == run
    assert run_of(Path("downloads/0400000.pt")) is None


@pytest.mark.parametrize(
    "name", ["..", ".", " ", "../run", "a/b", "/tmp/run", "a\\b", "a\nb", "a\0b", "\x1b[2J", "x" * 256]
)
def test_a_run_has_the_name_of_one_folder(name, run_cli, make_store, tmp_path):
    with pytest.raises(
        ConfigError, match=r"^--exp-name is .*: expected (the name of one folder, without separators|text without NUL)"
    ):
        RunFolder.of(TrainConfig(store="store", output_dir="exps", exp_name=name))
    path, _ = make_store()
    before = sorted(tmp_path.rglob("*"))
    code, _, errors = run_cli(
        "train", path, "--output-dir", tmp_path / "deep/exps", "--exp-name", name, "--device", "cpu"
    )
    assert code == 2
    assert "--exp-name is " in errors
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("name", ["run", "sit-b-2-dinov2-vit-b-0.5", "enc_type=mae-vit-l,seed=1", "..a", "äö 模型"])
def test_other_names_of_runs_are_accepted(name):
    assert RunFolder.of(TrainConfig(store="store", output_dir="exps", exp_name=name)).name == name
