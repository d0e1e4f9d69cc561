"""Training from a store on the Hugging Face Hub, read in place."""

import dataclasses

import pytest
import torch

from repa_pipe.config import AblateConfig
from repa_pipe.errors import ConfigError
from repa_pipe.pipeline import ablate, train
from repa_pipe.pipeline.artifacts.run_folder import RunFolder
from repa_pipe.pipeline.store_tools.hub_push import PushOptions, push

TARGET = "hf://datasets/alice/small"


@pytest.mark.slow
def test_a_run_keeps_the_commit_that_it_began_with_and_trains_as_from_the_folder(
    hub, config_of, weights_of, tmp_path, caplog
):
    local = config_of(exp_name="local")
    push(local.store, TARGET, PushOptions(license="mit"))
    in_place = dataclasses.replace(local, exp_name="hub", store=TARGET, store_cache=str(tmp_path / "cache"))
    repository = hub.repositories["dataset", "alice/small"]
    began = f"{TARGET}@{repository.branches['main']}"
    started = train.run(dataclasses.replace(in_place, max_train_steps=3))
    assert RunFolder(tmp_path / started.run).read_config().store == began
    repository.commit("main", {}, "all files deleted")
    resumed = train.run(in_place)
    assert resumed.step == 6
    assert RunFolder(tmp_path / resumed.run).read_config().store == began
    assert f"continues with the commit that it began with, {began}" in caplog.text
    expected, found = weights_of(train.run(local)), weights_of(resumed)
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_a_sweep_needs_one_commit(hub, make_store, tmp_path):
    push(str(make_store()[0]), TARGET, PushOptions(license="mit"))
    sha = hub.repositories["dataset", "alice/small"].branches["main"]
    with pytest.raises(ConfigError, match=f"--store: .* expected one commit, now {TARGET}@{sha}"):
        ablate.run(AblateConfig(sweep="sweep.toml", store=TARGET, out=str(tmp_path / "out")))
