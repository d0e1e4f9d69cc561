"""`repa-pipe ablate`: train, sample and evaluate many runs from one store, and compare them in one report.

All state is on disk: re-running the command skips finished runs and resumes the others. A sweep of which nothing has
changed since its report was written is left as it is.
"""

from __future__ import annotations

import logging
import shlex
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

from ..config import AblateConfig, TrainConfig
from ..errors import ConfigError, StoreError
from ..stores import Store, open_store
from ..stores.files import last_change, remove_abandoned
from ..stores.hub import HubLocation, is_hub, pinned
from ..stores.layout import features_group
from .ablation import results
from .ablation.fork_server import fork_server
from .ablation.job import STAGES, Job, Outcome, run_job
from .ablation.on_ray import run_jobs_on_ray
from .ablation.results import Row, read_finished, require_results, write_results
from .ablation.sweep import Sweep, read_sweep
from .artifacts.damaged import read_or_set_aside
from .artifacts.run_folder import RunFolder
from .reporting.tables import count_text, list_text
from .runtime.gpu import has_gpu
from .runtime.lease import lease
from .runtime.signals import signals_as_interrupt
from .training.model_config import groups_of
from .training.setup import resolve

logger = logging.getLogger(__name__)

PAGE = "report.html"


@dataclass(frozen=True, slots=True)
class AblateResult:
    """The results of a sweep, and the runs that failed."""

    rows: list[Row]
    means: list[Row]
    failed: tuple[Outcome, ...]
    out: str
    page: str | None  # None when no run has started, and for a part of the sweep

    @property
    def table(self) -> str:
        """The rows over seeds as text."""
        return results.table(self.means)


def run(config: AblateConfig) -> AblateResult:
    """Train, sample and evaluate every run of the sweep, then compare them.

    Args:
        config: the settings.

    Returns:
        The results, and the runs that failed; a failure does not affect the other runs.

    Raises:
        ConfigError, StoreError: the sweep or the store is unusable; raised before any run starts.
    """
    if is_hub(config.store) and not HubLocation.parse(config.store).is_pinned:
        raise ConfigError(
            f"--store: {config.store} may change during the sweep: expected one commit, now {pinned(config.store)}"
        )
    out = out_folder(config)
    sweep = read_sweep(Path(config.sweep), config.store, out)
    jobs = plan(sweep, config.store)
    finished = _finished(out, jobs) if config.part is None else None
    if finished:
        logger.info("%s is complete; nothing to do", out / PAGE)
        return finished
    number, parts = config.part_of
    with lease(out, f"part-{number}-of-{parts}" if config.part else ""):
        return _run(config, sweep, jobs, jobs[number::parts])


def _run(config: AblateConfig, sweep: Sweep, jobs: Sequence[Job], mine: Sequence[Job]) -> AblateResult:
    """Run the jobs `mine`, then compare all jobs."""
    out = out_folder(config)
    remove_abandoned(out)  # other parts of the sweep may be writing
    read_or_set_aside(out / results.FILE, lambda: require_results(out), "the comparison is written again")
    outcomes: list[Outcome] = []

    def on_outcome(outcome: Outcome) -> None:
        outcomes.append(outcome)
        state = f"failed in {outcome.stage}: {outcome.error}" if outcome.error else "finished"
        logger.info("[%d of %d] %s: %s", len(outcomes), len(mine), outcome.name, state)
        write_results(out, _started(jobs), outcomes)

    with signals_as_interrupt():
        _run_jobs(config, sweep, mine, on_outcome)
    rows, means = write_results(out, _started(jobs), outcomes)
    failed = tuple(outcome for outcome in outcomes if outcome.error)
    remarks = [f"{one.name} failed in {one.stage}: {one.error}." for one in failed]
    from . import report  # imports torch

    page = None
    started = [str(run_folder.path) for run_folder in _started(jobs)]
    if started and config.part is None:
        command = ["repa-pipe", config.kind, config.sweep, *config.flags(without=("sweep",))]
        made = [shlex.join(command), *commands_of(jobs)]
        page = str(report.run(started, str(out / PAGE), config.store, notes=remarks, commands=made))
    return AblateResult(rows, means, failed, str(out), page)


def out_folder(config: AblateConfig) -> Path:
    """Return the folder of the runs and their comparison."""
    return Path(config.out or Path("exps") / Path(config.sweep).stem)


def _finished(out: Path, jobs: Sequence[Job]) -> AblateResult | None:
    """Return the result of a sweep if its report is complete and newer than everything that it shows."""
    page = out / PAGE
    if not page.exists() or not all(job.is_done for job in jobs):
        return None
    written = read_finished(out, _started(jobs))
    if written is None:
        return None
    if page.stat().st_mtime_ns < max(last_change(job.run_folder.path) for job in jobs):
        return None
    return AblateResult(written.runs, written.over_seeds, (), str(out), str(page))


def plan(sweep: Sweep, store: str) -> list[Job]:
    """Return one job per run, resolved against the store; raise ConfigError or StoreError for missing groups."""
    with open_store(store, sweep.runs[0].store_cache) as opened:
        jobs = [_job(sweep, training, opened) for training in sweep.runs]
        encoders = dict.fromkeys(name for job in jobs for name in job.train.enc_type)
        if lacking := [name for name in encoders if features_group(name) not in opened.group_names()]:
            raise StoreError(
                f"{store} lacks {list_text(lacking)}: run 'repa-pipe encode' with "
                f"{' '.join(f'--encoder {name}' for name in lacking)} first, or remove them from the sweep"
            )
        for group in dict.fromkeys(group for job in jobs for group in groups_of(job.train)):
            opened.group(group).require_complete()
    return jobs


def _job(sweep: Sweep, training: TrainConfig, store: Store) -> Job:
    try:
        resolved = resolve(training, store)
    except ConfigError as error:
        raise ConfigError(f"run {training.exp_name}: {error}") from error
    processes, gpus = sweep.resources.processes, sweep.resources.gpus
    return Job(
        train=resolved,
        sample=sweep.sample,
        evaluate=sweep.evaluate,
        every_checkpoint=sweep.every_checkpoint,
        processes=processes,
        gpus=float(processes) if gpus is None else gpus,
    )


def commands_of(jobs: Sequence[Job]) -> list[str]:
    """Return the commands of the runs: all of a finished run, the training of an unfinished one."""
    found = [job.command_args(stage) for job in jobs for stage in (STAGES if job.is_done else STAGES[:1])]
    return [shlex.join(["repa-pipe", *args]) for args in found if args]


def _run_jobs(config: AblateConfig, sweep: Sweep, jobs: Sequence[Job], on_outcome: Callable[[Outcome], None]) -> None:
    todo = [job for job in jobs if not job.is_done]
    for job in jobs:
        if job not in todo:
            on_outcome(Outcome(job.name))
    if todo and _wants_ray(config):
        run_jobs_on_ray(todo, sweep.resources, config.ray_address, on_outcome)
        return
    if todo:
        logger.info("%s to do, one after the other", count_text(len(todo), "run", "runs"))
    with fork_server() or nullcontext() as server:
        for job in todo:
            on_outcome(run_job(job, server=server, show_output=True))


def _wants_ray(config: AblateConfig) -> bool:
    if config.ray is None:
        return config.ray_address is not None or has_gpu()
    return config.ray


def _started(jobs: Sequence[Job]) -> list[RunFolder]:
    return [job.run_folder for job in jobs if job.run_folder.config_file.exists()]
