"""The command line: parse, one config, one call. Errors of ours become one line and exit code 2."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import typing
from collections.abc import Callable, Collection
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
    flag,
)
from .errors import RepaPipeError
from .pipeline.runtime.memory import share_one_arena

INTERRUPTED = 130
Command = Callable[..., Any]


def options_of(config: type[Config], without: Collection[str] = ()) -> Callable[[Command], Command]:
    """Options for every field of a config: flag, type, default and help come from the field."""

    def decorate(command: Command) -> Command:
        hints = typing.get_type_hints(config)
        for field in reversed(dataclasses.fields(config)):
            if field.name not in without:
                command = _option(field, hints[field.name])(command)
        return command

    return decorate


def _option(field: dataclasses.Field[Any], hint: Any) -> Callable[[Command], Command]:
    required = field.default is dataclasses.MISSING
    kinds = [kind for kind in typing.get_args(hint) if kind is not NoneType] or [hint]
    choices = field.metadata["choices"]
    options: dict[str, Any] = {"help": field.metadata["help"], "required": required}
    name = flag(field.name)
    if typing.get_origin(hint) is tuple:
        options |= {"multiple": True, "default": field.default, "type": kinds[0]}
    elif kinds[0] is bool:
        name = f"{name}/--no-{name[2:]}"
        options |= {"default": field.default, "show_default": field.default is not None}
    else:
        options |= {"type": click.Choice(choices) if choices else kinds[0]}
        if not required:
            options |= {"default": field.default, "show_default": field.default is not None}
    return click.option(name, field.name, **options)


class InOrder(click.Group):
    """Lists commands as they are written below, which is the order of their use."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All names, in order."""
        return list(self.commands)


@click.group(cls=InOrder, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="repa-pipe")
def cli() -> None:
    """Encode images once, train SiT with representation alignment many times."""


@cli.command()
@options_of(PlanConfig)
def plan(**options: Any) -> None:
    """What encoding costs, and whether it pays.

    Bytes of the store, hours of encoding, and after how many epochs of training they are earned back against an
    encoder that runs online.
    """
    from .pipeline import plan as stage

    click.echo(stage.run(PlanConfig(**options)).describe())


@cli.command()
@options_of(EncodeConfig)
def encode(**options: Any) -> None:
    """Images to a store of VAE moments and patch tokens.

    Every image is decoded once and goes through every model asked for, here or on Ray. The same command continues
    what was interrupted; a finished store is left as it is.
    """
    from .pipeline import encode as stage

    result = stage.run(EncodeConfig(**options))
    click.echo(json.dumps(result.as_json(), indent=1))
    for failed in result.failed:
        click.echo(f"error: shard {failed.shard} failed every time: {failed.cause}", err=True)
    if result.failed:
        click.echo("the other shards are complete; start the same command again to try these", err=True)
        sys.exit(1)


@cli.command()
@options_of(TrainConfig)
def train(**options: Any) -> None:
    """A store to checkpoints: SiT with alignment (REPA).

    No encoder and no VAE runs. The same command continues a run that was stopped.
    """
    from .pipeline import train as stage

    result = stage.run(TrainConfig(**options))
    click.echo(json.dumps(dataclasses.asdict(result), indent=1))
    if result.interrupted:
        click.echo("stopped with a checkpoint; the same command goes on", err=True)
        sys.exit(INTERRUPTED)


@cli.command()
@options_of(SampleConfig)
def sample(**options: Any) -> None:
    """A checkpoint to images: an .npz and a picture.

    Image i depends on the seed and on i, not on batch size or number of processes. The same command continues.
    """
    from .pipeline import sample as stage

    click.echo(json.dumps(dataclasses.asdict(stage.run(SampleConfig(**options))), indent=1))


# What --every-checkpoint adds: how checkpoints are sampled. The rest of SampleConfig it decides itself, or shares.
_NOT_SAMPLING = ("checkpoint", "out", "device", "png_folder")
_SAMPLING = [field.name for field in dataclasses.fields(SampleConfig) if field.name not in _NOT_SAMPLING]


@cli.command()
@click.argument("run", required=False)
@click.option("--samples", default=None, help="Images to judge: an .npz of uint8 [N, H, W, 3] or a folder.")
@options_of(EvaluateConfig, without=("samples",))
@click.option(
    "--every-checkpoint", is_flag=True, help="Sample every checkpoint of RUN with the options below, judge it."
)
@options_of(SampleConfig, without=_NOT_SAMPLING)
@click.pass_context
def evaluate(
    context: click.Context, /, run: str | None, samples: str | None, every_checkpoint: bool, **options: Any
) -> None:
    """Images to Fréchet distance, precision, recall.

    With --samples, of these images. With RUN and --every-checkpoint, of images from each of its checkpoints, as a
    table and a picture against steps; the same command goes on where it was.
    """
    sampling = {name: options.pop(name) for name in _SAMPLING}
    if every_checkpoint != bool(run) or bool(run) == bool(samples):
        raise click.UsageError("Give --samples IMAGES, or RUN --every-checkpoint.")
    if run:
        _evaluate_run(
            SampleConfig(checkpoint=run, device=options["device"], **sampling), EvaluateConfig(samples=run, **options)
        )
        return
    given = [name for name in _SAMPLING if context.get_parameter_source(name) is not ParameterSource.DEFAULT]
    if given:
        raise click.UsageError(f"{flag(given[0])} says how checkpoints are sampled: it needs RUN --every-checkpoint.")
    _evaluate_images(EvaluateConfig(samples=str(samples), **options))


def _evaluate_images(config: EvaluateConfig) -> None:
    from .pipeline import evaluate as stage

    result = stage.run(config)
    width = max(len(name) for name in result.metrics)
    for name, value in result.metrics.items():
        click.echo(f"{name:<{width}}  {value:.4f}")
    reference = f"{result.num_reference:,}" if result.num_reference else "a statistics file's"
    click.echo(f"{result.num_samples:,} samples against {reference} reference images; written to {result.out}")
    for warning in result.warnings:
        click.echo(f"warning: {warning}", err=True)


def _evaluate_run(sampling: SampleConfig, judging: EvaluateConfig) -> None:
    from .pipeline import evaluate_checkpoints as stage

    result = stage.run(sampling, judging)
    names = list(result.rows[-1]["metrics"])
    click.echo("  ".join([f"{'step':>9}", *names]))
    for row in result.rows:
        values = [f"{row['metrics'].get(name, float('nan')):>{len(name)}.4f}" for name in names]
        click.echo("  ".join([f"{row['step']:>9,}", *values]))
    click.echo(f"written to {result.json} and {result.page}")
    for warning in dict.fromkeys(warning for row in result.rows for warning in row["warnings"]):
        click.echo(f"warning: {warning}", err=True)


@cli.command()
@options_of(ProbeConfig)
def probe(**options: Any) -> None:
    """What a run's blocks know of the images: linear probing and CKNNA.

    Over checkpoints, depth and noise, against the encoders of a store, as a table and a picture. The same command
    goes on where it was.
    """
    from .pipeline import probe as stage

    result = stage.run(ProbeConfig(**options))
    click.echo(result.table)
    click.echo(f"written to {result.json}, {result.parquet} and {result.page}")


@cli.command()
@options_of(RankConfig)
def rank(**options: Any) -> None:
    """A store's encoders by their spatial structure, before any training.

    LDS, CDS and RMSC of stored tokens (iREPA, arXiv 2512.10794), as a table and a picture: a prediction, not a result.
    """
    from .pipeline import rank as stage

    result = stage.run(RankConfig(**options))
    click.echo(result.table)
    click.echo(stage.PREDICTION)
    click.echo(f"written to {result.json} and {result.page}")


@cli.command()
@click.argument("sweep")
@options_of(AblateConfig, without=("sweep",))
def ablate(**options: Any) -> None:
    """Many runs from one store, as SWEEP says, then their comparison.

    SWEEP is a TOML file: options of train that all runs share, those that differ, how to sample and to evaluate. Every
    run has a folder of its own; a run that fails leaves the others alone. The same command continues.
    """
    from .pipeline import ablate as stage

    result = stage.run(AblateConfig(**options))
    click.echo(result.table)
    click.echo(f"written to {result.out}: results.json, results.parquet{', report.html' if result.page else ''}")
    for failed in result.failed:
        click.echo(f"error: {failed.name} failed in {failed.stage}: {failed.error}", err=True)
    if result.failed:
        click.echo("the other runs are finished; start the same command again to try these", err=True)
        sys.exit(1)


@cli.command()
@click.argument("runs", nargs=-1, required=True)
@click.option("--out", default="report.html", show_default=True, help="The page to write.")
@click.option("--store", default=None, help="The store. Default: the one that the first run was trained from.")
def report(runs: tuple[str, ...], out: str, store: str | None) -> None:
    """RUNS to one self-contained HTML page.

    RUNS are folders of 'repa-pipe train'.
    """
    from .pipeline import report as stage

    click.echo(stage.run(runs, out, store))


@cli.command()
@click.option("--out", default="demo-out", show_default=True, help="Folder for everything that the demo makes.")
@click.option("--steps", default=None, type=int, help="Training steps of each run. Default: sized for 2 CPU cores.")
def demo(out: str, steps: int | None) -> None:
    """The whole pipeline on real photographs, offline.

    Takes minutes on two CPU cores, and ends with a page to open.
    """
    from .pipeline import demo as stage

    stage.run(Path(out), steps)


@cli.group()
def store() -> None:
    """Look at a store, and check it."""


@store.command("info")
@click.argument("path")
def store_info(path: str) -> None:
    """Show what a store holds, from which weights and images, and how complete it is."""
    from .pipeline.store_tools import inspection as store_commands

    click.echo(store_commands.info(path))


@store.command("ls")
@click.argument("path")
@click.option("--class", "class_name", default=None, help="Only this class, by name.")
@click.option("--quarantined", is_flag=True, help="Only images that could not be encoded, with the reason.")
@click.option("--limit", default=20, show_default=True, type=click.IntRange(min=0), help="Lines at most; 0 for all.")
def store_ls(path: str, class_name: str | None, quarantined: bool, limit: int) -> None:
    """List samples: number, class, bytes of the image, key."""
    from .pipeline.store_tools import inspection as store_commands

    click.echo(store_commands.list_samples(path, class_name, quarantined, limit))


@store.command("stats")
@click.argument("path")
@click.option("--vae", required=True, help="Which latents.")
@click.option(
    "--write", is_flag=True, help="Record the measured values in the store; runs that began before go no further."
)
def store_stats(path: str, vae: str, write: bool) -> None:
    """Measure the scale and bias of the latents, channel by channel."""
    from .pipeline.store_tools import inspection as store_commands

    click.echo(store_commands.stats(path, vae, write))


@store.command("verify")
@click.argument("path")
@click.option("--repair", is_flag=True, help="Drop bad shards, so that 'encode' makes them again.")
def store_verify(path: str, repair: bool) -> None:
    """Read everything back and compare with the recorded checksums."""
    from .pipeline.store_tools import inspection as store_commands

    text, healthy = store_commands.verify(path, repair)
    click.echo(text)
    sys.exit(0 if healthy else 1)


@store.command("export")
@click.argument("path")
@click.option("--out", required=True, help="Folder to write.")
@click.option(
    "--format",
    "layout",
    type=click.Choice(["repa", "safetensors"]),
    default="repa",
    show_default=True,
    help="repa: images/ and vae-sd/ as the published trainer reads them; safetensors: one file a shard.",
)
@click.option(
    "--group", "groups", multiple=True, help="latents/NAME or features/NAME; several times for several. Default: all."
)
@click.option("--source", default=None, help="Where the images lie now (repa). Default: where they were encoded from.")
def store_export(path: str, out: str, layout: str, groups: tuple[str, ...], source: str | None) -> None:
    """Copy a store's samples into another layout. The same command continues."""
    from .pipeline.store_tools import export as store_export

    click.echo(store_export.export(path, out, layout, groups, source))


@store.command("import-repa")
@click.argument("folder")
@click.option("--store", "path", required=True, help="The store to make or to go on with.")
@click.option("--vae", default="sd-vae-ft-mse", show_default=True, help="The VAE that made the moments.")
def store_import_repa(folder: str, path: str, vae: str) -> None:
    """Take over images/ and vae-sd/ of REPA's preprocessing. The same command continues."""
    from .pipeline.store_tools import import_repa as store_import

    click.echo(store_import.import_repa(folder, path, vae))


def main() -> None:
    """Entry point: one line for our errors, no traceback."""
    share_one_arena()
    try:
        cli(prog_name="repa-pipe", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except RepaPipeError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(2)
    except OSError as error:  # a disk that is full, a folder that may not be written
        click.echo(f"error: {error}", err=True)
        sys.exit(2)
    except (click.Abort, KeyboardInterrupt):
        click.echo("stopped; the same command goes on from what is complete", err=True)
        sys.stdout.flush()
        os._exit(INTERRUPTED)  # threads in the middle of a long batch would hold up sys.exit until it is done


if __name__ == "__main__":
    main()
