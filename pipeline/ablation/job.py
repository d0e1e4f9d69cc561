"""One run of a sweep: its training, samples and metrics, each by the command that a person would type.

Every command is a process of its own, so that whatever ends it ends nothing else. What is finished is not started.
"""

from __future__ import annotations

import dataclasses
import fcntl
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ...config import EvaluateConfig, SampleConfig, TrainConfig, read_config
from ...errors import RepaPipeError
from ...stores.files import write_json
from .. import evaluate, sample
from .. import evaluate_checkpoints as evaluate_run
from ..artifacts.checkpoints import list_checkpoints
from ..reporting.runs import MACHINE_FILE
from ..runtime.progress import say
from ..training.guards import CONFIG_FILE

LOG, LOCK = "log.txt", ".lock"
STAGES = ("train", "sample", "evaluate")
_CLI = ["-m", "repa_pipe.cli"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended."""

    name: str
    stage: str = ""  # the one that failed
    error: str = ""


@dataclass(frozen=True, slots=True)
class Job:
    """One run, and the folder that its paths start from."""

    train: TrainConfig  # resolved: the store's own choices stand in it
    sample: SampleConfig | None
    evaluate: EvaluateConfig | None
    every_checkpoint: bool
    processes: int
    gpus: float  # where there are some
    folder: str

    @property
    def name(self) -> str:
        """The run's folder below the sweep's."""
        return str(self.train.exp_name)

    @property
    def run_dir(self) -> Path:
        """Everything that the run makes."""
        return Path(self.train.output_dir) / self.name

    @property
    def sampling(self) -> SampleConfig | None:
        """How its last checkpoint is sampled."""
        return self.sample and dataclasses.replace(self.sample, checkpoint=str(self.run_dir))

    def judging(self, checkpoint: Path) -> EvaluateConfig | None:
        """How the samples of a checkpoint are judged."""
        if self.sampling is None or self.evaluate is None:
            return None
        return dataclasses.replace(self.evaluate, samples=str(sample.default_out(self.sampling, checkpoint)))

    def words(self, stage: str) -> list[str] | None:
        """The words after `repa-pipe` of a stage; None for one that the sweep does not have."""
        sampling = self.sampling
        if stage == "train":
            return ["train", *self.train.flags()]
        if sampling is None or (stage == "sample" and self.every_checkpoint):
            return None  # with every checkpoint, the stage that judges samples too
        if stage == "sample":
            return ["sample", *sampling.flags()]
        if self.evaluate is None:
            return None
        if self.every_checkpoint:
            judging = self.evaluate.flags(without=("samples",))
            return [
                *("evaluate", str(self.run_dir), "--every-checkpoint"),
                *(*judging, *sampling.flags(without=("checkpoint", "out", "device"))),
            ]
        judged = self.judging(list_checkpoints(self.run_dir)[-1])
        return ["evaluate", *judged.flags()] if judged else None

    def is_finished(self, stage: str) -> bool:
        """Whether a stage has nothing left to do."""
        there = list_checkpoints(self.run_dir)
        if not there:
            return False
        if stage == "train":
            config = TrainConfig.from_json(read_config(self.run_dir / CONFIG_FILE))
            return int(there[-1].stem) >= self.train.max_train_steps and not config.differences(self.train)
        if stage == "sample":
            return self._is_sampled(there[-1])
        return self._has_curve() and all(map(self._is_judged, there if self.every_checkpoint else there[-1:]))

    @property
    def is_done(self) -> bool:
        """Whether nothing is left of it; what cannot be told is left to its commands, which say why."""
        try:
            return all(self.words(stage) is None or self.is_finished(stage) for stage in STAGES)
        except (RepaPipeError, OSError):
            return False

    def _is_sampled(self, checkpoint: Path) -> bool:
        sampling = self.sampling
        if sampling is None:
            return True
        return sample.finished(dataclasses.replace(sampling, checkpoint=str(checkpoint))) is not None

    def _is_judged(self, checkpoint: Path) -> bool:
        judged = self.judging(checkpoint)
        return self._is_sampled(checkpoint) and (judged is None or evaluate.finished(judged) is not None)

    def _has_curve(self) -> bool:
        if not (self.every_checkpoint and self.sampling and self.evaluate):
            return True
        return evaluate_run.default_out(self.sampling, self.evaluate).exists()


def run_job(job: Job, watched: bool = False) -> Outcome:
    """Do what is left of a run; a failure is an outcome, not an error. `watched`: repeat what its commands say."""
    os.chdir(job.folder)
    stage = STAGES[0]
    try:
        with _alone(job.run_dir) as lock:
            for stage in STAGES:
                words = job.words(stage)
                if words is None or job.is_finished(stage):
                    continue
                if stage == "train":
                    write_json(job.run_dir / MACHINE_FILE, {"gpus": _gpus_here(job)})
                say(f"{job.name}: {stage}, log in {job.run_dir / LOG}")
                error = _call(_launcher(job, stage) + words, words, job.run_dir / LOG, lock, watched)
                if error:
                    return Outcome(job.name, stage, error)
    except (RepaPipeError, OSError) as error:
        return Outcome(job.name, stage, str(error))
    return Outcome(job.name)


def _gpus_here(job: Job) -> float:
    """The GPUs that the training gets of this machine."""
    import torch

    return job.gpus if torch.cuda.is_available() and job.train.device != "cpu" else 0.0


def _launcher(job: Job, stage: str) -> list[str]:
    if job.processes == 1 or stage != "train":
        return [sys.executable, *_CLI]
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(job.processes)]
    return [sys.executable, *torchrun, *_CLI]


def _call(command: list[str], words: list[str], log: Path, lock: int, watched: bool) -> str:
    """Run a command to its end, its output in the log; what went wrong, in one line, or nothing."""
    with log.open("ab") as file:
        file.write(f"$ {shlex.join(['repa-pipe', *words])}\n".encode())
        file.flush()
        start = file.tell()
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, pass_fds=(lock,))
        try:
            if watched:
                _repeat(process, log, start)
            code = process.wait()
        except BaseException:  # we are told to stop: let training write its checkpoint
            process.terminate()
            process.wait()
            raise
    if not code:
        return ""
    lines = log.read_bytes()[start:].decode(errors="replace").strip().splitlines() or ["no output"]
    told = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return f"exit code {code}: {(told or lines)[-1]}"


def _repeat(process: subprocess.Popen[bytes], log: Path, start: int) -> None:
    """Say what a command writes into its log, results in JSON left out, until it ends.

    From the file, not through a pipe: a pipe would end the command together with us.
    """
    with log.open("rb") as file:
        file.seek(start)
        ended = False
        while not ended:
            time.sleep(0.2)
            ended = process.poll() is not None
            while (line := file.readline()).endswith(b"\n"):
                start = file.tell()
                if line[:1] not in b" {}\n":
                    say(f"  {line.decode(errors='replace').rstrip()}")
            file.seek(start)


@contextmanager
def _alone(run_dir: Path) -> Iterator[int]:
    """Hold the run's lock. Its commands inherit it: one that outlives a killed sweep is waited for, not doubled."""
    run_dir.mkdir(parents=True, exist_ok=True)
    with (run_dir / LOCK).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"{run_dir.name}: waiting for a process that still works on it, from a sweep that was killed")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield file.fileno()
