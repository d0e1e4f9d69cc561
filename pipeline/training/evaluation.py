"""Evaluation while training: `sample` and `evaluate` of checkpoints, in processes of their own.

Training does not wait for them, and its draws are not affected. They write what the commands write, so that reports and
sweeps find the images and their metrics, and a process that was stopped is continued by the next start of `train`.
"""

from __future__ import annotations

import logging
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, suppress
from pathlib import Path

from ...config import EvaluateConfig, SampleConfig, TrainConfig
from ...errors import RepaPipeError
from ...models.encoders.detectors import check_detector
from ..artifacts.images import open_reference
from ..artifacts.metric_files import metrics_file, read_metrics_file
from ..artifacts.metrics_log import EVALUATION, MetricsLog
from ..artifacts.run_folder import RunFolder
from ..artifacts.sample_files import files_of
from ..runtime.command_log import begin, problem_of
from ..runtime.distributed import VARIABLES
from ..runtime.lease import wait_until_free
from .schedule import is_due

logger = logging.getLogger(__name__)

NUM_STEPS = 50
NICENESS = 5  # training goes first where both use the same cores
POLL_S = 0.2

Found = tuple[int, dict[str, float]]  # step, metrics by column


def sampling_of(config: TrainConfig, run: RunFolder, step: int) -> SampleConfig:
    """Return how a checkpoint is sampled: with its EMA weights and without guidance, from the same noise each time."""
    return SampleConfig(
        checkpoint=str(run.checkpoint(step)),
        num_fid_samples=config.eval_images,
        num_steps=NUM_STEPS,
        cfg_scale=1.0,
        decoder=config.decoder,
        precision=config.mixed_precision or "fp32",
        device=config.eval_device or config.device,
    )


def evaluation_of(config: TrainConfig, samples: Path) -> EvaluateConfig:
    """Return how generated images are evaluated."""
    return EvaluateConfig(
        samples=str(samples),
        reference=config.eval_reference or config.store,
        detector=config.eval_detector,
        device=config.eval_device or config.device,
    )


def require_evaluation(config: TrainConfig) -> None:
    """Raise what can be found before the first evaluation: an unknown detector, a reference that cannot be read.

    Raises:
        ConfigError, SourceError, StoreError, WeightsError: as `evaluate`.
    """
    if not config.eval_every:
        return
    for name in config.eval_detector:
        check_detector(name, None)
    open_reference(evaluation_of(config, Path()))


def steps_to_evaluate(config: TrainConfig, run: RunFolder, log: MetricsLog) -> list[int]:
    """Return the checkpoints whose metrics are due and not in the log."""
    if not config.eval_every:
        return []
    steps = [int(path.stem) for path in run.checkpoints()]
    return [step for step in steps if is_evaluated(config, step) and not log.has_evaluation(step)]


def is_evaluated(config: TrainConfig, step: int) -> bool:
    """Return whether the checkpoint of a step is evaluated."""
    return is_due(config.eval_every, step, config.max_train_steps)


class OnlineEvaluation:
    """Samples and evaluates checkpoints one after the other.

    Args:
        config: the settings of the run.
        run: the run folder; the output of the commands is appended to its `eval.log`.
        steps: checkpoints to evaluate first.
    """

    def __init__(self, config: TrainConfig, run: RunFolder, steps: Iterable[int]) -> None:
        self._config, self._run = config, run
        self.pending: list[int] = []
        self._todo: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        self._done: queue.SimpleQueue[Found] = queue.SimpleQueue()
        self._process: subprocess.Popen[bytes] | None = None
        self._is_closed = False
        self._thread = threading.Thread(target=self._work, name="evaluation", daemon=True)
        for step in steps:
            self.add(step)

    def add(self, step: int) -> None:
        """Evaluate the checkpoint of a step, after those that were added before."""
        if not self._thread.is_alive():
            self._thread.start()
        self.pending.append(step)
        self._todo.put(step)

    def finished(self) -> Iterator[Found]:
        """Yield steps that have been evaluated since the last call, and their metrics; none for those that failed."""
        with suppress(queue.Empty):
            while True:
                found = self._done.get_nowait()
                self.pending.remove(found[0])
                yield found

    def close(self) -> None:
        """Stop the current process; what it has finished is kept."""
        self._is_closed = True
        self._todo.put(None)
        if self._process is not None:
            self._process.terminate()
        if self._thread.is_alive():
            self._thread.join()

    def _work(self) -> None:
        while (step := self._todo.get()) is not None and not self._is_closed:
            self._done.put((step, self._evaluate(step)))

    def _evaluate(self, step: int) -> dict[str, float]:
        try:
            wait_until_free(self._run.samples)  # a process of a training that was killed may still run
            sampling = sampling_of(self._config, self._run, step)
            evaluation = evaluation_of(self._config, files_of(sampling, Path(sampling.checkpoint)).npz)
            for command in (["sample", *sampling.flags()], ["evaluate", *evaluation.flags()]):
                problem = self._call(command)
                if problem:
                    self._warn(step, problem)
                    return {}
            record = read_metrics_file(metrics_file(evaluation))
        except (RepaPipeError, OSError) as error:
            self._warn(step, str(error))
            return {}
        return {f"{EVALUATION}{name}": value for name, value in record.metrics.items()}

    def _warn(self, step: int, problem: str) -> None:
        if not self._is_closed:
            logger.warning(
                "step %s was not evaluated (%s): training continues; its next start evaluates this step",
                f"{step:,}",
                problem,
            )

    def _call(self, arguments: list[str]) -> str:
        """Run a command; return its error in one line, or an empty string."""
        environment = {name: value for name, value in os.environ.items() if name not in VARIABLES}
        log = self._run.evaluation_log
        with log.open("ab") as file:
            start = begin(file, arguments)
            command = [sys.executable, "-m", "repa_pipe.cli", *arguments]
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, env=environment
            )
            with suppress(ProcessLookupError):
                os.setpriority(os.PRIO_PROCESS, self._process.pid, NICENESS)
            if self._is_closed:
                self._process.terminate()
            problem = problem_of(self._process.wait(), log, start)
        return f"{problem}; see {log}" if problem else ""


def evaluate_rest(config: TrainConfig, run: RunFolder, stop: Callable[[], bool]) -> None:
    """Evaluate the checkpoints of a finished run that were not evaluated, until all are or `stop` returns true."""
    last = int(run.last_checkpoint().stem)
    log = MetricsLog(run, last)
    steps = steps_to_evaluate(config, run, log)
    if not steps:
        return
    with closing(OnlineEvaluation(config, run, steps)) as evaluation:
        for step, values in until_finished(evaluation, stop):
            log.amend(step, values)
            log.write(with_copy=True)


def until_finished(evaluation: OnlineEvaluation, stop: Callable[[], bool]) -> Iterator[Found]:
    """Wait for all pending steps, and yield them as they are finished; end early when `stop` returns true."""
    yield from evaluation.finished()
    if evaluation.pending:
        logger.info("waiting for the evaluation of step %s", ", ".join(f"{step:,}" for step in evaluation.pending))
    pause = threading.Event()
    while evaluation.pending and not stop():
        pause.wait(POLL_S)
        yield from evaluation.finished()
