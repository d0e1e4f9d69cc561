"""Learning rate schedules: their values, and runs that use them."""

import math
from pathlib import Path

import pytest
import torch

from repa_pipe.config import TrainConfig
from repa_pipe.errors import ConfigError
from repa_pipe.pipeline import train
from repa_pipe.pipeline.artifacts.checkpoints import load_checkpoint
from repa_pipe.pipeline.artifacts.metrics_log import read_metrics
from repa_pipe.pipeline.artifacts.run_folder import RunFolder
from repa_pipe.pipeline.training.schedule import learning_rate


def rates(steps, **options):
    config = TrainConfig(store="s", learning_rate=2.0, **options)
    return [learning_rate(config, step) for step in steps]


def test_the_default_is_exactly_the_learning_rate():
    assert rates([0, 1, 10**6]) == [2.0, 2.0, 2.0]


def test_the_warmup_is_linear_from_zero():
    assert rates(range(6), warmup_steps=4) == [0.0, 0.5, 1.0, 1.5, 2.0, 2.0]


def test_the_rate_is_constant_before_it_decays_to_its_final_value():
    options = {"lr_schedule": "linear", "warmup_steps": 2, "lr_constant_steps": 3, "lr_decay_steps": 9, "lr_final": 1.0}
    assert rates(range(11), **options) == [0.0, 1.0, 2.0, 2.0, 2.0, 2.0, 1.75, 1.5, 1.25, 1.0, 1.0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr_final": 0.5}, "lr-final is 0.5: requires --lr-schedule cosine or linear"),
        ({"lr_constant_steps": 5}, "lr-constant-steps is 5: requires --lr-schedule"),
        ({"lr_schedule": "linear", "lr_final": 3.0}, "must not be above --learning-rate"),
        (
            {"lr_schedule": "linear", "warmup_steps": 2, "lr_constant_steps": 3, "lr_decay_steps": 5},
            r"must be above --warmup-steps and --lr-constant-steps \(5 in all\)",
        ),
    ],
)
def test_schedules_that_cannot_work_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        rates([0], **options)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("linear", [0.0, 1.0, 2.0, 1.5, 1.0, 0.5, 0.0, 0.0]),
        ("cosine", [0.0, 1.0, 2.0, 1 + math.cos(math.pi / 4), 1.0, 1 + math.cos(3 * math.pi / 4), 0.0, 0.0]),
    ],
)
def test_a_decay_starts_after_the_warmup_and_ends_at_zero(schedule, expected):
    found = rates([0, 1, 2, 3, 4, 5, 6, 9], warmup_steps=2, lr_schedule=schedule, lr_decay_steps=6)
    assert found == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"lr_decay_steps": 5}, "--lr-decay-steps is 5: requires --lr-schedule cosine or linear"),
        (
            {"lr_decay_steps": 5, "lr_schedule": "cosine", "warmup_steps": 5},
            r"must be above --warmup-steps and --lr-constant-steps \(5 in all\)",
        ),
        ({"warmup_steps": -1}, "--warmup-steps is -1: must be 0 or more"),
        ({"lr_schedule": "step"}, "--lr-schedule is 'step': expected one of constant, cosine, linear"),
    ],
)
def test_a_schedule_that_cannot_work_is_refused(options, match):
    with pytest.raises(ConfigError, match=match):
        TrainConfig(store="s", **options)


def test_a_run_follows_its_schedule_and_resumes_bit_identically(config_of, weights_of, assert_same_weights):
    options = {"warmup_steps": 2, "lr_schedule": "cosine", "lr_decay_steps": 6, "log_steps": 1}
    whole = train.run(config_of(exp_name="whole", **options))
    train.run(config_of(max_train_steps=3, **options))
    resumed = train.run(config_of(**options))
    assert_same_weights(weights_of(whole), weights_of(resumed))
    config = RunFolder(Path(whole.run)).read_config()
    logged = [row["learning_rate"] for row in read_metrics(RunFolder(Path(resumed.run)))]
    assert logged == [learning_rate(config, step) for step in range(6)]
    assert load_checkpoint(Path(resumed.checkpoint))["opt"]["param_groups"][0]["lr"] == logged[-1]


def test_the_first_step_of_a_warmup_changes_no_weight(config_of, weights_of):
    weights = weights_of(train.run(config_of(max_train_steps=1, warmup_steps=5)))
    for name, value in weights.items():  # AdamW's first step would change weights by the learning rate, 1e-4
        if name.startswith("model."):
            torch.testing.assert_close(value, weights[f"ema{name[5:]}"], atol=1e-6, rtol=0)


def test_the_end_of_a_decay_is_fixed_when_the_run_is_created(config_of):
    result = train.run(config_of(max_train_steps=3, lr_schedule="linear"))
    assert RunFolder(Path(result.run)).read_config().lr_decay_steps == 3
    with pytest.raises(ConfigError, match="--lr-decay-steps: recorded 3, requested 6"):
        train.run(config_of(max_train_steps=6, lr_schedule="linear"))
    assert train.run(config_of(max_train_steps=6, lr_schedule="linear", lr_decay_steps=3)).step == 6
