"""`repa-pipe ablate`: many runs from one store, then their samples, metrics, and one page that compares them.

The driver holds nothing that is not on the disk: started again, it skips what is finished and goes on with the rest.
"""

from __future__ import annotations

import shlex
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..config import AblateConfig, TrainConfig
from ..errors import ConfigError, StoreError
from ..stores import Store, open_store
from ..stores.layout import features_group, latents_group
from . import report
from .ablation import results as ablate_results
from .ablation.job import STAGES, Job, Outcome, run_job
from .ablation.results import Row, write_results
from .ablation.sweep import Sweep, read_sweep
from .reporting.tables import count_text, list_text
from .runtime.progress import say
from .training.guards import CONFIG_FILE
from .training.setup import resolve

PAGE = "report.html"


@dataclass(frozen=True, slots=True)
class AblateResult:
    """What a sweep found, and what failed."""

    rows: list[Row]
    means: list[Row]
    failed: tuple[Outcome, ...]
    out: str
    page: str | None  # None when no run has begun

    @property
    def table(self) -> str:
        """The rows over seeds, as text."""
        return ablate_results.table(self.means)


def run(
    config: AblateConfig,
    title: str | None = None,
    notes: Callable[[Sequence[str]], Sequence[str]] = lambda runs: (),
    commands: Sequence[str] = (),
) -> AblateResult:
    """Train, sample and judge every run of the sweep, then compare them.

    For the page, `notes` gives remarks on the runs' folders, and `commands` are those that came before. A run that
    fails is told of in the result, and the others go on. Raises ConfigError and StoreError, before anything is started,
    for a sweep that cannot work.
    """
    out = Path(config.out or Path("exps") / Path(config.sweep).stem)
    sweep = read_sweep(Path(config.sweep), config.store, out)
    jobs = plan(sweep, config.store)
    out.mkdir(parents=True, exist_ok=True)
    outcomes: list[Outcome] = []

    def done(outcome: Outcome) -> None:
        outcomes.append(outcome)
        state = f"failed in {outcome.stage}: {outcome.error}" if outcome.error else "finished"
        say(f"[{len(outcomes)} of {len(jobs)}] {outcome.name}: {state}")
        write_results(out, _begun(jobs), outcomes)

    with _terminated_like_interrupted():
        _drive(config, sweep, jobs, done)
    rows, means = write_results(out, _begun(jobs), outcomes)
    failed = tuple(outcome for outcome in outcomes if outcome.error)
    remarks = [f"{one.name} failed in {one.stage}: {one.error}." for one in failed]
    page = None
    if begun := [str(folder) for folder in _begun(jobs)]:
        command = ["repa-pipe", config.kind, config.sweep, *config.flags(without=("sweep",))]
        made = [*commands, shlex.join(command), *commands_of(jobs)]
        page = str(report.run(begun, str(out / PAGE), config.store, title, [*remarks, *notes(begun)], made))
    return AblateResult(rows, means, failed, str(out), page)


def plan(sweep: Sweep, store: str) -> list[Job]:
    """A job a run, with what the store decides filled in; ConfigError or StoreError for what the store lacks."""
    with open_store(store, sweep.runs[0].store_cache) as opened:
        jobs = [_job(sweep, training, opened) for training in sweep.runs]
        there = opened.group_names()
        groups = dict.fromkeys(features_group(name) for job in jobs for name in job.train.enc_type)
        if lacking := [name.split("/", 1)[1] for name in groups if name not in there]:
            raise StoreError(
                f"{store} lacks {list_text(lacking)}: run 'repa-pipe encode … "
                f"{' '.join(f'--encoder {name}' for name in lacking)}' first, or take them out of the sweep"
            )
        for name in [*groups, *dict.fromkeys(latents_group(str(job.train.vae)) for job in jobs)]:
            opened.group(name).require_complete()
    return jobs


def _job(sweep: Sweep, training: TrainConfig, store: Store) -> Job:
    try:
        resolved = resolve(training, store)
    except ConfigError as error:
        raise ConfigError(f"run {training.exp_name}: {error}") from error
    return Job(
        train=resolved,
        sample=sweep.sample,
        evaluate=sweep.evaluate,
        every_checkpoint=sweep.every_checkpoint,
        processes=sweep.resources.processes,
        gpus=float(sweep.resources.processes) if sweep.resources.gpus is None else sweep.resources.gpus,
        folder=str(Path.cwd()),
    )


def commands_of(jobs: Sequence[Job]) -> list[str]:
    """The commands that the runs consist of: all of those that are done, the training of the others."""
    found = [job.words(stage) for job in jobs for stage in (STAGES if job.is_done else STAGES[:1])]
    return [shlex.join(["repa-pipe", *words]) for words in found if words]


def _drive(config: AblateConfig, sweep: Sweep, jobs: Sequence[Job], done: Callable[[Outcome], None]) -> None:
    todo = [job for job in jobs if not job.is_done]
    for job in jobs:
        if job not in todo:
            done(Outcome(job.name))
    if todo and _wants_ray(config):
        from .ablation.on_ray import run_jobs_on_ray

        run_jobs_on_ray(todo, sweep.resources, config.ray_address, done)
        return
    if todo:
        say(f"{count_text(len(todo), 'run', 'runs')} to do, one after the other")
    for job in todo:
        done(run_job(job, watched=True))


def _wants_ray(config: AblateConfig) -> bool:
    import torch

    if config.ray is None:
        return config.ray_address is not None or torch.cuda.is_available()
    return config.ray


def _begun(jobs: Sequence[Job]) -> list[Path]:
    return [job.run_dir for job in jobs if (job.run_dir / CONFIG_FILE).exists()]


@contextmanager
def _terminated_like_interrupted() -> Iterator[None]:
    """SIGTERM as Ctrl-C: the run that is trained right now gets to write its checkpoint."""

    def stop(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    try:
        before = signal.signal(signal.SIGTERM, stop)
    except ValueError:  # not the main thread: whoever started us handles signals
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
