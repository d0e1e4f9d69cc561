"""A second environment without any caches pulls a store, trains, shares the model and samples it: the same bits."""

import os
import shutil
import subprocess
import sys

import numpy as np
import pytest

from repa_pipe.pipeline.artifacts.checkpoints import load_checkpoint

STORE, MODEL = "hf://datasets/alice/store", "hf://alice/model"
TRAIN = ["--model", "SiT-T/2", "--encoder-depth", "2", "--projector-embed-dims", "32", "--batch-size", "8"]
TRAIN += ["--max-train-steps", "20", "--mixed-precision", "fp32", "--device", "cpu", "--report-to", "none"]
SAMPLE = ["--num-fid-samples", "4", "--num-steps", "4", "--device", "cpu"]


class Environment:
    """A home folder of its own, in which commands run that share nothing else with others."""

    def __init__(self, home):
        self.home = home
        self.home.mkdir()
        caches = {"HOME": home, "HF_HOME": home / "hf", "TORCH_HOME": home / "torch", "XDG_CACHE_HOME": home / "cache"}
        self.variables = os.environ | {name: str(path) for name, path in caches.items()}

    def run(self, *words):
        command = [sys.executable, "-m", "repa_pipe.cli", *map(str, words)]
        done = subprocess.run(command, cwd=self.home, env=self.variables, check=False, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr

    def images(self, name):
        with np.load(self.home / name) as archive:
            return archive["arr_0"]


@pytest.mark.slow
def test_a_pulled_store_and_a_shared_model_give_the_bits_of_local_ones(hub, make_store, tmp_path):
    here, there = Environment(tmp_path / "here"), Environment(tmp_path / "there")
    shutil.copytree(make_store()[0], here.home / "store")
    here.run("train", "store", *TRAIN, "--exp-name", "run")
    here.run("sample", "exps/run", "--out", "local.npz", *SAMPLE)
    here.run("store", "push", "store", STORE, "--license", "mit")

    there.run("store", "pull", STORE, "pulled")
    there.run("train", "pulled", *TRAIN, "--exp-name", "run")
    there.run("export", "exps/run", "--to", "hub", "--out", "shared", "--repo", MODEL[5:], "--license", "mit")
    there.run("sample", MODEL, "--out", "shared.npz", *SAMPLE)

    weights = [load_checkpoint(each.home / "exps/run/checkpoints/0000020.pt")["ema"] for each in (here, there)]
    assert all(value.equal(weights[1][name]) for name, value in weights[0].items())
    np.testing.assert_array_equal(here.images("local.npz"), there.images("shared.npz"))
