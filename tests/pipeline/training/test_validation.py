"""Validation losses: held-out samples are not trained on, and the losses depend on the weights alone."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from repa_pipe.errors import ConfigError
from repa_pipe.pipeline import train
from repa_pipe.pipeline.artifacts.metrics_log import read_metrics
from repa_pipe.pipeline.artifacts.run_folder import RunFolder
from repa_pipe.pipeline.runtime.distributed import DistributedContext
from repa_pipe.pipeline.training.setup import (
    held_out_rows,
    open_dataset,
    open_held_out,
    resolve,
    training_rows,
)
from repa_pipe.pipeline.training.trainer import Trainer
from repa_pipe.stores import open_store
from repa_pipe.stores.order import held_out_samples

LOSSES = ("val_denoising_loss", "val_alignment_loss")
ALONE = DistributedContext(0, 1)


def validated(result):
    rows = read_metrics(RunFolder(Path(result.run)))
    return {row["step"]: [row[name] for name in LOSSES] for row in rows if row[LOSSES[0]] is not None}


def test_held_out_samples_depend_on_the_seed_and_grow_with_the_fraction():
    few, more = (held_out_samples(1000, 0, fraction) for fraction in (0.1, 0.2))
    assert (len(few), len(more)) == (100, 200)
    assert set(few) < set(more)
    assert (np.diff(few) > 0).all()
    assert not np.array_equal(few, held_out_samples(1000, 1, 0.1))
    assert few[:4].tolist() == [7, 11, 24, 33]  # recorded: runs rely on this order permanently


def test_training_and_validation_share_no_sample(config_of):
    config = config_of(val_fraction=0.3, batch_size=5)
    with open_store(config.store) as store:
        resolved = resolve(config, store)
        training, held_out = open_dataset(resolved, store, ALONE), open_held_out(resolved, store, ALONE)
        assert (len(training.indices), len(held_out.indices)) == (35, 15)
        assert np.array_equal(np.sort(np.concatenate([training.indices, held_out.indices])), np.arange(50))
        read = np.concatenate([training.global_indices_of_step(step) for step in range(14)])
        assert not set(read) & set(held_out.indices)


def test_a_part_of_the_store_is_split_like_the_store(config_of):
    with open_store(config_of().store) as store:
        whole = np.asarray(held_out_rows(config_of(val_fraction=0.5), store))
        two_classes = config_of(val_fraction=0.5, classes=("0", "2"))
        assert np.array_equal(held_out_rows(two_classes, store), whole[np.isin(store.labels[whole], [0, 2])])
        assert set(store.labels[np.asarray(training_rows(two_classes, store))]) == {0, 2}
        assert not set(np.asarray(training_rows(two_classes, store))) & set(whole)


def test_validation_changes_no_weight_and_resuming_changes_no_loss(config_of, weights_of, assert_same_weights):
    often = train.run(config_of(exp_name="often", val_fraction=0.3, val_steps=1))
    rarely = train.run(config_of(exp_name="rarely", val_fraction=0.3))  # at checkpoints: after 3 and 6 steps
    train.run(config_of(max_train_steps=3, val_fraction=0.3))
    resumed = train.run(config_of(val_fraction=0.3))
    for other in (rarely, resumed):
        assert_same_weights(weights_of(often), weights_of(other))
        assert validated(other) == {step: validated(often)[step] for step in (3, 6)}
    assert list(validated(often)) == [1, 2, 3, 4, 5, 6]
    rows = read_metrics(RunFolder(Path(rarely.run)))
    assert [row["step"] for row in rows] == [2, 3, 4, 6]  # --log-steps 2, and a row per validation
    assert [row["val_denoising_loss"] is None for row in rows] == [True, False, True, False]


def test_the_losses_are_those_of_the_ema_weights(config_of):
    config = config_of(val_fraction=0.3, batch_size=5)
    with open_store(config.store) as store:
        trainer = Trainer(resolve(config, store), store, torch.device("cpu"), ALONE, RunFolder(Path("unused")))
        first = trainer.validation.losses(0)
        assert first == trainer.validation.losses(0)
        with torch.no_grad():
            trainer.model.final_layer.linear.weight.add_(1.0)
        assert trainer.validation.losses(0) == first
        with torch.no_grad():
            trainer.ema.model.final_layer.linear.weight.add_(1.0)
        assert trainer.validation.losses(0)["val_denoising_loss"] != first["val_denoising_loss"]


def test_microbatches_do_not_change_the_losses(config_of):
    found = {}
    for name, options in {"whole": {}, "parts": {"microbatches": 2}}.items():
        config = config_of(val_fraction=0.4, batch_size=10, **options)
        torch.manual_seed(0)  # for the initial weights
        with open_store(config.store) as store:
            trainer = Trainer(resolve(config, store), store, torch.device("cpu"), ALONE, RunFolder(Path("unused")))
            found[name] = trainer.validation.losses(0)
    assert found["whole"] == pytest.approx(found["parts"], rel=1e-5)


def test_the_alignment_loss_is_zero_once_alignment_has_ended(config_of):
    result = train.run(config_of(val_fraction=0.3, val_steps=1, alignment_steps=3))
    alignment = [losses[1] for losses in validated(result).values()]
    assert [loss == 0 for loss in alignment] == [False, False, False, True, True, True]


def test_class_tokens_are_validated(config_of):
    result = train.run(config_of(max_train_steps=1, val_fraction=0.3, cls_coeff=0.03, log_steps=1))
    (row,) = read_metrics(RunFolder(Path(result.run)))
    assert row["val_cls_loss"] > 0.5


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"val_fraction": 0.1}, "--val-fraction is 0.1: it leaves 5 of 50 samples for validation"),
        ({"val_fraction": 0.9}, "--val-fraction is 0.9: it leaves 5 of 50 samples for training"),
        ({"val_fraction": 1.0}, "--val-fraction is 1.0: must be at least 0 and below 1"),
        ({"val_steps": 3}, "--val-steps is 3: requires --val-fraction"),
    ],
)
def test_a_fraction_that_leaves_no_batch_is_refused(config_of, options, match):
    with pytest.raises(ConfigError, match=match):
        train.run(config_of(**options))


def test_the_fraction_cannot_change(config_of):
    train.run(config_of(max_train_steps=1, val_fraction=0.3))
    with pytest.raises(ConfigError, match=r"--val-fraction: recorded 0.3, requested 0.4"):
        train.run(config_of(val_fraction=0.4))


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"fsdp": True}])
def test_two_ranks_compute_the_same_losses(config_of, options):
    one = train.run(config_of(exp_name="one", val_fraction=0.4))
    two = config_of(exp_name="two", val_fraction=0.4, **options)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    command = [*launcher, "-m", "repa_pipe.cli", "train", *two.flags()]
    subprocess.run(command, check=True, capture_output=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    expected, found = validated(one), validated(train.run(two))
    assert expected.keys() == found.keys()
    for step, losses in expected.items():
        assert found[step] == pytest.approx(losses, rel=1e-3, abs=1e-4)
