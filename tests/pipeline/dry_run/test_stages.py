"""`--dry-run` of every command: what it states, that it writes nothing, and that `--config` takes its output back."""

import tomllib
from pathlib import Path

import numpy as np
import pytest

from repa_pipe.pipeline import train
from repa_pipe.pipeline.artifacts.run_folder import RunFolder
from repa_pipe.sources.demo_images import make_crops

SWEEP = """
[train]
model = "SiT-T/2"
encoder_depth = 2
batch_size = 8
max_train_steps = 3
[grid]
seed = [0, 1]
"""


@pytest.fixture
def dry_run(run_cli, tmp_path):
    """Run a command with --dry-run twice, the second time with its own output as --config; return the comments."""

    def run(*words):
        before = files_of(tmp_path)
        code, out, errors = run_cli(*words, "--dry-run")
        assert (code, errors) == (0, "")
        assert files_of(tmp_path) == before
        settings = tmp_path / "settings.toml"
        settings.write_text(out)
        command = [word for word in words[:1] if not word.startswith("-")]
        assert run_cli(*command, "--config", settings, "--dry-run") == (0, out, "")
        settings.unlink()
        comments = [line.removeprefix("# ") for line in out.splitlines() if line.startswith("#")]
        assert comments.pop(0) == "dry run: nothing was written"
        return comments, tomllib.loads(out)

    return run


def files_of(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_train_states_steps_bytes_and_checkpoints(dry_run, config_of):
    config = config_of(num_classes=7)
    comments, settings = dry_run(*config.command().split()[1:])
    assert comments[:2] == [
        f"reads:  {config.store}: latents/tiny, features/enc, 50 samples",
        "reads:  6 steps of 8 samples, 1.0 epochs, 2.9 KB per sample, 137 KB in total",
    ]
    assert comments[2].startswith(f"writes: {config.output_dir}/run: a model of ")
    assert (settings["vae"], settings["enc_type"], settings["num_classes"]) == ("tiny", ["enc"], 7)
    part, _ = dry_run(*config_of(classes=("dog",)).command().split()[1:])
    assert part[0] == f"reads:  {config.store}: latents/tiny, features/enc, 17 samples"


def test_a_started_run_has_fewer_steps_left_and_other_settings_are_refused(dry_run, config_of, run_cli):
    train.run(config_of(max_train_steps=4))
    comments, _ = dry_run(*config_of().command().split()[1:])
    assert comments[0] == "reads:  checkpoint of step 4"
    assert comments[2].startswith("reads:  2 steps of 8 samples")
    assert dry_run(*config_of(max_train_steps=4).command().split()[1:])[0][-1] == "writes: nothing"
    code, _, errors = run_cli(*config_of(seed=5).command().split()[1:], "--dry-run")
    assert code == 2
    assert "--seed: recorded 0, requested 5" in errors


def test_the_commands_that_read_a_run(dry_run, config_of, reference):
    run = train.run(config_of()).run
    comments, _ = dry_run("sample", run, "--num-fid-samples", "3", "--vae", "tiny-kl-f8")
    assert comments == [
        f"reads:  {run}/checkpoints/0000006.pt, step 6",
        "reads:  VAE tiny-kl-f8",
        f"writes: {run}/samples/0000006-ode50-cfg1.5-tiny-kl-f8-seed0-3.npz: 3 images of 64 pixels, 36.9 KB",
    ]
    comments, settings = dry_run("evaluate-checkpoints", run, "--reference", reference, "--detector", "enc")
    assert comments[0] == f"reads:  {run}: 2 checkpoints"
    assert settings["checkpoint"] == run
    comments, settings = dry_run("probe", run)
    assert settings["encoder"] == ["enc"]
    assert [Path(line.split()[1]).name for line in comments[2:]] == ["probe.json", "probe.parquet", "probe.html"]


def test_evaluate_of_a_run_takes_the_images_of_its_last_checkpoint(dry_run, config_of, reference, run_cli):
    run = RunFolder(Path(train.run(config_of()).run))
    words = ("evaluate", str(run.path), "--reference", reference, "--detector", "efficientnet-lite0")
    code, _, errors = run_cli(*words, "--dry-run")
    assert code == 2
    assert f"run 'repa-pipe sample --checkpoint {run.path}'" in errors
    run.samples.mkdir()
    for name in ("0000003-ode", "0000006-ode"):
        np.savez(run.samples / f"{name}.npz", np.zeros((2, 64, 64, 3), np.uint8))
        (run.samples / f"{name}.json").write_text("{}")
    comments, settings = dry_run(*words)
    assert settings["samples"] == f"{run.samples}/0000006-ode.npz"
    assert comments[-1] == f"writes: {run.samples}/0000006-ode.metrics.json"
    (run.samples / "0000006-sde.json").write_text("{}")
    np.savez(run.samples / "0000006-sde.npz", np.zeros((2, 64, 64, 3), np.uint8))
    code, _, errors = run_cli(*words, "--dry-run")
    assert code == 2
    assert "has 2 sets of images of its last checkpoint: specify one of" in errors


def test_encode_counts_the_images_that_are_left(dry_run, tmp_path, run_cli):
    count = make_crops(tmp_path / "images")
    words = ("encode", str(tmp_path / "images"), str(tmp_path / "store"), "--vae", "tiny-kl-f8")
    comments, _ = dry_run(*words)
    assert comments == [
        f"reads:  {count} of {count} images in {tmp_path}/images",
        f"writes: {tmp_path}/store: latents/tiny-kl-f8, 32.8 KB per image, 10.5 MB in total",
    ]


def test_the_other_commands(dry_run, make_store, tmp_path):
    path, _ = make_store()
    assert dry_run("plan")[0] == ["reads:  nothing", "writes: nothing"]
    assert dry_run("rank", str(path))[0] == [
        f"reads:  {path}: 50 samples of enc",
        "writes: rank.json",
        "writes: rank.html",
    ]
    assert dry_run("nearest", "a.npz", str(path))[0] == [
        "reads:  a.npz",
        f"reads:  {path}: 50 samples of enc",
        "writes: nearest.json",
        "writes: nearest.html",
    ]
    (tmp_path / "sweep.toml").write_text(SWEEP)
    comments, _ = dry_run("ablate", str(tmp_path / "sweep.toml"), str(path), "--out", str(tmp_path / "out"))
    assert [line.split(":")[0] for line in comments] == ["reads", "runs", "runs", "writes"]
    assert "--seed 1" in comments[2]
    assert comments[3].startswith(f"writes: {tmp_path}/out: 2 runs, ")
