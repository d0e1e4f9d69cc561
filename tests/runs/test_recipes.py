"""Every recipe is one command that `repa-pipe train` understands."""

import os
import subprocess
from pathlib import Path

import pytest

from repa_pipe import cli
from repa_pipe.config import TrainConfig
from repa_pipe.models.encoders import describe_encoder
from repa_pipe.models.sit import sit_config
from repa_pipe.pipeline.ablation.sweep import read_sweep

RUNS = Path(__file__).parents[2] / "runs"
RECIPES = {path.name: path for path in sorted(RUNS.glob("*.sh"))}


def config_of(recipe, tmp_path, **variables):
    """What the recipe would train: it is run, with a `torchrun` that prints its words."""
    torchrun = tmp_path / "torchrun"
    torchrun.write_text("#!/usr/bin/env bash\nprintf '%s\\n' \"$@\"\n")
    torchrun.chmod(0o755)
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"} | variables
    done = subprocess.run([recipe, "--seed", "7"], env=environment, capture_output=True, text=True, check=True)
    *launcher, module = (words := done.stdout.splitlines())[: words.index("train")]
    assert (launcher, module) == (["--nproc-per-node", variables.get("GPUS", "8"), "-m"], "repa_pipe.cli")
    return TrainConfig(**cli.train.make_context("train", words[words.index("train") + 1 :]).params)


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_is_a_run_of_a_model_that_there_is(name, tmp_path):
    config = config_of(RECIPES[name], tmp_path)
    assert (config.store, config.seed, config.batch_size, config.learning_rate) == ("imagenet256", 7, 256, 1e-4)
    width = describe_encoder(config.enc_type[0], 256).width
    sit_config(config.model, input_size=32, in_channels=4, z_dims=(width,), encoder_depth=config.encoder_depth)


def test_recipes_say_what_they_are_named_for(tmp_path):
    short, long = (config_of(RECIPES[f"sit-xl2-{steps}.sh"], tmp_path) for steps in ("400k", "4m"))
    assert (short.max_train_steps, long.max_train_steps) == (400_000, 4_000_000)
    assert short.differences(long) == []  # so that the one goes on from the other
    assert config_of(RECIPES["sit-b2.sh"], tmp_path).encoder_depth == 4
    mae = config_of(RECIPES["sit-l2.sh"], tmp_path, ENCODER="mae-vit-l", GPUS="2")
    assert (mae.enc_type, mae.exp_name) == (("mae-vit-l",), "sit-l2-mae-vit-l")
    irepa = config_of(RECIPES["irepa-sit-xl2.sh"], tmp_path, GAMMA="1.0")
    assert (irepa.projector, irepa.spatial_norm) == ("conv", 1.0)
    assert config_of(RECIPES["reg-sit-xl2.sh"], tmp_path).cls_coeff == 0.03


@pytest.mark.parametrize("path", sorted(RUNS.glob("sweeps/*.toml")), ids=lambda path: path.stem)
def test_every_sweep_is_of_models_and_encoders_that_there_are(path):
    sweep = read_sweep(path, "imagenet256", Path("exps"))
    assert len(sweep.runs) == {"encoders": 8, "depth": 6, "objective": 2, "coefficient": 4}[path.stem[5:]]
    for run in sweep.runs:
        width = describe_encoder(run.enc_type[0], 256).width
        sit_config(run.model, input_size=32, in_channels=4, z_dims=(width,), encoder_depth=run.encoder_depth)
        assert (run.max_train_steps, run.batch_size, run.legacy) == (400_000, 256, True)
    assert (sweep.sample.num_fid_samples, sweep.sample.cfg_scale, sweep.sample.mode) == (50_000, 1.0, "sde")
    assert sweep.evaluate.detector == ("inception",)
