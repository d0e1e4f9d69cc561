"""The number of classes of a model covers the labels of its store, its initial weights, and the images it generates."""

from pathlib import Path

import numpy as np
import pytest
import torch

from repa_pipe.errors import CheckpointError, ConfigError, StoreError
from repa_pipe.pipeline import train
from repa_pipe.pipeline.artifacts.checkpoints import load_checkpoint, load_model
from repa_pipe.stores.metadata_writer import record_digests


def set_label(config, value):
    """Change the label of sample 17, and record the checksum of the labels as they are then."""
    (path,) = (Path(config.store) / "label" / "c").iterdir()
    labels = np.fromfile(path, "<i4")
    labels[17] = value
    labels.tofile(path)
    record_digests(Path(config.store))


@pytest.mark.parametrize("number", [1, 2])
def test_fewer_classes_than_the_labels_need_are_refused(config_of, run_cli, number):
    config = config_of(num_classes=number)
    code, out, errors = run_cli("train", *config.flags())
    assert (code, out) == (2, "")
    assert errors.count("\n") == 1
    expected = f"--num-classes is {number}: the largest label in {config.store} is 2, so at least 3 classes are needed"
    assert expected in errors
    assert not Path(config.output_dir).exists()


def test_the_labels_that_count_are_those_of_the_selected_samples(config_of):
    assert train.run(config_of(num_classes=2, classes=("cat", "dog"), max_train_steps=1)).step == 1


@pytest.mark.parametrize("label", [-1, 7])
def test_labels_that_are_no_classes_of_the_store_are_refused(config_of, label):
    set_label(config_of(), label)
    with pytest.raises(StoreError, match=rf"has labels {min(label, 0)} to {max(label, 2)}, expected 0 to 2"):
        train.run(config_of())


def test_more_classes_than_the_labels_need_are_fine(config_of):
    trained = load_model(Path(train.run(config_of(num_classes=10, max_train_steps=1)).checkpoint), ema=True)
    assert trained.model.config.num_classes == 10
    with pytest.raises(ConfigError, match="--num-classes: recorded 10, requested 3"):
        train.run(config_of())


@pytest.mark.parametrize("kept", [("ema", "sit"), ("ema",)], ids=["repa-pipe", "REPA"])
def test_initial_weights_with_another_number_of_classes_are_refused(config_of, tmp_path, kept):
    """With --cfg-prob 0, the tables of 4 classes and of 3 classes with the null label have the same shape."""
    other = config_of(exp_name="other", num_classes=4, max_train_steps=1, cfg_prob=0.0 if "sit" in kept else 0.1)
    values = load_checkpoint(Path(train.run(other).checkpoint))
    torch.save({name: values[name] for name in kept}, tmp_path / "initial.pt")
    with pytest.raises(CheckpointError, match=r"initial.pt has 4 classes, this run 3: pass --num-classes 4"):
        train.run(config_of(init_from=str(tmp_path / "initial.pt")))


@pytest.mark.parametrize("labels", ["", "cat", "1,,2", "-1", "1.5"])
def test_labels_that_are_no_class_numbers_are_refused_before_anything_is_read(run_cli, labels):
    code, _, errors = run_cli("sample", "nowhere", f"--labels={labels}")
    assert (code, "--labels is" in errors, errors.count("\n")) == (2, True, 1)
