"""The command line: parse, build one config, call one stage. Errors of the package become one line and exit code 2."""

from __future__ import annotations

import atexit
import dataclasses
import gc
import io
import logging
import os
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click

from . import __version__
from .cli_store import plug_in_option, store
from .config import (
    OBJECTIVE,
    AblateConfig,
    Config,
    EncodeConfig,
    EvaluateConfig,
    ExportConfig,
    NearestConfig,
    PlanConfig,
    ProbeConfig,
    RankConfig,
    SampleConfig,
    TrainConfig,
    flag,
    read_recipe,
    recipe_names,
)
from .errors import RepaPipeError
from .options import (
    PATH_TEXT,
    OrderedGroup,
    SectionOption,
    config_file_options,
    config_of,
    defaults_from,
    given,
    options_of,
)
from .pipeline.runtime.console import NOTICE, echo, echo_json, is_first_rank, log_to_stderr
from .pipeline.runtime.descriptors import raise_descriptor_limit
from .pipeline.runtime.home import ensure_home
from .pipeline.runtime.machine import version_text
from .pipeline.runtime.memory import share_one_arena
from .pipeline.runtime.signals import INTERRUPTED, signals_as_interrupt

logger = logging.getLogger(f"{__package__}.cli")  # with `python -m`, __name__ is not below the logger of the package

# Options of `sample` that `evaluate-checkpoints` also has; it sets the others itself.
_NOT_SAMPLING = ("checkpoint", "out", "device", "png_folder")
_SAMPLING = [field.name for field in dataclasses.fields(SampleConfig) if field.name not in _NOT_SAMPLING]


def _print_version(context: click.Context, parameter: click.Parameter, value: bool) -> None:
    if value:
        echo(f"repa-pipe, version {__version__}\n{version_text()}")
        context.exit()


@click.group(cls=OrderedGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_version,
    help="Show versions and exit.",
)
def cli() -> None:
    """Encode images into a store once, then train SiT models with representation alignment (REPA) from it."""


def stage_command(config: type[Config], *positional: str) -> Callable[[Callable[..., None]], click.Command]:
    """Make a function of a config, and of the options declared below this decorator, a command of the group.

    Args:
        config: its fields become options.
        positional: names of required fields that may also be given by position.
    """

    def decorate(function: Callable[..., None]) -> click.Command:
        def command(dry_run: bool, **options: Any) -> None:
            values = config_of(config, options)
            if dry_run:
                _print_preview(values)
            else:
                function(values)

        command.__doc__ = function.__doc__
        command.__click_params__ = getattr(function, "__click_params__", [])  # type: ignore[attr-defined]
        decorated = options_of(config, positional=positional)(config_file_options(config)(command))
        return cli.command(function.__name__, positional=positional)(decorated)

    return decorate


def _print_preview(*configs: Config) -> None:
    from .pipeline.dry_run.stages import preview

    echo(preview(*configs).describe(), nl=False)


@stage_command(PlanConfig)
def plan(config: PlanConfig) -> None:
    """Estimate the cost of a store and when it pays off.

    Prints the size of the store, the hours of encoding, and the number of training epochs after which encoding has paid
    off, compared with running the encoder online.
    """
    from .pipeline import plan as stage

    echo(stage.run(config).describe())


@stage_command(EncodeConfig, "source", "store")
def encode(config: EncodeConfig) -> None:
    """Encode images into a store.

    Stores the moments of a VAE and the patch tokens of encoders. Every image is decoded once and passes through all
    models, on this machine or on Ray. Re-run the same command to resume; a finished store is left unchanged.
    """
    from .pipeline import encode as stage

    result = stage.run(config)
    echo_json(result.as_json())
    for failed in result.failed:
        logger.error("shard %d failed in every attempt: %s", failed.shard, failed.cause)
    if result.failed:
        logger.error("all other shards are complete; re-run the same command to retry the failed ones")
        sys.exit(1)


def _print_result(result: Any) -> None:
    """Print a result, a dataclass that is the same on all ranks, as JSON."""
    if is_first_rank():
        echo_json(dataclasses.asdict(result))


def _use_recipe(context: click.Context, parameter: click.Parameter, value: str | None) -> None:
    if value is not None:
        defaults_from(context, read_recipe(value).settings, override=False)


@stage_command(TrainConfig, "store")
@click.option(
    "--recipe",
    cls=SectionOption,
    section=OBJECTIVE,
    is_eager=True,
    expose_value=False,
    callback=_use_recipe,
    help=f"Settings of a method: {', '.join(recipe_names())} (see `repa-pipe recipes`), or a .toml file; flags and "
    "--config override it. Default: none.",
)
def train(config: TrainConfig) -> None:
    """Train SiT with REPA from a store.

    Encoders and the VAE do not run; their output is read from the store. Re-run the same command to resume.
    """
    from .pipeline import train as stage

    result = stage.run(config)
    _print_result(result)
    if result.interrupted:
        logger.warning("checkpoint saved; re-run the same command to resume", extra=NOTICE)
        sys.exit(INTERRUPTED)


@stage_command(SampleConfig, "checkpoint")
def sample(config: SampleConfig) -> None:
    """Generate images from a checkpoint.

    Writes an .npz file and a grid. Image i depends on the seed and on i, not on the batch size or the number of
    processes. Re-run the same command to resume.
    """
    from .pipeline import sample as stage

    _print_result(stage.run(config))


@stage_command(ExportConfig, "checkpoint")
def export(config: ExportConfig) -> None:
    """Export a checkpoint to share its model.

    Writes the weights under their published names, with the settings that sampling needs. An output that exists with
    other contents is left unchanged.
    """
    from .pipeline import export as stage

    _print_result(stage.run(config))


@cli.command(positional=("samples",))
@options_of(EvaluateConfig, positional=("samples",))
@click.option("--every-checkpoint", is_flag=True, hidden=True)  # the spelling of version 0.1
@options_of(SampleConfig, without=_NOT_SAMPLING, hidden=True)
@config_file_options(EvaluateConfig)
@click.pass_context
def evaluate(context: click.Context, /, every_checkpoint: bool, dry_run: bool, **options: Any) -> None:
    """Compute FID, precision, recall and other metrics.

    Compares generated images with a reference. For a run folder, evaluates the images that were generated from its last
    checkpoint. To evaluate every checkpoint, use `evaluate-checkpoints`.
    """
    if every_checkpoint:
        context.invoke(evaluate_checkpoints, checkpoint=options.pop("samples"), dry_run=dry_run, **options)
        return
    foreign = given(context, _SAMPLING)
    if foreign:
        raise click.UsageError(f"{flag(foreign[0])} is an option of 'repa-pipe evaluate-checkpoints'.")
    config = config_of(EvaluateConfig, options)
    if dry_run:
        _print_preview(config)
    else:
        _evaluate_images(config)


def _evaluate_images(config: EvaluateConfig) -> None:
    from .pipeline import evaluate as stage

    result = stage.run(config)
    width = max(len(name) for name in result.metrics)
    for name, value in result.metrics.items():
        margin = f" ± {result.margins[name]:.4f}" if name in result.margins else ""
        echo(f"{name:<{width}}  {value:.4f}{margin}")
    for name, detector in result.detectors.items():
        if "rule" in detector:  # metrics of earlier versions do not have it
            echo(f"{name}: {detector['library']}, {detector['rule']}")
    echo(f"{result.num_samples:,} images compared with {result.reference}; saved to {result.out}")
    for warning in result.warnings:
        logger.warning(warning)


@cli.command("evaluate-checkpoints", positional=("checkpoint",))
@click.option("--checkpoint", cls=SectionOption, section="Model", help="Run folder.  [required]")
@options_of(EvaluateConfig, without=("samples", "out"))
@click.option(
    "--out", cls=SectionOption, section="Output", help="Output JSON file. Default: by-step/<settings>.json in RUN."
)
@options_of(SampleConfig, without=_NOT_SAMPLING)
@config_file_options(EvaluateConfig, SampleConfig, without=("samples", "png_folder"))
def evaluate_checkpoints(checkpoint: str, dry_run: bool, **options: Any) -> None:
    """Sample and evaluate every checkpoint of a run.

    RUN is a run folder. Writes a table and a figure of metrics over steps. Re-run the same command to resume, or to add
    newer checkpoints.
    """
    from .pipeline import evaluate_checkpoints as stage

    sampling = SampleConfig(
        checkpoint=checkpoint, device=options["device"], **{name: options[name] for name in _SAMPLING}
    )
    evaluation = config_of(EvaluateConfig, {**options, "samples": checkpoint})
    if dry_run:
        _print_preview(sampling, evaluation)
        return
    result = stage.run(sampling, evaluation)
    names = list(result.rows[-1]["metrics"])
    echo("  ".join([f"{'step':>9}", *names]))
    for row in result.rows:
        values = [f"{row['metrics'].get(name, float('nan')):>{len(name)}.4f}" for name in names]
        echo("  ".join([f"{row['step']:>9,}", *values]))
    echo(f"saved to {result.json} and {result.page}")
    for warning in dict.fromkeys(warning for row in result.rows for warning in row["warnings"]):
        logger.warning(warning)


@stage_command(NearestConfig, "samples", "store")
def nearest(config: NearestConfig) -> None:
    """Find the training images nearest to samples.

    Shows whether a model copies training images: compares the distances of generated images to training images with
    those between training images. The search covers all samples of a store, by the tokens of one of its encoders.
    """
    from .pipeline import nearest as stage

    result = stage.run(config)
    echo(result.table)
    echo(f"saved to {result.json} and {result.page}")


@stage_command(ProbeConfig, "checkpoint")
def probe(config: ProbeConfig) -> None:
    """Run linear probing and CKNNA on the blocks of a run.

    Compares checkpoints, depths and noise levels with the encoders of a store, as a table and a figure. Re-run the same
    command to resume.
    """
    from .pipeline import probe as stage

    result = stage.run(config)
    echo(result.table)
    echo(f"saved to {result.json}, {result.parquet} and {result.page}")


@stage_command(RankConfig, "store")
def rank(config: RankConfig) -> None:
    """Rank the encoders of a store before any training.

    Computes LDS, CDS and RMSC, which measure the spatial structure of stored tokens (iREPA, arXiv 2512.10794), as a
    table and a figure. The ranking is a prediction, not a result.
    """
    from .pipeline import rank as stage

    result = stage.run(config)
    echo(result.table)
    echo(stage.PREDICTION)
    echo(f"saved to {result.json} and {result.page}")


@stage_command(AblateConfig, "sweep", "store")
def ablate(config: AblateConfig) -> None:
    """Train, sample, evaluate and compare many runs.

    SWEEP is a TOML file: options of `train` that all runs share, options that differ, and how to sample and evaluate
    (docs/ablations.md). Every run has its own folder, and a run that fails does not affect the others. Re-run the same
    command to resume.
    """
    from .pipeline import ablate as stage

    result = stage.run(config)
    echo(result.table)
    echo(f"saved to {result.out}: results.json, results.parquet{', report.html' if result.page else ''}")
    for failed in result.failed:
        logger.error("%s failed in %s: %s", failed.name, failed.stage, failed.error)
    if result.failed:
        logger.error("all other runs are finished; re-run the same command to retry the failed ones")
        sys.exit(1)


@cli.command()
@click.argument("runs", nargs=-1, type=PATH_TEXT)
@click.option("--run", "more", multiple=True, type=PATH_TEXT, help="Run folder, same as RUNS; repeatable.")
@click.option("--out", default="report.html", show_default=True, type=PATH_TEXT, help="Output HTML file.")
@click.option(
    "--store", default=None, type=PATH_TEXT, help="Location of the store. Default: as recorded in the first run."
)
@plug_in_option
@click.option(
    "--download",
    is_flag=True,
    help="Download the VAE that the store names, to show reconstructions. Default: only if it is on this machine.",
)
def report(  # noqa: PLR0917 - one argument per option
    runs: tuple[str, ...], more: tuple[str, ...], out: str, store: str | None, source_kind: str | None, download: bool
) -> None:
    """Write an HTML report that compares runs.

    RUNS are run folders of `train`. The report is one self-contained file.
    """
    from .pipeline import report as stage

    if not runs and not more:
        raise click.UsageError("Missing RUNS: pass at least one run folder.")
    echo(stage.run((*runs, *more), out, store, source_kind=source_kind, download=download))


@cli.command()
@click.argument("folders", nargs=-1, type=PATH_TEXT)
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list instead of a table.")
@click.option(
    "--sort",
    type=click.Choice(["age", "step", "loss", "fid"]),
    default=None,
    help="Order: last update, steps taken, last denoising loss, or FID. Default: by name.",
)
def runs(folders: tuple[str, ...], as_json: bool, sort: str | None) -> None:
    """List training runs with state and metrics.

    FOLDERS are run folders, or folders that contain some. Default: exps.
    """
    from .pipeline.listings import runs as listing

    result = listing.run(folders or ("exps",), sort)
    if as_json:
        echo_json([dataclasses.asdict(row) for row in result.rows])
    else:
        echo(result.table)
    for problem in result.broken:
        logger.warning("%s", problem)


@cli.command()
@click.argument("runs", nargs=-1, type=PATH_TEXT)
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object instead of tables.")
def compare(runs: tuple[str, ...], as_json: bool) -> None:
    """Compare settings and results of runs as text.

    RUNS are two or more run folders of `train`. Prints only what differs, and puts only comparable values in one row.
    """
    from .pipeline.listings import compare as listing

    result = listing.run(runs)
    if as_json:
        echo_json(dataclasses.asdict(result))
    else:
        echo(result.text)


@cli.command()
def env() -> None:
    """Show versions, hardware and paths, for bug reports."""
    from .pipeline.listings import env as listing

    echo(listing.run())


@cli.command()
def recipes() -> None:
    """List the published methods for `train --recipe`.

    Prints name, method, paper and published result.
    """
    from .pipeline.listings import recipes as listing

    echo(listing.run())


@cli.command()
@click.argument("pattern", default="*")
def encoders(pattern: str) -> None:
    """List the encoders that are known by name.

    Prints size, token grid, license, and where weights come from. PATTERN selects names, such as 'dino*'. Any other
    network of timm with a grid of tokens is available as timm:MODEL.
    """
    from .pipeline.listings import encoders as listing

    echo(listing.run(pattern))


@cli.command()
@click.option("--out", default="demo-out", show_default=True, type=PATH_TEXT, help="Output folder.")
@click.option("--steps", default=None, type=int, help="Training steps. Default: sized for 2 CPU cores.")
def demo(out: str, steps: int | None) -> None:
    """Run the complete pipeline on real images, offline.

    Takes a few minutes on two CPU cores and ends with a report to open in a browser.
    """
    from .pipeline import demo as stage

    stage.run(Path(out), steps)


cli.add_command(store)


def main() -> None:
    """Run the command line; errors of the package, and signals, are one line without a traceback."""
    share_one_arena()
    atexit.register(gc.freeze)  # when the process ends, do not search everything for cyclic garbage
    raise_descriptor_limit()
    log_to_stderr()
    try:
        with signals_as_interrupt(), ExitStack() as stack:
            ensure_home(stack)
            cli(prog_name="repa-pipe", standalone_mode=False)
    except click.ClickException as error:
        shown = io.StringIO()
        error.show(shown)
        echo(shown.getvalue(), nl=False, err=True)
        sys.exit(error.exit_code)
    except RepaPipeError as error:
        logger.error("%s", error)
        sys.exit(2)
    except OSError as error:  # such as a full disk, or a folder without write permission
        logger.error("%s", error)
        sys.exit(2)
    except (click.Abort, KeyboardInterrupt):
        logger.warning("interrupted; re-run the same command to resume", extra=NOTICE)
        sys.stdout.flush()
        os._exit(INTERRUPTED)  # threads in the middle of a long batch would delay sys.exit


if __name__ == "__main__":
    main()
