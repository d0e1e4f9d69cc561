"""The commands of `repa-pipe store`."""

from __future__ import annotations

import sys
from typing import Any

import click

from .config.source import PLUG_IN_HELP
from .errors import ConfigError
from .options import PATH_TEXT, OrderedGroup
from .pipeline.runtime.console import echo

plug_in_option = click.option("--source-kind", default=None, help=PLUG_IN_HELP)


@click.group(cls=OrderedGroup)
def store() -> None:
    """Inspect, verify, share, export and import stores."""


_store_option = click.option("--store", type=PATH_TEXT, help="Location of the store.  [required]")


@store.command("info", positional=("store",))
@_store_option
def store_info(store: str) -> None:
    """Show the contents of a store.

    Lists images, groups with their weights, and how complete each group is.
    """
    from .pipeline.store_tools import inspection

    echo(inspection.info(store))


@store.command("ls", positional=("store",))
@_store_option
@click.option("--class", "class_name", default=None, help="Only list samples of the class with this name.")
@click.option("--quarantined", is_flag=True, help="Only list images that could not be encoded, with the reason.")
@click.option(
    "--limit", default=20, show_default=True, type=click.IntRange(min=0), help="Maximum number of samples; 0 for all."
)
def store_ls(store: str, class_name: str | None, quarantined: bool, limit: int) -> None:
    """List samples: index, class, size in bytes, key."""
    from .pipeline.store_tools import inspection

    echo(inspection.list_samples(store, class_name, quarantined, limit))


@store.command("stats", positional=("store",))
@_store_option
@click.option("--vae", default=None, help="VAE whose latents are measured: scale and bias per channel.")
@click.option("--encoder", default=None, help="Encoder whose tokens are measured: mean and variance, as latents (RAE).")
@click.option(
    "--per",
    type=click.Choice(["channel", "position", "all"]),
    default="position",
    show_default=True,
    help="What --encoder averages over: images and positions (one number per channel), images alone (as RAE), or all.",
)
@click.option("--flip", is_flag=True, help="Also measure the flipped views of --encoder.")
@click.option(
    "--shards", default=None, metavar="FIRST:STOP", help="Shards to measure, without the last. Default: all shards."
)
@click.option(
    "--from-file",
    type=PATH_TEXT,
    default=None,
    help="Record mean and var of this file, as RAE publishes them, for --encoder, instead of measuring.",
)
@click.option("--note", default=None, help="What to record about the statistics of --encoder, such as their source.")
@click.option(
    "--write",
    is_flag=True,
    help="Record the measured values in the store. With --vae, runs started before can then no longer be resumed.",
)
def store_stats(store: str, vae: str | None, encoder: str | None, write: bool, **options: Any) -> None:
    """Measure the latents of a VAE, or the tokens of an encoder.

    Measuring tokens with --write can be stopped; the same command continues.
    """
    from .pipeline.store_tools import inspection, statistics

    if vae is not None and encoder is None:
        echo(inspection.stats(store, vae, write))
    elif encoder is not None and vae is None:
        echo(statistics.run(store, statistics.options_of(encoder, write=write, **options)))
    else:
        raise ConfigError("expected either --vae or --encoder")


@store.command("verify", positional=("store",))
@_store_option
@click.option(
    "--repair", is_flag=True, help="Delete damaged shards, so that `encode` encodes them again. See `store repair`."
)
@click.option(
    "--accept-metadata",
    is_flag=True,
    help="First record checksums of metadata, labels and sample index as they are: for stores of earlier versions, and "
    "after changes by other programs.",
)
def store_verify(store: str, repair: bool, accept_metadata: bool) -> None:
    """Compare every committed shard with its checksums."""
    from .pipeline.store_tools import inspection

    text, healthy = inspection.verify(store, repair, accept_metadata)
    echo(text)
    sys.exit(0 if healthy else 1)


@store.command("repair", positional=("store",))
@_store_option
@click.option(
    "--source", default=None, type=PATH_TEXT, help="Location of the images. Default: where they were encoded from."
)
@plug_in_option
@click.option(
    "--encoder-weights",
    multiple=True,
    help="NAME=PATH: local file with the published weights of encoder NAME; repeatable. Default: download.",
)
@click.option(
    "--device", default=None, help="Torch device. Default: cpu for groups encoded on a CPU, else cuda if available."
)
def store_repair(
    store: str, source: str | None, source_kind: str | None, encoder_weights: tuple[str, ...], device: str | None
) -> None:
    """Encode damaged shards again.

    Verifies the store, then encodes its damaged shards with the recorded settings. Images and weights must be those of
    the first encoding; if they are not, nothing is changed. Re-run the same command to resume.
    """
    from .pipeline.store_tools import repair

    options = repair.RepairOptions(
        source=source, source_kind=source_kind, encoder_weights=encoder_weights, device=device
    )
    text, intact = repair.repair(store, options)
    echo(text)
    sys.exit(0 if intact else 1)


@store.command("export", positional=("store",))
@_store_option
@click.option("--out", required=True, type=PATH_TEXT, help="Output folder.")
@click.option(
    "--format",
    "layout",
    type=click.Choice(["repa", "lightningdit", "safetensors"]),
    default="repa",
    show_default=True,
    help="repa: folders images/ and vae-sd/, as REPA's trainer reads them; lightningdit: fixed latents with flips, as "
    "LightningDiT's reads them; safetensors: one file per shard.",
)
@click.option(
    "--group", "groups", multiple=True, help="Group to export, latents/NAME or features/NAME; repeatable. Default: all."
)
@click.option(
    "--source",
    default=None,
    help="Location of the images (only for --format repa). Default: where they were encoded from.",
)
@plug_in_option
def store_export(
    store: str, out: str, *, layout: str, groups: tuple[str, ...], source: str | None, source_kind: str | None
) -> None:
    """Copy the samples of a store into another layout.

    Re-run the same command to resume.
    """
    from .pipeline.store_tools import export

    echo(export.export(store, out, layout, groups, source, source_kind=source_kind))


@store.command("push", positional=("store", "target"))
@_store_option
@click.option("--target", help="Repository: hf://datasets/USER/NAME, or with @BRANCH.  [required]")
@click.option(
    "--license",
    default=None,
    help="License of the data, an identifier of the Hub such as cc-by-4.0. Default: that of the repository's card.",
)
@click.option("--private", is_flag=True, help="Create a private repository. Default: as the account is set up.")
@click.option(
    "--group", "groups", multiple=True, help="Group to upload, latents/NAME or features/NAME; repeatable. Default: all."
)
@click.option("--shards", default=None, metavar="FIRST:STOP", help="Shards to upload, without the last. Default: all.")
@click.option("--citation", default=None, help="Text about the source of the images. Default: a line to fill in.")
def store_push(store: str, target: str, **options: Any) -> None:
    """Upload a store to the Hugging Face Hub.

    Writes a data card and compares what arrived with the store. Re-run the same command to resume.
    """
    from .pipeline.store_tools import hub_push

    echo(hub_push.push(store, target, hub_push.PushOptions(**options)))


@store.command("pull", positional=("source", "store"))
@click.option("--source", help="Repository: hf://datasets/USER/NAME, or with @REVISION.  [required]")
@click.option("--store", type=PATH_TEXT, help="Folder of the store to create or extend.  [required]")
@click.option(
    "--group",
    "groups",
    multiple=True,
    help="Group to download, latents/NAME or features/NAME; repeatable. Default: all.",
)
@click.option(
    "--shards", default=None, metavar="FIRST:STOP", help="Shards to download, without the last. Default: all."
)
@click.option("--labels-only", is_flag=True, help="Download the sample index and the labels, without any group.")
def store_pull(source: str, store: str, **options: Any) -> None:
    """Download a store from the Hugging Face Hub.

    Every file is compared with its commit record. Re-run the same command to resume, or to add groups and shards.
    """
    from .pipeline.store_tools import hub_pull

    echo(hub_pull.pull(source, store, hub_pull.PullOptions(**options)))


@store.command("show", positional=("store",))
@click.option("--store", type=PATH_TEXT, help="Store.  [required]")
@click.option("--group", required=True, help="Group to decode, latents/NAME or features/NAME.")
@click.option("--out", required=True, type=PATH_TEXT, help="PNG file to write.")
@click.option(
    "--decoder",
    type=PATH_TEXT,
    default=None,
    help="VAE that decodes latents, or decoder of tokens (AutoencoderRAE). Default: the VAE of the latents.",
)
@click.option("--images", "count", type=int, default=32, show_default=True, help="Number of images.")
def store_show(store: str, group: str, out: str, decoder: str | None, count: int) -> None:
    """Decode samples of a store into a picture."""
    from .pipeline.store_tools import show

    echo(show.show(store, out, group, decoder, count))


@store.command("quality", positional=("store",))
@_store_option
@click.option("--vae", default=None, help="VAE whose latents are decoded. Default: the only one of the store.")
@click.option("--token-latents", default=None, help="Encoder whose tokens are decoded instead. Default: none.")
@click.option(
    "--decoder",
    type=PATH_TEXT,
    default=None,
    help="Another VAE that decodes latents, or a decoder of tokens (AutoencoderRAE). Default: the VAE of the latents.",
)
@click.option(
    "--source", default=None, type=PATH_TEXT, help="Location of the images. Default: where they were encoded from."
)
@plug_in_option
@click.option("--images", type=int, default=None, help="Number of images, spread evenly over the store. Default: all.")
@click.option(
    "--without",
    type=click.Choice(["rfid", "ssim", "lpips"]),
    multiple=True,
    help="Metric to leave out; repeatable. Default: none, all are computed.",
)
@click.option(
    "--detector",
    default="inception",
    show_default=True,
    help="Feature extractor of the Fréchet distance: inception (rFID), or the name of an encoder.",
)
@click.option(
    "--detector-weights", type=PATH_TEXT, default=None, help="Local weights file of the detector. Default: download."
)
@click.option("--batch-size", type=int, default=16, show_default=True, help="Images per forward pass.")
@click.option("--device", default=None, help="Torch device. Default: cuda if available, else cpu.")
@click.option(
    "--out",
    type=PATH_TEXT,
    default="quality.json",
    show_default=True,
    help="Output JSON file; a figure of the worst and the median images is written next to it as .png.",
)
def store_quality(store: str, **options: Any) -> None:
    """Measure what encoding loses: rFID, PSNR, SSIM, LPIPS.

    Decodes stored latents or tokens and compares them with the images that they were encoded from.
    """
    from .pipeline.store_tools import quality
    from .pipeline.store_tools.quality_options import QualityOptions

    echo(quality.run(store, QualityOptions(**options)))


@store.command("import", positional=("folder", "store"))
@click.option("--folder", type=PATH_TEXT, help="Folder of latents (docs/latents.md).  [required]")
@click.option("--store", type=PATH_TEXT, help="Store to create or extend.  [required]")
@click.option("--vae", required=True, help="VAE that computed the latents: a name, a folder or a file, for decoding.")
@click.option(
    "--data-dir",
    type=PATH_TEXT,
    default=None,
    help="Images that the latents were computed from, as for `encode --source`; needed to add encoders. Default: none.",
)
@click.option("--images", type=int, default=None, help="Number of images. Default: found from the labels.")
@click.option(
    "--resolution", type=int, default=None, help="Side of the images in pixels. Default: from the VAE's config."
)
@click.option(
    "--latents-stats",
    type=PATH_TEXT,
    default=None,
    help="File of statistics (mean, std, or latents_scale, latents_bias). Default: the one in the folder, if any.",
)
@click.option(
    "--latents-scale",
    type=float,
    default=None,
    help="Scale of the latents, after the normalization with statistics. Default: 1 with statistics, else that of the "
    "VAE's config.",
)
@click.option("--latents-key", default=None, help="Key or column of the latents (.npz, datasets). Default: none.")
@click.option("--flipped-key", default=None, help="Key or column of the latents of mirrored images. Default: none.")
@click.option("--label-key", default=None, help="Key or column of the class number. Default: dataset.json, or folders.")
@click.option("--moments", is_flag=True, help="The arrays are moments: means, then standard deviations. Default: no.")
@click.option(
    "--latents-shape", default=None, help="Shape of latents in a column of bytes, such as 32,16,16. Default: none."
)
@click.option("--latents-dtype", default=None, help="float32 or float16, in a column of bytes. Default: none.")
def store_import(folder: str, store: str, **options: Any) -> None:
    """Import latents that other programs have computed.

    FOLDER holds LightningDiT's shards, REPA-E's file, a dataset with latents as a column, .npy or .npz files.
    Re-run the same command to resume.
    """
    from .pipeline.store_tools import import_latents

    echo(import_latents.import_latents(folder, store, import_latents.options_of(**options)))


@store.command("import-repa", positional=("folder", "store"))
@click.option("--folder", type=PATH_TEXT, help="Folder with images/ and vae-sd/.  [required]")
@click.option("--store", type=PATH_TEXT, help="Store to create or extend.  [required]")
@click.option("--vae", default="sd-vae-ft-mse", show_default=True, help="VAE that encoded the moments.")
@click.option(
    "--latents-scale",
    type=float,
    default=None,
    help="Scale of the latents, for a VAE whose config is not available. Default: from the VAE's config.",
)
def store_import_repa(folder: str, store: str, vae: str, latents_scale: float | None) -> None:
    """Import the output of REPA's preprocessing.

    FOLDER holds images/ and vae-sd/. Re-run the same command to resume.
    """
    from .pipeline.store_tools import import_repa

    echo(import_repa.import_repa(folder, store, vae, latents_scale))
