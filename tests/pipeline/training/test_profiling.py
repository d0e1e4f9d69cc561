"""Traces of training steps."""

import gzip
import json
from pathlib import Path

import pytest

from repa_pipe.config import TrainConfig
from repa_pipe.errors import ConfigError
from repa_pipe.pipeline import train
from repa_pipe.pipeline.artifacts.run_folder import RunFolder


def events_of(result, first, last):
    path = RunFolder(Path(result.run)).profile(first, last)
    return [event["name"] for event in json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]]


@pytest.mark.slow
def test_the_trace_shows_the_steps_and_their_wait_for_data_and_changes_no_weight(
    config_of, weights_of, assert_same_weights
):
    plain = train.run(config_of(exp_name="plain"))
    traced = train.run(config_of(profile_steps="2:4"))
    assert_same_weights(weights_of(plain), weights_of(traced))
    names = events_of(traced, 2, 4)
    assert names.count("wait for data") == 2
    assert any(name.startswith("Optimizer.step") for name in names)
    assert "aten::addmm" in names


def test_a_run_that_ends_within_the_range_writes_the_steps_that_it_took(config_of):
    assert events_of(train.run(config_of(profile_steps="5:9")), 5, 9).count("wait for data") == 1


def test_a_run_resumed_after_the_range_says_so(config_of, caplog):
    train.run(config_of(max_train_steps=3))
    result = train.run(config_of(profile_steps="1:2"))
    assert "steps 1:2 of --profile-steps are not traced" in caplog.text
    assert not RunFolder(Path(result.run)).profile(1, 2).exists()


@pytest.mark.parametrize("text", ["7", "5:5", "6:5", "a:b", "-1:4", "1:2:3", ""])
def test_text_that_is_no_range_is_refused(text):
    with pytest.raises(ConfigError, match="expected FIRST:LAST"):
        TrainConfig(store="s", profile_steps=text)
