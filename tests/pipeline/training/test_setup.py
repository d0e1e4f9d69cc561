"""Training on a part of a store: --classes and --indices."""

from pathlib import Path

import numpy as np
import pytest

from repa_pipe import cli
from repa_pipe.config import TrainConfig
from repa_pipe.errors import CheckpointError, ConfigError
from repa_pipe.pipeline import train
from repa_pipe.pipeline.artifacts.checkpoints import load_checkpoint, load_model
from repa_pipe.pipeline.runtime.distributed import DistributedContext
from repa_pipe.pipeline.training.setup import open_dataset, resolve, training_rows
from repa_pipe.stores import open_store, order
from repa_pipe.stores.selection import digest_of_rows


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "indices.txt"
    path.write_text("\n".join(map(str, range(30))))
    return path


def dataset_of(config):
    store = open_store(config.store)
    return open_dataset(resolve(config, store), store, DistributedContext(0, 1))


def test_batches_hold_only_the_selected_samples_with_the_labels_of_the_store(config_of, file):
    dataset = dataset_of(config_of(classes=("owl", "0"), indices=str(file)))
    expected = [i for i in range(30) if i % 3 != 1]
    assert dataset.indices.tolist() == expected
    batch = dataset[0]
    assert batch.labels.tolist() == (batch.indices % 3).tolist()
    assert set(np.concatenate([batch.labels for batch in dataset]).tolist()) == {0, 2}


def test_without_a_selection_all_samples_are_used(config_of):
    with open_store(config_of().store) as store:
        assert np.asarray(training_rows(config_of(), store)).tolist() == list(range(50))
    assert dataset_of(config_of()).indices.tolist() == list(range(50))


def test_the_model_keeps_the_classes_of_the_store_and_the_checkpoint_records_the_samples(config_of, file):
    result = train.run(config_of(classes=("dog",), indices=str(file), max_train_steps=1))
    trained = load_model(Path(result.checkpoint), ema=True)
    assert trained.model.config.num_classes == 3
    assert trained.store.class_names == ("cat", "dog", "owl")
    assert (trained.config.classes, trained.config.indices) == (("dog",), str(file))
    assert trained.store.samples == digest_of_rows(np.arange(1, 30, 3))
    whole = train.run(config_of(exp_name="whole", max_train_steps=1))
    assert load_checkpoint(Path(whole.checkpoint))["store"]["samples"] is None


def test_a_selection_changes_the_weights(config_of, weights_of):
    whole = weights_of(train.run(config_of(exp_name="whole", max_train_steps=1)))
    part = weights_of(train.run(config_of(exp_name="part", classes=("dog",), max_train_steps=1)))
    name = "model.final_layer.linear.weight"
    assert not np.array_equal(whole[name], part[name])


def test_a_run_resumes_with_the_same_samples(config_of, file, weights_of, assert_same_weights):
    options = {"indices": str(file), "classes": ("cat", "dog")}
    whole = train.run(config_of(exp_name="whole", **options))
    train.run(config_of(max_train_steps=3, **options))
    np.save(file.with_suffix(".npy"), np.arange(30))
    file.write_text("\n".join(map(str, reversed(range(30)))))  # the same samples, in another order
    assert_same_weights(weights_of(whole), weights_of(train.run(config_of(**options))))


@pytest.mark.slow
@pytest.mark.parametrize("first", ["argsort", "permutation"])
def test_a_run_resumes_in_the_order_with_which_it_began(config_of, weights_of, assert_same_weights, monkeypatch, first):
    monkeypatch.setattr(order, "MANY", 100 if first == "argsort" else 50)
    whole = train.run(config_of(exp_name="whole", val_fraction=0.2, batch_size=4))
    began = train.run(config_of(max_train_steps=3, val_fraction=0.2, batch_size=4))
    recorded = load_checkpoint(Path(began.checkpoint))["store"]
    assert recorded.get("order", "argsort") == first
    assert ("order" in recorded) == (first == "permutation")  # files of small stores stay as they were
    monkeypatch.setattr(order, "MANY", 50 if first == "argsort" else 100)
    other = train.run(config_of(exp_name="other", val_fraction=0.2, batch_size=4))
    resumed = weights_of(train.run(config_of(val_fraction=0.2, batch_size=4)))
    assert_same_weights(weights_of(whole), resumed)
    name = "model.final_layer.linear.weight"
    assert not np.array_equal(weights_of(other)[name], resumed[name])


def test_a_run_is_not_resumed_with_other_samples(config_of, file):
    train.run(config_of(indices=str(file), max_train_steps=3))
    file.write_text(file.read_text() + "\n30")
    with pytest.raises(CheckpointError, match=r"on other samples than .* now select \(digest: recorded \w{12}, found"):
        train.run(config_of(indices=str(file)))
    with pytest.raises(ConfigError, match=r"--classes: recorded \(\), requested \('dog',\)"):
        train.run(config_of(indices=str(file), classes=("dog",)))


@pytest.mark.parametrize(
    ("options", "content", "message"),
    [
        ({"classes": ("doge",)}, "0", r"--classes doge --indices \S+: there is no class 'doge': .* such as dog"),
        ({"classes": ("cat",)}, "1", r"--classes cat --indices \S+: no sample of \S+ is left"),
        ({}, "50", r"--indices \S+: indices must be in \[-50, 50\), found 50 to 50"),
        ({}, "7 7", r"--indices \S+: sample 7 is listed more than once"),
        ({}, "first", r"--indices \S+: \S+ cannot be read as sample indices"),
    ],
)
def test_selections_that_cannot_work_are_refused(config_of, file, options, content, message):
    file.write_text(content)
    with pytest.raises(ConfigError, match=message):
        dataset_of(config_of(indices=str(file), **options))


def test_a_sample_that_does_not_exist_is_one_line_on_the_command_line(config_of, file, monkeypatch, capsys):
    file.write_text("50")
    monkeypatch.setattr("sys.argv", config_of(indices=str(file)).command().split())
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 2
    assert capsys.readouterr().err == f"error: --indices {file}: indices must be in [-50, 50), found 50 to 50\n"


def test_the_flags_become_fields_of_the_config(config_of):
    config = config_of(classes=("cat", "owl"), indices="part.npy")
    words = cli.cli.commands["train"].make_context("train", config.flags()).params
    assert (words["classes"], words["indices"]) == (("cat", "owl"), "part.npy")
    assert {"classes", "indices"} <= set(TrainConfig.result_fields())
    with pytest.raises(ConfigError, match=r"--classes is .*only once"):
        config_of(classes=("cat", "cat"))
