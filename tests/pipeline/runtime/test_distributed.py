"""The place of a process among ranks, from the variables that a launcher sets or that something else has left."""

import logging
import subprocess
import sys

import pytest
import torch
from torch import distributed

from repa_pipe.errors import ConfigError
from repa_pipe.pipeline import train
from repa_pipe.pipeline.runtime.distributed import (
    VARIABLES,
    DistributedContext,
    init_distributed,
    ranks_of_environment,
)

MASTER = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


@pytest.fixture
def environment(monkeypatch):
    def use(variables):
        for name in VARIABLES:
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return use


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, (0, 1)),
        ({"RANK": "0"}, (0, 1)),
        ({"WORLD_SIZE": "1"}, (0, 1)),
        ({"RANK": "", "WORLD_SIZE": ""}, (0, 1)),
        (MASTER, (0, 1)),
        ({"RANK": "2", "WORLD_SIZE": "4", **MASTER}, (2, 4)),
    ],
)
def test_complete_variables_are_the_place_of_the_process(environment, variables, expected):
    environment(variables)
    assert ranks_of_environment() == DistributedContext(*expected)


@pytest.mark.parametrize(
    ("variables", "problem"),
    [
        ({"RANK": "1"}, "RANK=1, expected RANK from 0 to WORLD_SIZE - 1:"),
        ({"RANK": "4", "WORLD_SIZE": "4", **MASTER}, "RANK=4, WORLD_SIZE=4, expected RANK from 0 to WORLD_SIZE - 1:"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE=0, expected RANK from"),
        ({"RANK": "-1", "WORLD_SIZE": "2"}, "RANK=-1, WORLD_SIZE=2, expected RANK from"),
        ({"RANK": "one", "WORLD_SIZE": "2"}, "RANK=one, WORLD_SIZE=2, expected RANK from"),
        ({"WORLD_SIZE": "2", **MASTER}, "WORLD_SIZE=2, without RANK:"),
        ({"RANK": "0", "WORLD_SIZE": "2"}, "RANK=0, WORLD_SIZE=2, without MASTER_ADDR and MASTER_PORT:"),
        ({"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "a"}, "without MASTER_PORT:"),
    ],
)
def test_variables_that_describe_no_rank_are_refused_with_those_to_unset(environment, variables, problem):
    environment(variables)
    with pytest.raises(ConfigError, match=f"the environment has .*{problem}.* unset RANK and WORLD_SIZE to run one"):
        ranks_of_environment()


@pytest.mark.parametrize("command", ["train", "sample"])
def test_commands_with_leftover_variables_end_in_one_line(config_of, environment, run_cli, command):
    config = config_of(max_train_steps=1)
    run = train.run(config).run
    environment({"RANK": "0", "WORLD_SIZE": "8"})
    words = config_of(exp_name="new").flags() if command == "train" else [run, "--num-steps", 1]
    code, _, errors = run_cli(command, *words)
    (line,) = errors.splitlines()
    assert (code, "without MASTER_ADDR and MASTER_PORT" in line) == (2, True)


def test_ranks_that_never_come_are_named(environment, monkeypatch, caplog):
    def wait(backend, timeout):
        raise distributed.DistStoreError(
            "Timed out after 301 seconds waiting for clients. 1/2 clients joined.\n  stack"
        )

    environment({"RANK": "0", "WORLD_SIZE": "2", **MASTER})
    monkeypatch.setattr(distributed, "init_process_group", wait)
    caplog.set_level(logging.INFO)
    expected = r"^rank 0 of 2 \(RANK, WORLD_SIZE\) found no others at 127.0.0.1:29500 \(Timed out .*joined\.\): unset"
    with pytest.raises(ConfigError, match=expected), init_distributed(torch.device("cpu")):
        pass
    assert "rank 0 of 2: waiting for the others at 127.0.0.1:29500 (unset RANK" in caplog.text


@pytest.mark.slow
def test_ranks_know_whether_they_have_the_same_text(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import pathlib\n"
        "import torch\n"
        "from repa_pipe.pipeline.runtime.distributed import init_distributed\n"
        "with init_distributed(torch.device('cpu')) as ranks:\n"
        "    answers = [ranks.have_same('hf://datasets/a/b@1'), ranks.have_same(f'hf://datasets/a/b@{ranks.rank}')]\n"
        "    pathlib.Path(f'rank{ranks.rank}').write_text(str(answers))\n"
    )
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    subprocess.run([*launcher, str(script)], check=True, capture_output=True, cwd=tmp_path)
    assert [(tmp_path / f"rank{rank}").read_text() for rank in range(2)] == ["[True, False]"] * 2
