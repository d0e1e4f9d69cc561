"""The command line: parse, build one config, call one stage. Errors of the package become one line and exit code 2."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import re
import sys
import typing
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from types import NoneType
from typing import Any

import click
from click.core import ParameterSource

from . import __version__
from .config import (
    AblateConfig,
    Config,
    EncodeConfig,
    EvaluateConfig,
    PlanConfig,
    ProbeConfig,
    RankConfig,
    SampleConfig,
    TrainConfig,
    apply_recipe,
    flag,
    no_flag,
    recipe_names,
)
from .converter import choices_of, hints_of
from .errors import RepaPipeError
from .pipeline.runtime.console import log_to_stderr
from .pipeline.runtime.memory import share_one_arena

INTERRUPTED = 130
Command = Callable[..., Any]

# Options of `sample` that `evaluate-checkpoints` also has; it sets the others itself.
_NOT_SAMPLING = ("checkpoint", "out", "device", "png_folder")
_SAMPLING = [field.name for field in dataclasses.fields(SampleConfig) if field.name not in _NOT_SAMPLING]
# Options of `train` that are listed before --recipe.
_STORE_AND_RUN = ("store", "output_dir", "exp_name")


class HelpFormatter(click.HelpFormatter):
    """Wraps lines without breaking words at hyphens, `[default: …]`, or commands in backticks."""

    def write_text(self, text: str) -> None:
        """Write a paragraph."""
        super().write_text(_joined(text))

    def write_dl(self, rows: Iterable[tuple[str, str]], *args: Any, **kwargs: Any) -> None:
        """Write a list of options or commands."""
        super().write_dl([(name, _joined(text)) for name, text in rows], *args, **kwargs)

    def getvalue(self) -> str:
        """Return the text."""
        return super().getvalue().replace(_HYPHEN, "-").replace(_SPACE, " ")


_HYPHEN, _SPACE = "\u2011", "\u00a0"  # non-breaking; they stand for "-" and " " while click wraps lines


def _joined(text: str) -> str:
    text = re.sub(r"\[[^]]*]|`[^`]*`", lambda match: match[0].replace(" ", _SPACE), text)
    return text.replace("-", _HYPHEN)


class HelpContext(click.Context):
    """The context of all commands."""

    formatter_class = HelpFormatter


class VerbosityCommand(click.Command):
    """A command with `-v` and `-q`."""

    context_class = HelpContext

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for names, help_text, level in (
            (["-v", "--verbose"], "Also show debug messages.", logging.DEBUG),
            (["-q", "--quiet"], "Hide progress; show only warnings and errors.", logging.WARNING),
        ):
            self.params.append(
                click.Option(names, is_flag=True, expose_value=False, help=help_text, callback=_set_level(level))
            )


def _set_level(level: int) -> Callable[[click.Context, click.Parameter, bool], None]:
    def callback(context: click.Context, parameter: click.Parameter, value: bool) -> None:
        if value:
            log_to_stderr(level)

    return callback


class OrderedGroup(click.Group):
    """Lists commands in the order in which they are defined, which is the order in which they are used."""

    context_class = HelpContext
    command_class = VerbosityCommand

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return all names, in order."""
        return list(self.commands)


OrderedGroup.group_class = OrderedGroup


class HiddenArgument(click.Argument):
    """An argument that the help does not show."""

    def get_usage_pieces(self, ctx: click.Context) -> list[str]:
        """Return nothing."""
        return []


def options_of(
    config: type[Config], only: Collection[str] = (), without: Collection[str] = (), hidden: bool = False
) -> Callable[[Command], Command]:
    """Add an option for every field of a config: flag, type, default and help come from the field.

    Args:
        config: the class.
        only: names of the fields; by default all of them.
        without: names of fields to leave out.
        hidden: whether the help omits the options.
    """

    def decorate(command: Command) -> Command:
        hints = hints_of(config)
        for field in reversed(dataclasses.fields(config)):
            if field.name not in without and (not only or field.name in only):
                command = _option(field, hints[field.name], hidden)(command)
        return command

    return decorate


def _option(field: dataclasses.Field[Any], hint: Any, hidden: bool) -> Callable[[Command], Command]:
    required = field.default is dataclasses.MISSING
    kinds = [kind for kind in typing.get_args(hint) if kind is not NoneType] or [hint]
    choices = choices_of(hint)
    options: dict[str, Any] = {"help": field.metadata["help"], "required": required, "hidden": hidden}
    name = flag(field.name)
    if typing.get_origin(hint) is tuple:
        options |= {"multiple": True, "default": field.default, "type": kinds[0], "show_default": bool(field.default)}
    elif kinds[0] is bool:
        name = f"{name}/{no_flag(field.name)}"
        options |= {"default": field.default, "show_default": field.default is not None}
    else:
        options |= {"type": click.Choice(choices) if choices else kinds[0]}
        if not required:
            options |= {"default": field.default, "show_default": field.default is not None}
    return click.option(name, field.name, **options)


def _given(context: click.Context, names: Collection[str]) -> list[str]:
    """Return the names of the options that the user passed."""
    return [name for name in names if context.get_parameter_source(name) is not ParameterSource.DEFAULT]


def train_config(context: click.Context) -> TrainConfig:
    """Return the config of a parsed `train` command: flags override the recipe, which overrides defaults."""
    options = dict(context.params)
    recipe = options.pop("recipe")
    if recipe is not None:
        options = apply_recipe(recipe, _given(context, options), options)
    return TrainConfig(**options)


@click.group(cls=OrderedGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="repa-pipe")
def cli() -> None:
    """Encode images into a store once, then train SiT models with representation alignment (REPA) from it."""


@cli.command()
@options_of(PlanConfig)
def plan(**options: Any) -> None:
    """Estimate the cost of a store and when it pays off.

    Prints the size of the store, the hours of encoding, and the number of training epochs after which encoding has paid
    off, compared with running the encoder online.
    """
    from .pipeline import plan as stage

    click.echo(stage.run(PlanConfig(**options)).describe())


@cli.command()
@options_of(EncodeConfig)
def encode(**options: Any) -> None:
    """Encode images into a store.

    Stores the moments of a VAE and the patch tokens of encoders. Every image is decoded once and passes through all
    models, on this machine or on Ray. Re-run the same command to resume; a finished store is left unchanged.
    """
    from .pipeline import encode as stage

    result = stage.run(EncodeConfig(**options))
    click.echo(json.dumps(result.as_json(), indent=1))
    for failed in result.failed:
        click.echo(f"error: shard {failed.shard} failed in every attempt: {failed.cause}", err=True)
    if result.failed:
        click.echo("all other shards are complete; re-run the same command to retry the failed ones", err=True)
        sys.exit(1)


@cli.command()
@options_of(TrainConfig, only=_STORE_AND_RUN)
@click.option(
    "--recipe",
    default=None,
    help=f"Settings of a method: {', '.join(recipe_names())}, or a .toml file; flags override them. Default: none.",
)
@options_of(TrainConfig, without=_STORE_AND_RUN)
@click.pass_context
def train(context: click.Context, /, **_options: Any) -> None:
    """Train SiT with REPA from a store.

    Encoders and the VAE do not run; their output is read from the store. Re-run the same command to resume.
    """
    from .pipeline import train as stage

    result = stage.run(train_config(context))
    click.echo(json.dumps(dataclasses.asdict(result), indent=1))
    if result.interrupted:
        click.echo("checkpoint saved; re-run the same command to resume", err=True)
        sys.exit(INTERRUPTED)


@cli.command()
@options_of(SampleConfig)
def sample(**options: Any) -> None:
    """Generate images from a checkpoint.

    Writes an .npz file and a grid. Image i depends on the seed and on i, not on the batch size or the number of
    processes. Re-run the same command to resume.
    """
    from .pipeline import sample as stage

    click.echo(json.dumps(dataclasses.asdict(stage.run(SampleConfig(**options))), indent=1))


@cli.command()
@click.argument("run", cls=HiddenArgument, required=False)
@click.option(
    "--samples",
    default=None,
    help="Images to evaluate: an .npz of uint8 [N, H, W, 3], or a folder of images.  [required]",
)
@options_of(EvaluateConfig, without=("samples",))
@click.option("--every-checkpoint", is_flag=True, hidden=True)
@options_of(SampleConfig, without=_NOT_SAMPLING, hidden=True)
@click.pass_context
def evaluate(
    context: click.Context, /, run: str | None, samples: str | None, every_checkpoint: bool, **options: Any
) -> None:
    """Compute FID, precision, recall and other metrics.

    Compares generated images with a reference. To evaluate every checkpoint of a run, use `evaluate-checkpoints`.
    """
    sampling = {name: options.pop(name) for name in _SAMPLING}
    if every_checkpoint != bool(run) or bool(run) == bool(samples):
        raise click.UsageError("Pass --samples IMAGES, or use 'repa-pipe evaluate-checkpoints RUN'.")
    if run:  # the spelling of version 0.1
        _evaluate_checkpoints(run, options, sampling)
        return
    given = _given(context, _SAMPLING)
    if given:
        raise click.UsageError(f"{flag(given[0])} is an option of 'repa-pipe evaluate-checkpoints'.")
    _evaluate_images(EvaluateConfig(samples=str(samples), **options))


def _evaluate_images(config: EvaluateConfig) -> None:
    from .pipeline import evaluate as stage

    result = stage.run(config)
    width = max(len(name) for name in result.metrics)
    for name, value in result.metrics.items():
        click.echo(f"{name:<{width}}  {value:.4f}")
    reference = f"{result.num_reference:,} reference images" if result.num_reference else "reference statistics"
    click.echo(f"{result.num_samples:,} images compared with {reference}; saved to {result.out}")
    for warning in result.warnings:
        click.echo(f"warning: {warning}", err=True)


@cli.command("evaluate-checkpoints")
@click.argument("run")
@options_of(EvaluateConfig, without=("samples", "out"))
@click.option("--out", default=None, help="Output JSON file. Default: by-step/<settings>.json in RUN.")
@options_of(SampleConfig, without=_NOT_SAMPLING)
def evaluate_checkpoints(run: str, **options: Any) -> None:
    """Sample and evaluate every checkpoint of a run.

    RUN is a run folder. Writes a table and a figure of metrics over steps. Re-run the same command to resume, or to add
    newer checkpoints.
    """
    sampling = {name: options.pop(name) for name in _SAMPLING}
    _evaluate_checkpoints(run, options, sampling)


def _evaluate_checkpoints(run: str, evaluation: dict[str, Any], sampling: dict[str, Any]) -> None:
    from .pipeline import evaluate_checkpoints as stage

    result = stage.run(
        SampleConfig(checkpoint=run, device=evaluation["device"], **sampling), EvaluateConfig(samples=run, **evaluation)
    )
    names = list(result.rows[-1]["metrics"])
    click.echo("  ".join([f"{'step':>9}", *names]))
    for row in result.rows:
        values = [f"{row['metrics'].get(name, float('nan')):>{len(name)}.4f}" for name in names]
        click.echo("  ".join([f"{row['step']:>9,}", *values]))
    click.echo(f"saved to {result.json} and {result.page}")
    for warning in dict.fromkeys(warning for row in result.rows for warning in row["warnings"]):
        click.echo(f"warning: {warning}", err=True)


@cli.command()
@options_of(ProbeConfig)
def probe(**options: Any) -> None:
    """Run linear probing and CKNNA on the blocks of a run.

    Compares checkpoints, depths and noise levels with the encoders of a store, as a table and a figure. Re-run the same
    command to resume.
    """
    from .pipeline import probe as stage

    result = stage.run(ProbeConfig(**options))
    click.echo(result.table)
    click.echo(f"saved to {result.json}, {result.parquet} and {result.page}")


@cli.command()
@options_of(RankConfig)
def rank(**options: Any) -> None:
    """Rank the encoders of a store before any training.

    Computes LDS, CDS and RMSC, which measure the spatial structure of stored tokens (iREPA, arXiv 2512.10794), as a
    table and a figure. The ranking is a prediction, not a result.
    """
    from .pipeline import rank as stage

    result = stage.run(RankConfig(**options))
    click.echo(result.table)
    click.echo(stage.PREDICTION)
    click.echo(f"saved to {result.json} and {result.page}")


@cli.command()
@click.argument("sweep")
@options_of(AblateConfig, without=("sweep",))
def ablate(**options: Any) -> None:
    """Train, sample, evaluate and compare many runs.

    SWEEP is a TOML file: options of `train` that all runs share, options that differ, and how to sample and evaluate
    (docs/ablations.md). Every run has its own folder, and a run that fails does not affect the others. Re-run the same
    command to resume.
    """
    from .pipeline import ablate as stage

    result = stage.run(AblateConfig(**options))
    click.echo(result.table)
    click.echo(f"saved to {result.out}: results.json, results.parquet{', report.html' if result.page else ''}")
    for failed in result.failed:
        click.echo(f"error: {failed.name} failed in {failed.stage}: {failed.error}", err=True)
    if result.failed:
        click.echo("all other runs are finished; re-run the same command to retry the failed ones", err=True)
        sys.exit(1)


@cli.command()
@click.argument("runs", nargs=-1, required=True)
@click.option("--out", default="report.html", show_default=True, help="Output HTML file.")
@click.option("--store", default=None, help="Location of the store. Default: as recorded in the first run.")
def report(runs: tuple[str, ...], out: str, store: str | None) -> None:
    """Write an HTML report that compares runs.

    RUNS are run folders of `train`. The report is one self-contained file.
    """
    from .pipeline import report as stage

    click.echo(stage.run(runs, out, store))


@cli.command()
@click.option("--out", default="demo-out", show_default=True, help="Output folder.")
@click.option("--steps", default=None, type=int, help="Training steps per run. Default: sized for 2 CPU cores.")
def demo(out: str, steps: int | None) -> None:
    """Run the complete pipeline on real images, offline.

    Takes a few minutes on two CPU cores and ends with a report to open in a browser.
    """
    from .pipeline import demo as stage

    stage.run(Path(out), steps)


@cli.group()
def store() -> None:
    """Inspect, verify, export and import stores."""


@store.command("info")
@click.argument("path")
def store_info(path: str) -> None:
    """Show the contents of a store.

    Lists images, groups with their weights, and how complete each group is.
    """
    from .pipeline.store_tools import inspection

    click.echo(inspection.info(path))


@store.command("ls")
@click.argument("path")
@click.option("--class", "class_name", default=None, help="Only list samples of the class with this name.")
@click.option("--quarantined", is_flag=True, help="Only list images that could not be encoded, with the reason.")
@click.option(
    "--limit", default=20, show_default=True, type=click.IntRange(min=0), help="Maximum number of samples; 0 for all."
)
def store_ls(path: str, class_name: str | None, quarantined: bool, limit: int) -> None:
    """List samples: index, class, size in bytes, key."""
    from .pipeline.store_tools import inspection

    click.echo(inspection.list_samples(path, class_name, quarantined, limit))


@store.command("stats")
@click.argument("path")
@click.option("--vae", required=True, help="VAE whose latents are measured.")
@click.option(
    "--write",
    is_flag=True,
    help="Record the measured values in the store. Runs started before can then no longer be resumed.",
)
def store_stats(path: str, vae: str, write: bool) -> None:
    """Measure scale and bias of the latents per channel."""
    from .pipeline.store_tools import inspection

    click.echo(inspection.stats(path, vae, write))


@store.command("verify")
@click.argument("path")
@click.option("--repair", is_flag=True, help="Delete damaged shards, so that `encode` encodes them again.")
def store_verify(path: str, repair: bool) -> None:
    """Compare every committed shard with its checksums."""
    from .pipeline.store_tools import inspection

    text, healthy = inspection.verify(path, repair)
    click.echo(text)
    sys.exit(0 if healthy else 1)


@store.command("export")
@click.argument("path")
@click.option("--out", required=True, help="Output folder.")
@click.option(
    "--format",
    "layout",
    type=click.Choice(["repa", "safetensors"]),
    default="repa",
    show_default=True,
    help="repa: folders images/ and vae-sd/, as REPA's trainer reads them; safetensors: one file per shard.",
)
@click.option(
    "--group", "groups", multiple=True, help="Group to export, latents/NAME or features/NAME; repeatable. Default: all."
)
@click.option(
    "--source",
    default=None,
    help="Location of the images (only for --format repa). Default: where they were encoded from.",
)
def store_export(path: str, out: str, layout: str, groups: tuple[str, ...], source: str | None) -> None:
    """Copy the samples of a store into another layout.

    Re-run the same command to resume.
    """
    from .pipeline.store_tools import export

    click.echo(export.export(path, out, layout, groups, source))


@store.command("import-repa")
@click.argument("folder")
@click.option("--store", "path", required=True, help="Store to create or extend.")
@click.option("--vae", default="sd-vae-ft-mse", show_default=True, help="VAE that encoded the moments.")
def store_import_repa(folder: str, path: str, vae: str) -> None:
    """Import the output of REPA's preprocessing.

    FOLDER holds images/ and vae-sd/. Re-run the same command to resume.
    """
    from .pipeline.store_tools import import_repa

    click.echo(import_repa.import_repa(folder, path, vae))


def main() -> None:
    """Run the command line; errors of the package are one line without a traceback."""
    share_one_arena()
    log_to_stderr()
    try:
        cli(prog_name="repa-pipe", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except RepaPipeError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(2)
    except OSError as error:  # such as a full disk, or a folder without write permission
        click.echo(f"error: {error}", err=True)
        sys.exit(2)
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted; re-run the same command to resume", err=True)
        sys.stdout.flush()
        os._exit(INTERRUPTED)  # threads in the middle of a long batch would delay sys.exit


if __name__ == "__main__":
    main()
