"""One run of a sweep: it is trained, sampled and evaluated by the same commands that a user would type.

Every command is a separate process, so that a failure affects nothing else: a fork of the sweep's `ForkServer`, or a
new interpreter for several ranks and on machines with a GPU. Finished stages are not started again.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from ...config import EvaluateConfig, SampleConfig, TrainConfig
from ...errors import RepaPipeError
from ..artifacts.hub_models import with_recorded_weights
from ..artifacts.machine_file import Machine, write_machine
from ..artifacts.metric_files import curve_file, finished_metrics
from ..artifacts.run_folder import RunFolder
from ..artifacts.sample_files import files_of, finished_samples
from ..runtime.command_log import begin, problem_of
from ..runtime.gpu import has_gpu
from ..runtime.lease import wait_until_free
from .fork_server import CLI, ForkedCommand, ForkServer

logger = logging.getLogger(__name__)

STAGES = ("train", "sample", "evaluate")
POLL_S = 0.2
_CLI = ["-m", CLI]


Command: TypeAlias = "subprocess.Popen[bytes] | ForkedCommand"


@dataclass(frozen=True, slots=True)
class Outcome:
    """The outcome of a run."""

    name: str
    stage: str = ""  # the stage that failed, if any
    error: str = ""


@dataclass(frozen=True, slots=True)
class Job:
    """One run of a sweep."""

    train: TrainConfig  # with the settings that the store determines
    sample: SampleConfig | None
    evaluate: EvaluateConfig | None
    every_checkpoint: bool
    processes: int
    gpus: float  # 0 is used instead where there is no GPU

    @property
    def name(self) -> str:
        """Name of the run, a folder in the output folder of the sweep."""
        return str(self.train.exp_name)

    @property
    def run_folder(self) -> RunFolder:
        """Folder of all files of the run."""
        return RunFolder.of(self.train)

    @property
    def sampling(self) -> SampleConfig | None:
        """Settings of `sample` for the last checkpoint, if the sweep samples."""
        return self.sample and dataclasses.replace(self.sample, checkpoint=str(self.run_folder.path))

    def evaluation(self, checkpoint: Path) -> EvaluateConfig | None:
        """Return the settings of `evaluate` for the samples of a checkpoint, if the sweep evaluates."""
        if self.sampling is None or self.evaluate is None:
            return None
        return dataclasses.replace(self.evaluate, samples=str(files_of(self.sampling, checkpoint).npz))

    def command_args(self, stage: str) -> list[str] | None:
        """Return the arguments of `repa-pipe` for a stage, or None if the sweep does not have this stage."""
        sampling = self.sampling
        if stage == "train":
            return ["train", *self.train.flags()]
        if sampling is None or (stage == "sample" and self.every_checkpoint):
            return None  # with every_checkpoint, the stage that evaluates also samples
        if stage == "sample":
            return ["sample", *sampling.flags()]
        if self.evaluate is None:
            return None
        if self.every_checkpoint:
            evaluation = self.evaluate.flags(without=("samples",))
            sampled = sampling.flags(without=("checkpoint", "out", "device"))
            return ["evaluate-checkpoints", str(self.run_folder.path), *evaluation, *sampled]
        evaluated = self.evaluation(self.run_folder.last_checkpoint())
        return ["evaluate", *evaluated.flags()] if evaluated else None

    def is_finished(self, stage: str) -> bool:
        """Return whether a stage is complete."""
        checkpoints = self.run_folder.checkpoints()
        if not checkpoints:
            return False
        if stage == "train":
            has_steps = int(checkpoints[-1].stem) >= self.train.max_train_steps
            return (
                has_steps
                and self.run_folder.has_config()
                and self.run_folder.read_config().same_result_as(with_recorded_weights(self.train, self.run_folder))
            )
        if stage == "sample":
            return self._is_sampled(checkpoints[-1])
        wanted = checkpoints if self.every_checkpoint else checkpoints[-1:]
        return self._has_curve() and all(map(self._is_evaluated, wanted))

    @property
    def is_done(self) -> bool:
        """Whether all stages are finished; False if this cannot be determined: the commands then report why."""
        try:
            return all(self.command_args(stage) is None or self.is_finished(stage) for stage in STAGES)
        except (RepaPipeError, OSError):
            return False

    def _is_sampled(self, checkpoint: Path) -> bool:
        sampling = self.sampling
        if sampling is None:
            return True
        return finished_samples(dataclasses.replace(sampling, checkpoint=str(checkpoint))) is not None

    def _is_evaluated(self, checkpoint: Path) -> bool:
        evaluated = self.evaluation(checkpoint)
        return self._is_sampled(checkpoint) and (evaluated is None or finished_metrics(evaluated) is not None)

    def _has_curve(self) -> bool:
        if not (self.every_checkpoint and self.sampling and self.evaluate):
            return True
        return curve_file(self.sampling, self.evaluate).exists()


def run_job(
    job: Job, *, server: ForkServer | None = None, show_output: bool = False, stop: threading.Event | None = None
) -> Outcome:
    """Run the unfinished stages of a job.

    Args:
        job: the run.
        server: starts the commands. None: every command starts a new interpreter.
        show_output: whether to log the output of its commands.
        stop: when set, the current command is terminated; `train` writes a checkpoint first.

    Returns:
        The outcome; a failure is not raised.
    """
    stage = STAGES[0]
    run_folder = job.run_folder
    try:
        run_folder.path.mkdir(parents=True, exist_ok=True)
        wait_until_free(run_folder.path)  # a command of a killed sweep may still run
        for stage in STAGES:
            args = job.command_args(stage)
            if args is None or job.is_finished(stage):
                continue
            if stage == "train":
                write_machine(run_folder, Machine(_gpus_here(job)))
            logger.info("%s: %s, log in %s", job.name, stage, run_folder.log)
            forks = server if stage != "train" or job.processes == 1 else None
            start = functools.partial(_start, forks, _launcher(job, stage), args)
            error = _call(start, args, run_folder.log, show_output, stop)
            if error:
                return Outcome(job.name, stage, error)
    except (RepaPipeError, OSError) as error:
        return Outcome(job.name, stage, str(error))
    return Outcome(job.name)


def _gpus_here(job: Job) -> float:
    """Return the number of GPUs that the training uses on this machine."""
    return job.gpus if job.train.device != "cpu" and has_gpu() else 0.0


def _launcher(job: Job, stage: str) -> list[str]:
    if job.processes == 1 or stage != "train":
        return [sys.executable, *_CLI]
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(job.processes)]
    return [sys.executable, *torchrun, *_CLI]


def _start(server: ForkServer | None, launcher: list[str], args: list[str], log: int) -> Command:
    """Start a command that writes to the file descriptor `log`."""
    if server is not None:
        return server.start(args, log)
    return subprocess.Popen(launcher + args, stdin=subprocess.DEVNULL, stdout=log, stderr=log)


def _call(
    start_command: Callable[[int], Command],
    args: list[str],
    log: Path,
    show_output: bool,
    stop: threading.Event | None,
) -> str:
    """Run a command with its output in the log; return its error in one line, or an empty string."""
    with log.open("ab") as file:
        start = begin(file, args)
        process = start_command(file.fileno())
        try:
            _follow(process, log, start, show_output, stop)
        except BaseException:
            process.terminate()  # `train` writes a checkpoint
            process.wait()
            raise
    return problem_of(process.returncode, log, start)


def _follow(process: Command, log: Path, start: int, show_output: bool, stop: threading.Event | None) -> None:
    """Wait for a command; if `show_output`, log its output except for results in JSON.

    The output is read from the file and not from a pipe, because a closed pipe would end the command with this process.
    """
    with log.open("rb") as file:
        file.seek(start)
        ended = False
        while not ended:
            time.sleep(POLL_S)
            ended = process.poll() is not None
            if stop is not None and stop.is_set():
                process.terminate()
            while show_output and (line := file.readline()).endswith(b"\n"):
                start = file.tell()
                if line[:1] not in b" {}\n":
                    logger.info("  %s", line.decode(errors="replace").rstrip())
            file.seek(start)
