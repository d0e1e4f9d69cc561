"""Evaluation while training: which checkpoints, where metrics go, what a stop leaves, and equal weights."""

import threading
from dataclasses import replace
from pathlib import Path

import pytest

from repa_pipe.errors import RepaPipeError
from repa_pipe.pipeline import report, train
from repa_pipe.pipeline.artifacts.metrics_log import read_metrics
from repa_pipe.pipeline.artifacts.run_folder import RunFolder
from repa_pipe.pipeline.training import evaluation
from repa_pipe.pipeline.training.evaluation import OnlineEvaluation

DETECTOR = "efficientnet-lite0"


@pytest.fixture
def config_of(config_of, reference):
    options = {"eval_every": 2, "eval_images": 8, "eval_reference": reference, "eval_detector": (DETECTOR,)}
    return lambda **changes: config_of(**options | changes)


def metrics_of(run):
    return {row["step"]: row.get("eval_fid") for row in read_metrics(RunFolder(Path(run)))}


@pytest.fixture
def evaluated(monkeypatch):
    """The steps that were evaluated: each gets ten times its number as FID."""
    steps = []

    def evaluate(self, step):
        assert self._run.checkpoint(step).exists()
        steps.append(step)
        return {"eval_fid": 10.0 * step}

    monkeypatch.setattr(OnlineEvaluation, "_evaluate", evaluate)
    return steps


def test_metrics_are_in_the_rows_of_their_steps_and_checkpoints_are_kept_until_then(config_of, evaluated):
    run = train.run(config_of(keep_checkpoints=1)).run
    assert metrics_of(run) == {2: 20.0, 4: 40.0, 6: 60.0}
    assert evaluated == [2, 4, 6]


def test_checkpoints_that_were_not_evaluated_are_evaluated_by_the_next_start(config_of, evaluated, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(OnlineEvaluation, "_evaluate", lambda *_: {})  # fails
        run = train.run(config_of(max_train_steps=4)).run
    assert metrics_of(run) == {2: None, 4: None}
    train.run(config_of(max_train_steps=4))  # has all its steps
    assert metrics_of(run) == {2: 20.0, 4: 40.0}
    train.run(config_of())
    assert metrics_of(run) == {2: 20.0, 4: 40.0, 6: 60.0}
    train.run(config_of())
    assert evaluated == [2, 4, 6]


def test_training_does_not_wait_before_its_end(config_of, monkeypatch):
    end, ended = threading.Event(), []

    def evaluate(self, step):
        assert end.wait(60)
        return {"eval_fid": 1.0}

    def finish(waiting, stop):
        ended.append(list(waiting.pending))
        end.set()
        return until_finished(waiting, stop)

    until_finished = evaluation.until_finished
    monkeypatch.setattr(OnlineEvaluation, "_evaluate", evaluate)
    monkeypatch.setattr("repa_pipe.pipeline.training.monitor.until_finished", finish)
    run = train.run(config_of(keep_checkpoints=1, checkpointing_steps=1)).run
    assert ended == [[2, 4, 6]]
    assert metrics_of(run) == {2: 1.0, 4: 1.0, 6: 1.0}
    assert [path.stem for path in RunFolder(Path(run)).checkpoints()] == ["0000002", "0000004", "0000005", "0000006"]


def test_what_cannot_work_is_refused_before_training(config_of, tmp_path):
    for options, message in (
        ({"eval_every": 3}, "expected a multiple of --log-steps 2"),
        ({"eval_detector": ("dinov9",)}, "Detectors are also inception"),
        ({"eval_reference": str(tmp_path / "none")}, "none does not exist"),
    ):
        with pytest.raises(RepaPipeError, match=message):
            train.run(config_of(**options))


@pytest.mark.slow
def test_real_evaluations_change_no_bit_and_are_found_by_the_report(
    config_of, weights_of, assert_same_weights, tmp_path
):
    plain = train.run(config_of(exp_name="plain", max_train_steps=4, eval_every=0))
    online = train.run(config_of(max_train_steps=4, checkpointing_steps=4))
    assert_same_weights(weights_of(plain), weights_of(online))
    rows = read_metrics(RunFolder(Path(online.run)))
    assert all(row[f"eval_fd_{DETECTOR}"] > 0 for row in rows)
    assert {row["step"] for row in rows} == {2, 4}
    page = Path(report.run([online.run], str(tmp_path / "page.html"))).read_text()
    assert f"FD ({DETECTOR}) of 8 images vs. training steps" in page


@pytest.mark.slow
def test_a_command_that_fails_is_a_warning_with_its_reason(config_of, tmp_path, monkeypatch, caplog):
    vae = tmp_path / "no-vae"
    monkeypatch.setattr(
        evaluation, "sampling_of", lambda *args, original=evaluation.sampling_of: replace(original(*args), vae=str(vae))
    )
    assert train.run(config_of(max_train_steps=2)).step == 2
    assert "step 2 was not evaluated (exit code 2: " in caplog.text
    assert "training continues; its next start evaluates this step" in caplog.text
