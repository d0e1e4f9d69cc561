"""Metrics of every checkpoint of a real run, with a fast detector: the mean color."""

import json
import os
import re
import shutil
import sys
from pathlib import Path

import pytest
from PIL import Image

from repa_pipe import cli
from repa_pipe.config import EvaluateConfig, SampleConfig
from repa_pipe.errors import CheckpointError, ConfigError
from repa_pipe.metrics import Features
from repa_pipe.pipeline import evaluate, evaluate_checkpoints, report, sample
from repa_pipe.pipeline.artifacts.checkpoints import load_checkpoint, save_checkpoint
from repa_pipe.pipeline.artifacts.digests import file_digest
from repa_pipe.pipeline.artifacts.run_folder import RunFolder
from repa_pipe.pipeline.evaluation import comparison


class MeanColors:
    name, width = "mean-colors", 3
    rule, library = "mean over pixels", "none"
    fingerprint = {"name": name}  # noqa: RUF012

    def features(self, images):
        return Features(images.float().mean((2, 3)), None, None)


@pytest.fixture
def run(trained_runs, tmp_path, monkeypatch):
    """A run of 4 steps with checkpoints at 2 and 4."""
    monkeypatch.setattr(comparison, "load_detector", lambda *_: MeanColors())
    options = {"learning_rate": 1e-2, "ema_decay": 0.5, "batch_size": 4, "log_steps": 1}
    trained = trained_runs(max_train_steps=4, checkpointing_steps=2, **options)
    return str(shutil.copytree(trained, tmp_path / "run"))


def configs(run, reference):
    sampling = SampleConfig(checkpoint=run, num_fid_samples=6, per_proc_batch_size=3, num_steps=2, device="cpu")
    return sampling, EvaluateConfig(samples=run, reference=reference, device="cpu")


def test_every_checkpoint_is_sampled_and_evaluated_once(run, reference, monkeypatch, caplog):
    result = evaluate_checkpoints.run(*configs(run, reference))
    assert [row["step"] for row in result.rows] == [2, 4]
    values = [row["metrics"]["fid"] for row in result.rows]
    assert values[0] != values[1]
    written = json.loads(Path(result.json).read_text())
    assert written["rows"] == result.rows
    assert written["sampling"]["num_steps"] == 2
    assert written["reference"] == result.reference == "8 reference images"
    assert "images compared with 8 reference images" in caplog.text
    page = Path(result.page).read_text()
    assert "metrics over steps" in page
    assert not re.search(r"<(script|link|img)[^>]*(src|href)=", page)  # self-contained

    monkeypatch.setattr(sample, "_generate", lambda *_: 1 / 0)
    monkeypatch.setattr(evaluate, "run", lambda *_: 1 / 0)
    assert evaluate_checkpoints.run(*configs(run, reference)).rows == result.rows


def test_metrics_of_two_library_versions_are_not_joined_in_one_curve(run, reference, monkeypatch):
    result = evaluate_checkpoints.run(*configs(run, reference))
    second = Path(result.rows[1]["samples"]).with_suffix(".metrics.json")
    monkeypatch.setattr(MeanColors, "library", "none 2")
    second.unlink()
    with pytest.raises(ConfigError, match=rf"expected none, as for .*, found none 2; delete {second} or theirs"):
        evaluate_checkpoints.run(*configs(run, reference))
    Path(result.rows[0]["samples"]).with_suffix(".metrics.json").unlink()
    assert evaluate_checkpoints.run(*configs(run, reference)).rows == result.rows


def test_an_interrupted_evaluation_resumes_with_the_missing_checkpoints(run, reference, monkeypatch):
    original, evaluated = evaluate.run, []

    def stop_at_the_second(config):
        evaluated.append(Path(config.samples).name[:7])
        if len(evaluated) == 2:
            raise KeyboardInterrupt
        return original(config)

    monkeypatch.setattr(evaluate, "run", stop_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        evaluate_checkpoints.run(*configs(run, reference))
    evaluate_checkpoints.run(*configs(run, reference))
    assert evaluated == ["0000002", "0000004", "0000004"]


@pytest.mark.slow
def test_metrics_are_computed_again_for_another_reference(run, reference, tmp_path):
    sampling, evaluation = configs(run, reference)
    first = evaluate_checkpoints.run(sampling, evaluation).rows
    other = tmp_path / "black" / "class"
    other.mkdir(parents=True)
    for number in range(4):
        Image.new("RGB", (64, 64), (number, 0, 0)).save(other / f"{number}.png")
    second = evaluate_checkpoints.run(
        sampling, EvaluateConfig(samples=run, reference=str(other.parent), device="cpu")
    ).rows
    assert [row["num_reference"] for row in first + second] == [8, 8, 4, 4]
    assert first[0]["metrics"] != second[0]["metrics"]


def rewrite(checkpoint, change):
    """Write a checkpoint with other EMA weights; size and modification time stay."""
    stat, values = checkpoint.stat(), load_checkpoint(checkpoint)
    ema = {name: value + change for name, value in values["ema"].items()}
    save_checkpoint(checkpoint, values | {"ema": ema})
    os.utime(checkpoint, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert checkpoint.stat().st_size == stat.st_size


@pytest.mark.slow
def test_figures_belong_to_the_content_of_a_checkpoint(run, reference, monkeypatch):
    checkpoint = RunFolder(Path(run)).checkpoint(2)
    generated, generate = [], sample._generate

    def count(config, checkpoint, files):
        generated.append(checkpoint.name)
        return generate(config, checkpoint, files)

    monkeypatch.setattr(sample, "_generate", count)
    first = evaluate_checkpoints.run(*configs(run, reference)).rows
    os.utime(checkpoint, (1, 1))
    assert evaluate_checkpoints.run(*configs(run, reference)).rows == first
    assert generated == ["0000002.pt", "0000004.pt"]
    rewrite(checkpoint, 0.01)
    second = evaluate_checkpoints.run(*configs(run, reference)).rows
    assert generated[2:] == ["0000002.pt"]
    assert second[0]["checkpoint"] == file_digest(checkpoint) != first[0]["checkpoint"]
    assert second[0]["metrics"] != first[0]["metrics"]
    assert second[1] == first[1]


def test_a_damaged_checkpoint_is_left_out_of_the_curve(run, reference, caplog):
    first, last = RunFolder(Path(run)).checkpoints()
    os.truncate(first, 1000)
    assert [row["step"] for row in evaluate_checkpoints.run(*configs(run, reference)).rows] == [4]
    assert "0000002.pt cannot be read as a checkpoint" in caplog.text
    os.truncate(last, 1000)
    shutil.rmtree(Path(run) / "samples")
    with pytest.raises(CheckpointError, match=r"all checkpoints in .* are damaged: restore them"):
        evaluate_checkpoints.run(*configs(run, reference))


@pytest.mark.slow
def test_a_damaged_curve_is_set_aside_and_written_again(run, reference, caplog):
    result = evaluate_checkpoints.run(*configs(run, reference))
    Path(result.json).write_text("{")
    assert evaluate_checkpoints.run(*configs(run, reference)).rows == result.rows
    assert json.loads(Path(result.json).read_text())["rows"] == result.rows
    assert Path(f"{result.json}.damaged-1").read_text() == "{"
    assert "the curve is written again" in caplog.text


@pytest.mark.slow
def test_the_report_shows_the_curve(run, reference, tmp_path):
    page = tmp_path / "report.html"
    report.run([run], str(page))
    assert "distances vs. steps and time" not in page.read_text()
    evaluate_checkpoints.run(*configs(run, reference))
    report.run([run], str(page))
    text = page.read_text()
    assert "distances vs. steps and time" in text
    assert "FID (inception) of 6 images vs. training steps" in text
    assert "FID (inception) of 6 images vs. hours of training" in text
    (Path(run) / "machine.json").write_text('{"gpus": 8}')
    report.run([run], str(page))
    assert "FID (inception) of 6 images vs. GPU-hours of training" in page.read_text()


@pytest.mark.slow
def test_the_command_prints_the_curve_in_both_spellings(run, reference, monkeypatch, capsys):
    def call(*words):
        monkeypatch.setattr(sys, "argv", ["repa-pipe", *words])
        code = 0
        try:
            cli.main()
        except SystemExit as stop:
            code = stop.code or 0
        return code, *capsys.readouterr()

    options = ["--reference", reference, "--device", "cpu"]
    sampling = ["--num-fid-samples", "6", "--num-steps", "2"]
    code, out, _ = call("evaluate-checkpoints", run, *options, *sampling)
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()] == ["step", "2", "4", "saved"]
    assert call("evaluate", run, "--every-checkpoint", *options, *sampling)[:2] == (0, out)
    for words in (["--every-checkpoint"], [], [run, "--samples", "a.npz", "--every-checkpoint"]):
        assert call("evaluate", *words, *options)[0] == 2
    code, _, errors = call("evaluate", "--samples", "a.npz", *options, *sampling)
    assert code == 2
    assert "--num-fid-samples is an option of 'repa-pipe evaluate-checkpoints'" in errors


def test_the_error_names_a_folder_without_checkpoints(tmp_path):
    with pytest.raises(CheckpointError, match="no checkpoint in"):
        evaluate_checkpoints.run(*configs(str(tmp_path), "reference"))
