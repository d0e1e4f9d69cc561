"""The scripts in runs/ are valid `train` commands, and the sweeps in runs/sweeps/ are valid sweeps."""

import os
import subprocess
from pathlib import Path

import pytest

from repa_pipe import cli, options
from repa_pipe.config import TrainConfig
from repa_pipe.models.encoders import describe_encoder
from repa_pipe.models.sit import sit_config
from repa_pipe.pipeline.ablation.sweep import read_sweep

RUNS = Path(__file__).parents[2] / "runs"
SCRIPTS = {path.stem: path for path in sorted(RUNS.glob("*.sh"))}


def config_of(script, tmp_path, **variables):
    """Return the config that a script trains with: it is run with a `torchrun` that prints its arguments."""
    torchrun = tmp_path / "torchrun"
    torchrun.write_text("#!/usr/bin/env bash\nprintf '%s\\n' \"$@\"\n")
    torchrun.chmod(0o755)
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"} | variables
    done = subprocess.run([script, "--seed", "7"], env=environment, capture_output=True, text=True, check=True)
    *launcher, module = (args := done.stdout.splitlines())[: args.index("train")]
    assert (launcher, module) == (["--nproc-per-node", variables.get("GPUS", "8"), "-m"], "repa_pipe.cli")
    context = cli.train.make_context("train", args[args.index("train") + 1 :])
    return options.config_of(TrainConfig, context.params)


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_script_trains_an_existing_model_with_an_existing_encoder(name, tmp_path):
    config = config_of(SCRIPTS[name], tmp_path)
    assert (config.store, config.seed, config.batch_size, config.learning_rate) == ("imagenet256", 7, 256, 1e-4)
    width = describe_encoder(config.enc_type[0], 256).width
    sit_config(config.model, input_size=32, in_channels=4, z_dims=(width,), encoder_depth=config.encoder_depth)


def test_repas_scripts_differ_in_model_encoder_and_number_of_steps(tmp_path):
    short, long = (config_of(SCRIPTS[f"sit-xl2-{steps}"], tmp_path) for steps in ("400k", "4m"))
    assert (short.max_train_steps, long.max_train_steps) == (400_000, 4_000_000)
    assert short.differences(long) == []  # so the long run resumes from the short one
    small = config_of(SCRIPTS["sit-b2"], tmp_path)
    assert (small.model, small.encoder_depth) == ("SiT-B/2", 4)
    mae = config_of(SCRIPTS["sit-l2"], tmp_path, ENCODER="mae-vit-l", GPUS="2")
    assert (mae.model, mae.enc_type, mae.exp_name) == ("SiT-L/2", ("mae-vit-l",), "sit-l2-mae-vit-l")
    for config in (short, small, mae):
        assert (config.proj_coeff, config.projector, config.legacy) == (0.5, "mlp", True)


def test_the_scripts_of_irepa_and_reg_follow_their_recipes(tmp_path):
    irepa = config_of(SCRIPTS["irepa-sit-xl2"], tmp_path)
    assert (irepa.model, irepa.encoder_depth, irepa.legacy) == ("SiT-XL/2", 8, False)
    assert (irepa.projector, irepa.spatial_norm, irepa.proj_coeff) == ("conv", 0.6, 1.0)
    assert config_of(SCRIPTS["irepa-sit-xl2"], tmp_path, GAMMA="1.0").spatial_norm == 1.0
    reg = config_of(SCRIPTS["reg-sit-xl2"], tmp_path)
    assert (reg.model, reg.encoder_depth, reg.proj_coeff, reg.cls_coeff) == ("SiT-XL/2", 8, 0.5, 0.03)


@pytest.mark.parametrize("path", sorted(RUNS.glob("sweeps/repa-*.toml")), ids=lambda path: path.stem)
def test_every_sweep_of_repa_has_existing_models_and_encoders(path):
    sweep = read_sweep(path, "imagenet256", Path("exps"))
    assert len(sweep.runs) == {"encoders": 8, "depth": 6, "objective": 2, "coefficient": 4}[path.stem[5:]]
    for run in sweep.runs:
        width = describe_encoder(run.enc_type[0], 256).width
        sit_config(run.model, input_size=32, in_channels=4, z_dims=(width,), encoder_depth=run.encoder_depth)
        assert (run.max_train_steps, run.batch_size, run.legacy) == (400_000, 256, True)
    assert (sweep.sample.num_fid_samples, sweep.sample.cfg_scale, sweep.sample.mode) == (50_000, 1.0, "sde")
    assert sweep.evaluate.detector == ("inception",)
