"""The class-token term (REG): its loss, its draws, training and sampling with it."""

from pathlib import Path

import numpy as np
import pytest
import torch

from repa_pipe.config import SampleConfig
from repa_pipe.errors import ConfigError, StoreError
from repa_pipe.pipeline import sample, train
from repa_pipe.pipeline.artifacts.metrics_log import read_metrics
from repa_pipe.pipeline.artifacts.run_folder import RunFolder
from repa_pipe.pipeline.runtime.distributed import DistributedContext
from repa_pipe.pipeline.training.setup import resolve
from repa_pipe.pipeline.training.trainer import Trainer
from repa_pipe.stores import open_store

ALONE = DistributedContext(0, 1)


@pytest.fixture
def trainer_of(config_of):
    with open_store(config_of().store) as store:
        yield lambda **options: Trainer(
            resolve(config_of(**options), store), store, torch.device("cpu"), ALONE, RunFolder(Path("unused"))
        )


def first_batch(trainer):
    return trainer.dataset.read(trainer.dataset.indices_of_step(0))


def test_the_loss_of_a_fresh_model_matches_the_paper(trainer_of):
    trainer = trainer_of(cls_coeff=0.03)
    batch = first_batch(trainer)
    inputs = trainer.objective.inputs(batch, 0, ALONE)
    loss, denoising, alignment, cls_loss = trainer.objective(inputs).tolist()
    # a fresh model predicts zero, so its error is the target: noise - data
    assert cls_loss == pytest.approx(
        (inputs.terms[2]["cls_noise"] - batch.cls_tokens[0].float()).square().mean().item(), rel=1e-5
    )
    latents = trainer.objective.latents(inputs)
    assert denoising == pytest.approx((inputs.noise - latents).square().mean().item(), rel=1e-5)
    assert loss == pytest.approx(denoising + 0.5 * alignment + 0.03 * cls_loss, rel=1e-5)
    assert inputs.terms[1]["targets"][0].shape == (8, 17, 24)
    assert torch.equal(inputs.terms[1]["targets"][0][:, 0], batch.cls_tokens[0].float())


def test_all_other_draws_are_those_of_training_without_class_tokens(trainer_of):
    entangled, plain = trainer_of(cls_coeff=0.03), trainer_of()
    one, other = (each.objective.inputs(first_batch(each), 5, ALONE) for each in (entangled, plain))
    assert all(torch.equal(getattr(one, name), getattr(other, name)) for name in ("times", "noise", "posterior"))
    assert not torch.equal(
        one.terms[2]["cls_noise"], entangled.objective.inputs(first_batch(entangled), 6, ALONE).terms[2]["cls_noise"]
    )


def test_the_noise_of_class_tokens_is_drawn_for_the_global_batch(trainer_of):
    trainer = trainer_of(cls_coeff=0.03)
    batch = first_batch(trainer)
    whole = trainer.objective.inputs(batch, 3, ALONE).terms[2]["cls_noise"]
    halves = [
        trainer.objective.inputs(batch, 3, DistributedContext(rank, 2)).terms[2]["cls_noise"] for rank in range(2)
    ]
    assert torch.equal(torch.cat(halves), whole)


@pytest.mark.parametrize("options", [{}, {"alignment_steps": 2}, {"proj_coeff": 0.0}])
def test_reg_trains_and_resumes(config_of, weights_of, assert_same_weights, options):
    options |= {"cls_coeff": 0.03, "microbatches": 2}
    whole = train.run(config_of(exp_name="whole", max_train_steps=4, log_steps=1, **options))
    train.run(config_of(max_train_steps=3, **options))
    assert_same_weights(weights_of(whole), weights_of(train.run(config_of(max_train_steps=4, **options))))
    assert all(row["cls_loss"] > 0.5 for row in read_metrics(RunFolder(Path(whole.run))))


def test_images_are_sampled_together_with_the_class_token(config_of, tmp_path):
    run = train.run(config_of(cls_coeff=1.0, learning_rate=1e-2, ema_decay=0.5)).run
    made = {}
    for name, options in {"large": {"mode": "sde"}, "small": {"mode": "sde", "per_proc_batch_size": 2}}.items():
        out = str(tmp_path / f"{name}.npz")
        config = SampleConfig(checkpoint=run, out=out, num_fid_samples=4, num_steps=3, device="cpu", **options)
        made[name] = np.load(sample.run(config).npz)["arr_0"].astype(int)
    assert made["large"].shape == (4, 64, 64, 3)
    assert np.abs(made["large"] - made["small"]).max() <= 1
    assert np.abs(made["large"][0] - made["large"][1]).max() > 8


@pytest.mark.slow
def test_the_guidance_of_the_class_token_has_its_own_scale(config_of, tmp_path, caplog):
    run = train.run(config_of(cls_coeff=1.0, learning_rate=1e-2, ema_decay=0.5)).run

    def images(name, **options):
        settings = {"num_fid_samples": 4, "num_steps": 3, "device": "cpu", "out": str(tmp_path / f"{name}.npz")}
        return np.load(sample.run(SampleConfig(checkpoint=run, **settings | options)).npz)["arr_0"]

    default = images("default", cfg_scale=4.0)
    assert np.array_equal(images("same", cfg_scale=4.0, cls_cfg_scale=4.0), default)
    unguided = images("unguided", cfg_scale=4.0, cls_cfg_scale=0.0)
    assert not np.array_equal(unguided, default)
    assert np.array_equal(images("one", cfg_scale=4.0, cls_cfg_scale=1.0), unguided)
    assert "has no effect" not in caplog.text
    images("off", cfg_scale=1.0, cls_cfg_scale=3.0)
    assert "--cls-cfg-scale has no effect, because --cfg-scale 1 disables guidance" in caplog.text


def test_a_scale_for_the_class_token_is_refused_by_a_model_without_one(config_of):
    run = train.run(config_of()).run
    with pytest.raises(ConfigError, match=r"--cls-cfg-scale is 2, but the model has no class token"):
        sample.run(SampleConfig(checkpoint=run, num_fid_samples=1, num_steps=1, device="cpu", cls_cfg_scale=2.0))


def test_an_encoder_without_class_token_is_refused(config_of, helpers, tmp_path):
    path = tmp_path / "without"
    manifest = helpers.new_store(path)
    helpers.write_group(path, manifest, helpers.LATENTS)
    tokens_only = helpers.dataclasses.replace(helpers.FEATURES, arrays=helpers.FEATURES.arrays[:1])
    helpers.write_group(path, manifest, tokens_only)
    with pytest.raises(StoreError, match="enc has no class token"):
        train.run(config_of(store=str(path), cls_coeff=0.03))


def test_a_convolutional_projector_is_refused(config_of):
    with pytest.raises(ConfigError, match=r"--projector is 'conv': --cls-coeff requires mlp"):
        config_of(projector="conv", cls_coeff=0.03)
