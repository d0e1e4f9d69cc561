"""Every stop and every fault of a training saves the last complete step, on one rank and on several."""

import json
import multiprocessing
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from repa_pipe.errors import CheckpointError, StoreError
from repa_pipe.models.ema import Ema
from repa_pipe.pipeline import train
from repa_pipe.pipeline.artifacts.run_folder import RunFolder
from repa_pipe.pipeline.artifacts.run_record import read_run_record
from repa_pipe.pipeline.runtime.distributed import DistributedContext
from repa_pipe.pipeline.runtime.signals import INTERRUPTED, STOP_SIGNALS
from repa_pipe.pipeline.training import agreement
from repa_pipe.pipeline.training.objective import Objective
from repa_pipe.pipeline.training.sample_grid import SampleGrid
from repa_pipe.stores import reading_process

NEVER = {"checkpointing_steps": 100_000, "log_steps": 100_000}  # only a stop saves, and no row of the log is due


@pytest.fixture
def in_step(monkeypatch):
    """Call a function in a step of a training, counted from 1, before it has computed anything."""

    def install(step, function):
        forward, calls = Objective.forward, []

        def count(self, inputs):
            calls.append(None)
            if len(calls) == step:
                function()
            return forward(self, inputs)

        monkeypatch.setattr(Objective, "forward", count)

    return install


def saved_steps(config):
    return [int(path.stem) for path in RunFolder(Path(config.output_dir) / config.exp_name).checkpoints()]


def raise_(error):
    raise error


# --- one rank ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_every_stop_signal_saves_a_checkpoint_after_the_step(config_of, in_step, number):
    config = config_of(**NEVER)
    in_step(3, lambda: os.kill(os.getpid(), number))
    result = train.run(config)
    assert (result.step, result.interrupted, saved_steps(config)) == (3, True, [3])


def test_a_stopped_run_resumes_bit_identically_and_is_recorded_as_stopped(
    config_of, in_step, weights_of, assert_same_weights
):
    whole = train.run(config_of(exp_name="whole"))
    in_step(3, lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert train.run(config_of()).interrupted
    resumed = train.run(config_of())
    assert not resumed.interrupted
    assert_same_weights(weights_of(whole), weights_of(resumed))
    sessions = read_run_record(RunFolder(Path(resumed.run))).sessions
    assert [(each.state, each.end_step) for each in sessions] == [("stopped", 3), ("finished", 6)]


def test_a_signal_in_the_last_step_leaves_a_finished_run(config_of, in_step):
    in_step(6, lambda: os.kill(os.getpid(), signal.SIGTERM))
    result = train.run(config_of())
    assert (result.step, result.interrupted) == (6, False)


def test_a_signal_ends_a_validation(config_of, in_step):
    config = config_of(val_fraction=0.4, val_steps=2, batch_size=5, **NEVER)
    in_step(4, lambda: os.kill(os.getpid(), signal.SIGTERM))  # the second of four batches of the validation at step 2
    result = train.run(config)
    assert (result.step, result.interrupted) == (2, True)


@pytest.mark.slow
def test_a_store_that_fails_while_it_is_read_costs_no_step(config_of, in_step, weights_of, assert_same_weights):
    options = {"max_train_steps": 20, "checkpointing_steps": 100_000}
    whole = train.run(config_of(exp_name="whole", **options))
    config = config_of(**options)
    contents = {file: file.read_bytes() for file in Path(config.store).glob("features/enc/tokens/c/*/*/*")}

    def damage():
        for file in contents:
            os.truncate(file, 5)

    in_step(2, damage)
    with pytest.raises(StoreError):
        train.run(config)
    (step,) = saved_steps(config)
    assert 2 <= step < 20
    for file, data in contents.items():
        file.write_bytes(data)
    resumed = train.run(config)
    assert read_run_record(RunFolder(Path(resumed.run))).sessions[-1].start_step == step
    assert_same_weights(weights_of(whole), weights_of(resumed))


def reader():
    return multiprocessing.active_children()[0].pid


def test_a_reading_process_that_dies_costs_no_step(config_of, in_step):
    config = config_of(reader_process=True, max_train_steps=40, **NEVER)
    in_step(2, lambda: os.kill(reader(), signal.SIGKILL))
    with pytest.raises(StoreError, match=r"reads the store \(PID \d+\) has ended with exit code -9"):
        train.run(config)
    (step,) = saved_steps(config)
    assert 2 <= step < 40


def test_a_reading_process_that_hangs_costs_no_step(config_of, in_step, monkeypatch):
    monkeypatch.setattr(reading_process, "READ_LIMIT_S", 1.0)
    config = config_of(reader_process=True, max_train_steps=40, **NEVER)
    in_step(2, lambda: os.kill(reader(), signal.SIGSTOP))
    with pytest.raises(StoreError, match=r"T \(stopped\)\) has not answered for 1 s"):
        train.run(config)
    assert len(saved_steps(config)) == 1


@pytest.mark.parametrize("is_stopped", [False, True])
def test_a_batch_that_cannot_be_read_after_a_signal_is_not_needed(is_stopped):
    def read():
        raise StoreError("the server is gone")

    decisions = agreement.Agreement(DistributedContext(0, 1), lambda: is_stopped)
    if is_stopped:
        assert decisions.fetch(read) is None
    else:
        with pytest.raises(StoreError, match="the server is gone"):
            decisions.fetch(read)
    assert decisions.failed != is_stopped


@pytest.mark.slow
def test_a_wait_for_a_batch_is_reported_once_and_ends_with_a_signal(config_of, in_step, monkeypatch, caplog):
    config = config_of(reader_process=True, max_train_steps=40, **NEVER)

    def hang():
        monkeypatch.setattr(agreement, "NOTICE_S", 0.5)
        os.kill(reader(), signal.SIGSTOP)
        threading.Timer(4.0, os.kill, (os.getpid(), signal.SIGINT)).start()

    in_step(2, hang)
    result = train.run(config)
    assert result.interrupted
    assert saved_steps(config) == [result.step]
    assert caplog.text.count("no batch for 0.5 s: still waiting for the disk or the server of the store") == 1


def test_an_error_in_a_step_is_raised_after_the_steps_before_it_are_saved(config_of, in_step):
    config = config_of(**NEVER)
    in_step(4, lambda: raise_(ValueError("some error")))
    with pytest.raises(ValueError, match=r"^some error$"):
        train.run(config)
    assert saved_steps(config) == [3]
    assert read_run_record(RunFolder(Path(config.output_dir) / "run")).sessions[-1].error == "some error"


def test_an_error_in_a_grid_of_images_is_raised_after_its_step_is_saved(config_of, monkeypatch):
    config = config_of(sampling_steps=2, **NEVER)
    monkeypatch.setattr(SampleGrid, "draw", lambda *_: raise_(ValueError("no grid")))
    with pytest.raises(ValueError, match=r"^no grid$"):
        train.run(config)
    assert saved_steps(config) == [2]


def test_nothing_is_saved_of_a_step_that_failed_halfway(config_of, monkeypatch, caplog):
    config, update = config_of(**NEVER), Ema.update
    calls = iter(range(1, 7))
    monkeypatch.setattr(
        Ema, "update", lambda self, model: raise_(KeyError("half")) if next(calls) == 4 else update(self, model)
    )
    with pytest.raises(KeyError, match="half"):
        train.run(config)
    assert saved_steps(config) == []
    assert "no checkpoint of step 3: its state is not complete" in caplog.text


def test_nothing_is_saved_of_a_state_that_is_not_finite(config_of, in_step, monkeypatch):
    config, forward = config_of(**NEVER), Objective.forward
    monkeypatch.setattr(Objective, "forward", lambda self, inputs: forward(self, inputs) * float("nan"))
    in_step(4, lambda: raise_(ValueError("some error")))
    with pytest.raises(ValueError, match="some error"):
        train.run(config)
    assert saved_steps(config) == []


def test_a_save_that_fails_does_not_hide_the_error_before_it(config_of, in_step, monkeypatch, caplog):
    config = config_of(**NEVER)
    monkeypatch.setattr(torch, "save", lambda *_: raise_(OSError("second error")))
    in_step(4, lambda: raise_(ValueError("first error")))
    with pytest.raises(ValueError, match=r"^first error$"):
        train.run(config)
    assert "no checkpoint of step 3: " in caplog.text
    assert "second error" in caplog.text


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 100 MB, less than two checkpoints of 67 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=100m", "none", folder], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("only root can mount a file system")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_full_disk_leaves_earlier_checkpoints_and_no_half_file_and_names_the_bytes(config_of, small_disk, caplog):
    config = config_of(output_dir=str(small_disk))
    with pytest.raises(
        CheckpointError, match=r"0000006\.pt could not be written .* needs 0\.\d+ GB, 0\.\d+ GB are free"
    ):
        train.run(config)
    assert [path.name for path in (small_disk / "run/checkpoints").iterdir()] == ["0000003.pt"]
    assert caplog.text.count("could not be written") == 0  # it is the error, not a warning as well


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"microbatches": 4}, {"checkpoint_blocks": True}, {"reader_process": True}])
def test_what_only_changes_rounding_may_change_on_resume_and_is_recorded(config_of, weights_of, options):
    whole = weights_of(train.run(config_of(exp_name="whole")))
    train.run(config_of(max_train_steps=3))
    resumed = train.run(config_of(**options))
    assert (resumed.step, resumed.interrupted) == (6, False)
    for name, value in weights_of(resumed).items():
        torch.testing.assert_close(value, whole[name], rtol=1e-3, atol=5e-5)
    first, second = read_run_record(RunFolder(Path(resumed.run))).sessions
    flag = f"--{next(iter(options)).replace('_', '-')}"
    assert (flag in first.command, flag in second.command) == (False, True)


# --- several ranks -----------------------------------------------------------------------------------------------


class Ranks:
    """Two processes of `train`, started without torchrun, so that their exit codes and signals are their own."""

    def __init__(self, config, *flags):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        variables = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
        words = [sys.executable, "-m", "repa_pipe.cli", config.kind, *config.flags(), *flags]
        self.run = RunFolder(Path(config.output_dir) / config.exp_name)
        self.processes = [
            subprocess.Popen(
                words,
                env=os.environ | variables | {"RANK": str(rank)},
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
            )
            for rank in range(2)
        ]

    def wait_for(self, condition):
        for _ in range(600):
            if condition():
                return
            assert [process.poll() for process in self.processes] == [None, None], self.end()
            time.sleep(0.1)
        raise AssertionError("nothing happened")

    def end(self):
        """Wait for both; return their exit codes and errors."""
        errors = [process.communicate(timeout=60)[1] for process in self.processes]
        return [process.returncode for process in self.processes], errors


@pytest.fixture
def ranks_of(config_of):
    started = []

    def start(**options):
        started.append(Ranks(config_of(**NEVER | {"max_train_steps": 100_000} | options)))
        return started[-1]

    yield start
    for ranks in started:
        for process in ranks.processes:
            process.kill()


def reader_of(pid):
    """Return the reading process of a rank, next to multiprocessing's resource tracker."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    (found,) = [child for child in children if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()]
    return int(found)


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"fsdp": True}], ids=["ddp", "fsdp"])
def test_a_signal_to_one_rank_stops_all_with_one_checkpoint_within_ten_seconds(ranks_of, options):
    ranks = ranks_of(**options)
    ranks.wait_for(ranks.run.record_file.exists)
    time.sleep(5.0)  # for some steps
    sent = time.monotonic()
    ranks.processes[1].send_signal(signal.SIGUSR1)
    ranks.wait_for(ranks.run.checkpoints)
    assert time.monotonic() - sent < 10
    codes, errors = ranks.end()
    assert codes == [INTERRUPTED, INTERRUPTED]
    (checkpoint,) = ranks.run.checkpoints()
    assert int(checkpoint.stem) > 0
    assert "checkpoint saved; re-run the same command to resume" in errors[0]


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"fsdp": True}], ids=["ddp", "fsdp"])
def test_a_rank_that_cannot_read_its_batch_ends_all_after_a_checkpoint(ranks_of, options):
    ranks = ranks_of(reader_process=True, milestone_steps=20, **options)
    ranks.wait_for(ranks.run.checkpoints)
    before = int(ranks.run.last_checkpoint().stem)
    os.kill(reader_of(ranks.processes[1].pid), signal.SIGKILL)
    codes, errors = ranks.end()
    assert codes == [2, 2]
    assert "rank 1 has failed: its message states why; re-run the same command to resume" in errors[0]
    assert re.search(r"reads the store \(PID \d+\) has ended with exit code -9", errors[1])
    assert int(ranks.run.last_checkpoint().stem) > before
    assert not any("Traceback" in text for text in errors)


@pytest.mark.slow
def test_a_rank_that_is_killed_ends_the_other_in_one_line_after_a_checkpoint(ranks_of):
    ranks = ranks_of(milestone_steps=20)
    ranks.wait_for(ranks.run.checkpoints)
    before = int(ranks.run.last_checkpoint().stem)
    time.sleep(1.0)
    ranks.processes[1].kill()
    codes, errors = ranks.end()
    assert codes == [2, -signal.SIGKILL]
    assert "another rank has ended or does not answer" in errors[0]
    assert "Traceback" not in errors[0]
    assert int(ranks.run.last_checkpoint().stem) > before


@pytest.mark.slow
def test_torchrun_that_is_terminated_leaves_a_checkpoint_of_the_next_step(config_of):
    config = config_of(**NEVER | {"max_train_steps": 100_000, "milestone_steps": 2, "reader_process": True})
    words = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone", "-m"]
    words += ["repa_pipe.cli", config.kind, *config.flags()]
    process = subprocess.Popen(words, env=os.environ | {"OMP_NUM_THREADS": "1"}, stderr=subprocess.PIPE, text=True)
    for _ in range(600):
        if saved_steps(config):
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    sent = time.monotonic()
    _, errors = process.communicate(timeout=60)
    assert time.monotonic() - sent < 15
    assert process.returncode == 1  # of torchrun, whatever its ranks end with
    assert errors.count("checkpoint saved; re-run the same command to resume") >= 1
    assert saved_steps(config)[-1] >= 2


@pytest.mark.slow
def test_a_signal_to_the_driver_stops_ranks_on_ray_with_a_checkpoint(config_of):
    pytest.importorskip("ray.train", exc_type=ImportError)
    config = config_of(**NEVER | {"max_train_steps": 100_000, "milestone_steps": 2}, ray=True, ray_workers=2)
    words = [sys.executable, "-m", "repa_pipe.cli", config.kind, *config.flags()]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    for _ in range(1200):
        if saved_steps(config) or process.poll() is not None:
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    out, errors = process.communicate(timeout=60)
    assert process.returncode == INTERRUPTED, errors
    assert "checkpoint saved; re-run the same command to resume" in errors
    assert json.loads(out)["step"] == saved_steps(config)[-1]
    assert not list(Path(config.output_dir).glob(".ray-*"))
