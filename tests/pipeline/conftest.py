"""Fixtures for small training runs and their checkpoints."""

import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from repa_pipe.config import TrainConfig
from repa_pipe.pipeline import train
from repa_pipe.pipeline.artifacts.checkpoints import load_checkpoint

SMALL = {
    "exp_name": "run",
    "model": "SiT-T/2",
    "encoder_depth": 2,
    "projector_embed_dims": 32,
    "batch_size": 8,
    "max_train_steps": 6,
    "checkpointing_steps": 3,
    "log_steps": 2,
    "mixed_precision": "fp32",
    "device": "cpu",
}


@pytest.fixture
def config_of(make_store, tmp_path):
    """Return the config of a training run of six steps, with the given changes. `config_of.contents`: its store."""
    path, contents = make_store()

    def config(**changes):
        return TrainConfig(**SMALL | {"store": str(path), "output_dir": str(tmp_path / "runs")} | changes)

    config.contents = contents
    return config


@pytest.fixture(scope="session")
def trained_runs(written_stores, tmp_path_factory):
    """Return a function that trains with the given changes at most once, and returns the folder, to be copied."""

    @functools.cache
    def trained(**changes):
        places = {"store": str(written_stores(50, 16, ())[0]), "output_dir": str(tmp_path_factory.mktemp("runs"))}
        return train.run(TrainConfig(**SMALL | places | changes)).run

    return trained


@pytest.fixture
def reference(tmp_path):
    """A folder of eight noise images, as a reference for metrics."""
    folder = tmp_path / "reference" / "class"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number in range(8):
        Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(folder / f"{number}.png")
    return str(folder.parent)


def _weights_of(result):
    values = load_checkpoint(Path(result.checkpoint))
    return {f"{part}.{name}": value for part in ("model", "ema") for name, value in values[part].items()}


def _assert_same_weights(first, second):
    assert first.keys() == second.keys()
    different = [name for name in first if not torch.equal(first[name], second[name])]
    assert not different


@pytest.fixture(scope="session")
def weights_of():
    """Return all weights, model and EMA, of the last checkpoint of a training result."""
    return _weights_of


@pytest.fixture(scope="session")
def assert_same_weights():
    """Compare two results of `weights_of` bit by bit."""
    return _assert_same_weights


@pytest.fixture(scope="session")
def assert_close_weights():
    """Compare the weights of two training results up to rounding."""

    def compare(one, other):
        others = _weights_of(other)
        for name, value in _weights_of(one).items():
            torch.testing.assert_close(value, others[name], rtol=1e-3, atol=5e-5, msg=name)

    return compare


@pytest.fixture(scope="session")
def on_two_ranks():
    """Return a function that trains a config on two ranks of this machine, and returns the result."""

    def run(config):
        launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        command = [*launcher, "-m", "repa_pipe.cli", config.kind, *config.flags()]
        subprocess.run(command, check=True, capture_output=True, env=environment)
        return train.run(config)

    return run


_COLD = """
import contextlib, io, json, sys
from repa_pipe import cli
HEAVY = ("torch", "diffusers", "timm", "ray", "torchvision", "bokeh", "zarr")
for words in json.load(sys.stdin):
    sys.argv, code, errors = ["repa-pipe", *words], 0, io.StringIO()
    with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()):
        try:
            cli.main()
        except SystemExit as stop:
            code = stop.code
    print(json.dumps([code, errors.getvalue(), [name for name in HEAVY if name in sys.modules]]))
"""


@pytest.fixture
def run_cold():
    """Run commands one after the other in a new process; return exit code, stderr and heavy imports after each."""

    def run(*commands):
        done = subprocess.run(
            [sys.executable, "-c", _COLD], input=json.dumps(commands), capture_output=True, text=True, check=True
        )
        return [json.loads(line) for line in done.stdout.splitlines()]

    return run
