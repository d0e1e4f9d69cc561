"""SR-DiT: what a training step draws, training, resuming and sampling, and what is refused."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from repa_pipe.config import SampleConfig
from repa_pipe.errors import ConfigError
from repa_pipe.models.sit import make_sit, sit_config
from repa_pipe.models.srdit.config import SRDiTConfig
from repa_pipe.pipeline import sample, train
from repa_pipe.pipeline.artifacts.metrics_log import read_metrics
from repa_pipe.pipeline.artifacts.run_folder import RunFolder
from repa_pipe.pipeline.runtime.distributed import DistributedContext
from repa_pipe.pipeline.sampling.guidance import weaker_velocities
from repa_pipe.pipeline.sampling.times import sampling_times
from repa_pipe.pipeline.training.routing import draw_routing
from repa_pipe.pipeline.training.setup import resolve
from repa_pipe.pipeline.training.trainer import Trainer
from repa_pipe.stores import open_store

ALONE = DistributedContext(0, 1)


@pytest.fixture
def srdit_of(config_of, helpers, tmp_path):
    """Return the config of a run of SR-DiT, on a store whose latents have a grid of 4 x 4."""
    path = tmp_path / "small"
    manifest = helpers.new_store(path)
    moments = replace(helpers.LATENTS.arrays[0], sample_shape=(8, 4, 4))
    helpers.write_group(path, manifest, replace(helpers.LATENTS, arrays=(moments,)))
    helpers.write_group(path, manifest, helpers.FEATURES)
    options = {"model": "SRDiT-T/1", "encoder_depth": None, "cls_coeff": 0.03, "qk_norm": True, "time_shift": 2.0}
    return lambda **changes: config_of(store=str(path), **options | changes)


@pytest.fixture
def trainer_of(srdit_of):
    with open_store(srdit_of().store) as store:
        yield lambda **options: Trainer(
            resolve(srdit_of(**options), store), store, torch.device("cpu"), ALONE, RunFolder(Path("unused"))
        )


def inputs_of(trainer, step, ranks=ALONE):
    return trainer.objective.inputs(trainer.dataset.read(trainer.dataset.indices_of_step(0)), step, ranks)


def test_a_quarter_of_the_tokens_is_kept_and_the_path_of_one_batch_in_twenty_is_dropped():
    drawn = [draw_routing(17, 8, torch.Generator().manual_seed(seed)) for seed in range(2000)]
    assert all(each["kept"].shape == (8, 4) for each in drawn)
    assert torch.cat([each["kept"] for each in drawn]).unique().tolist() == list(range(17))
    dropped = torch.stack([each["path_dropped"] for each in drawn])
    assert dropped.shape == (2000, 8)
    assert (dropped.all(dim=1) == dropped.any(dim=1)).all()
    assert 0.03 < dropped[:, 0].float().mean() < 0.07


def test_draws_belong_to_seed_and_step_and_to_the_global_batch(trainer_of):
    trainer, other = trainer_of(), trainer_of(seed=1)
    whole = inputs_of(trainer, 3).routing
    halves = [inputs_of(trainer, 3, DistributedContext(rank, 2)).routing for rank in range(2)]
    for name, value in whole.items():
        assert torch.equal(torch.cat([half[name] for half in halves]), value)
    assert not torch.equal(inputs_of(trainer, 4).routing["kept"], whole["kept"])
    assert not torch.equal(inputs_of(other, 3).routing["kept"], whole["kept"])
    assert torch.equal(inputs_of(trainer, 3).rows(slice(2, 5)).routing["kept"], whole["kept"][2:5])


def test_the_loss_is_that_of_the_drawn_tokens_and_path(trainer_of):
    trainer = trainer_of()
    torch.manual_seed(0)
    for weight in trainer.model.parameters():
        torch.nn.init.normal_(weight, std=0.1)
    inputs = inputs_of(trainer, 0)
    losses = trainer.objective(inputs)
    assert torch.equal(trainer.objective(inputs), losses)
    changed = [
        {"kept": (inputs.routing["kept"] + 1) % 17, "path_dropped": inputs.routing["path_dropped"]},
        {"kept": inputs.routing["kept"], "path_dropped": ~inputs.routing["path_dropped"]},
    ]
    for routing in changed:
        other = trainer.objective(replace(inputs, routing=routing))
        assert not torch.isclose(other[1], losses[1])
        assert torch.equal(other[2], losses[2])  # the projectors read what comes before the routing


@pytest.mark.parametrize(
    "options",
    [{"microbatches": 2, "val_fraction": 0.2}, pytest.param({"proj_coeff": 0.0}, marks=pytest.mark.slow)],
)
def test_srdit_trains_and_resumes(srdit_of, weights_of, assert_same_weights, options):
    whole = train.run(srdit_of(exp_name="whole", max_train_steps=3, log_steps=1, **options))
    train.run(srdit_of(max_train_steps=2, **options))
    assert_same_weights(weights_of(whole), weights_of(train.run(srdit_of(max_train_steps=3, **options))))
    rows = read_metrics(RunFolder(Path(whole.run)))
    assert all(row["cls_loss"] > 0.5 and row["denoising_loss"] > 0.5 for row in rows)


def test_both_samplers_shift_their_times():
    config = SRDiTConfig(input_size=4, in_channels=4, hidden_size=8, depth=5, num_heads=2, cls_dim=3)
    trained = SimpleNamespace(config=SimpleNamespace(time_shift=2.0), model=SimpleNamespace(config=config))
    settings = SampleConfig(checkpoint="run", num_steps=3, mode="sde")
    sde, ode = (1.0, 0.52, 0.04, 0.0), (1.0, 2 / 3, 1 / 3, 0.0)
    assert sampling_times(settings, trained).tolist() == pytest.approx([2 * t / (1 + t) for t in sde])
    assert sampling_times(replace(settings, mode="ode"), trained).tolist() == pytest.approx(
        [2 * t / (1 + t) for t in ode]
    )
    assert sampling_times(replace(settings, time_shift=1.0), trained).tolist() == pytest.approx(sde)


@pytest.mark.slow
def test_srdit_is_sampled_with_shifted_times_and_guided_without_its_middle_blocks(srdit_of, tmp_path):
    result = train.run(srdit_of(cls_coeff=1.0, learning_rate=1e-2, ema_decay=0.5))

    def images(name, **options):
        settings = {"num_fid_samples": 3, "num_steps": 3, "device": "cpu", "out": str(tmp_path / f"{name}.npz")}
        return np.load(sample.run(SampleConfig(checkpoint=result.run, **settings | options)).npz)["arr_0"].astype(int)

    sde = {"mode": "sde", "cfg_scale": 3.0}
    dropped = images("dropped", guidance="path_drop", **sde)
    assert dropped.shape == (3, 32, 32, 3)
    small = images("small", guidance="path_drop", per_proc_batch_size=2, **sde)
    assert np.abs(dropped - small).max() <= 1
    assert not np.array_equal(dropped, images("plain", **sde))
    assert not np.array_equal(dropped, images("scale", guidance="path_drop", cls_cfg_scale=0.0, **sde))
    assert not np.array_equal(dropped, images("unshifted", guidance="path_drop", time_shift=1.0, **sde))
    assert not np.array_equal(images("ode"), images("ode-dropped", guidance="path_drop"))


def test_guidance_without_middle_blocks_requires_srdit():
    model = make_sit(sit_config("SiT-T/2", input_size=4, in_channels=4))
    settings = SampleConfig(checkpoint="run", guidance="path_drop")
    with pytest.raises(ConfigError, match="--guidance path_drop: the model has no blocks that can be left out"):
        weaker_velocities(settings, SimpleNamespace(model=model), model, torch.device("cpu"))
    with pytest.raises(ConfigError, match="--guidance is 'path_drop': cannot be combined with --guidance-checkpoint"):
        replace(settings, guidance_checkpoint="weak.pt")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cls_coeff": 0.0}, "--cls-coeff is 0.0: must be above 0 for SRDiT-T/1"),
        ({"encoder_depth": 3}, "--encoder-depth is 3: does not apply to SRDiT-T/1"),
        ({"legacy": True}, "--legacy is True: does not apply to SRDiT-T/1"),
        ({"fsdp": True}, "--fsdp is True: cannot be combined with SRDiT-T/1"),
    ],
)
def test_settings_of_other_models_are_refused(srdit_of, options, message):
    with pytest.raises(ConfigError, match=message):
        train.run(srdit_of(**options))
