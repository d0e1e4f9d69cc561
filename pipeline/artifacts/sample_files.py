"""Files of generated images: their names, the record of their settings, and their completeness.

`<name>.npz` holds the images, `<name>.png` a grid of the first ones, `<name>.json` the settings, and `<name>.partial/`
the blocks of an unfinished run.
"""

from __future__ import annotations

import glob
import itertools
import zlib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from ...config import SampleConfig
from ...converter import read_json, require_known_keys, structure
from ...errors import ConfigError
from ...stores.files import remove_leftovers, write_json
from ...stores.model_names import canonical_name
from ..runtime.seeds import STREAMS_VERSION
from .digests import file_digest
from .names import digest_of, with_ending
from .run_folder import RunFolder, run_of

IMAGES_ENDING = ".npz"
METRICS_ENDING = ".metrics.json"
GRID_IMAGES = 64
GRID_COLUMNS = 8
_REMEDY = "delete it and sample again"


@dataclass(frozen=True, slots=True)
class SampleResult:
    """The output of `sample`."""

    npz: str
    grid: str
    num_images: int
    step: int
    seconds: float


@dataclass(frozen=True, slots=True)
class SampleRecord:
    """The contents of `<name>.json`."""

    config: SampleConfig
    step: int
    num_images: int
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class SampleFiles:
    """The files of one set of generated images."""

    npz: Path

    @property
    def grid(self) -> Path:
        """The first images as one grid."""
        return with_ending(self.npz, IMAGES_ENDING, ".png")

    @property
    def record(self) -> Path:
        """The settings as JSON."""
        return with_ending(self.npz, IMAGES_ENDING, ".json")

    @property
    def blocks(self) -> Path:
        """Folder of finished blocks while the images are generated."""
        return with_ending(self.npz, IMAGES_ENDING, ".partial")

    @property
    def metrics(self) -> Path:
        """Metrics of the images as JSON, of the first evaluation (`metric_files`)."""
        return with_ending(self.npz, IMAGES_ENDING, METRICS_ENDING)

    @property
    def settings_of_blocks(self) -> Path:
        """The settings of the unfinished blocks, as JSON."""
        return self.blocks / "settings.json"

    def remove_leftovers(self) -> None:
        """Delete the temporary files of killed commands; the caller holds the lease of the images."""
        for path in (self.npz, self.grid, self.record):
            remove_leftovers(path.parent, glob.escape(path.name))
        remove_leftovers(self.blocks)

    def damaged_block(self, name: str) -> Path:
        """`<name>.00000000.npy.damaged-1`, …: a block that failed its checksum; the first unused name."""
        names = (with_ending(self.npz, IMAGES_ENDING, f".{name}.damaged-{number}") for number in itertools.count(1))
        return next(path for path in names if not path.exists())

    def metrics_with(self, settings: Mapping[str, Any]) -> Path:
        """Metrics of another evaluation, whose settings have this digest."""
        return with_ending(self.metrics, METRICS_ENDING, f".{digest_of(settings)}{METRICS_ENDING}")

    def all_metrics(self) -> list[Path]:
        """Return the metrics of every evaluation of the images, the last one last."""
        stem = glob.escape(self.metrics.name.removesuffix(METRICS_ENDING))
        found = self.npz.parent.glob(f"{stem}.{'[0-9a-f]' * 8}{METRICS_ENDING}")
        return sorted([*found, *[self.metrics] * self.metrics.exists()], key=lambda path: path.stat().st_mtime_ns)

    def recorded_settings(self) -> dict[str, Any] | None:
        """Return the settings of the finished or unfinished images under this name; None if there are none."""
        if self.npz.exists() and self.record.exists():
            return _settings_in(read_json(self.record), self.record)
        if self.settings_of_blocks.exists():
            settings = dict(read_json(self.settings_of_blocks))
            settings.pop("per_proc_batch_size", None)
            return settings
        return None

    def write_record(self, config: SampleConfig, settings: dict[str, Any], result: SampleResult) -> None:
        """Record the settings; the images are finished once this file exists."""
        write_json(self.record, {"config": config.as_json(), "settings": settings, **asdict(result)})

    def read_record(self) -> SampleRecord:
        """Read the recorded settings; raise ConfigError when the file does not describe generated images."""
        try:
            values = read_json(self.record)
            names = [item.name for item in fields(SampleRecord)]
            written = [*names, "settings", *(item.name for item in fields(SampleResult))]
            require_known_keys(values, written, str(self.record))
            recorded = {name: values[name] for name in names if name in values}
            return structure(recorded, SampleRecord, self.record.name)
        except ConfigError as error:
            raise ConfigError(f"{self.record} does not describe generated images ({error}): {_REMEDY}") from error


def _settings_in(values: Mapping[str, Any], record: Path) -> dict[str, Any]:
    """Return the settings in the contents of `<name>.json`; ConfigError if they are no mapping."""
    settings = values.get("settings") or {}
    if not isinstance(settings, dict):
        raise ConfigError(
            f"{record} does not describe generated images (settings: expected a mapping, found "
            f"{type(settings).__name__}): {_REMEDY}"
        )
    return settings


def files_of(config: SampleConfig, checkpoint: Path) -> SampleFiles:
    """Return the files that sampling writes: `--out`, else `samples/<checkpoint>-<settings>.npz` in the run folder.

    For a checkpoint outside of a run folder, `samples/` is in the current folder. If images of other settings or of
    another checkpoint have the name, it ends with a digest of both.

    Raises:
        ConfigError: `--out` does not end in .npz.
    """
    if config.out:
        out = Path(config.out)
        if out.suffix != IMAGES_ENDING:
            raise ConfigError(f"--out is {config.out!r}: expected a name that ends in {IMAGES_ENDING}")
        return SampleFiles(out)
    run, settings = run_of(checkpoint), sample_settings(config, checkpoint)
    plain = SampleFiles(
        (run or RunFolder(Path())).samples / f"{checkpoint.stem}-{settings_name(config)}{IMAGES_ENDING}"
    )
    if _may_take(plain, settings, checkpoint, is_step=run is not None and checkpoint.stem.isdigit()):
        return plain
    named = [
        SampleFiles(with_ending(plain.npz, IMAGES_ENDING, f"-{digest_of(each)}{IMAGES_ENDING}"))
        for each in (settings, settings | {"checkpoint": _identity_before_digests(checkpoint)})
    ]
    return named[1] if named[1].recorded_settings() is not None else named[0]


def _may_take(files: SampleFiles, settings: dict[str, Any], checkpoint: Path, is_step: bool) -> bool:
    """Return whether images with these settings may have a name without a digest: it is free, or is theirs.

    In a run folder (`is_step`), a step has one checkpoint: images of one that was written again replace the old ones.
    """
    recorded = files.recorded_settings()
    if recorded is None:
        return True
    if is_step:
        return canonical_settings(recorded) | {"checkpoint": None} == settings | {"checkpoint": None}
    return are_same_settings(recorded, settings, checkpoint)


def are_same_settings(recorded: Mapping[str, Any], settings: dict[str, Any], checkpoint: Path) -> bool:
    """Return whether settings, recorded by this version or an earlier one, are those of `sample_settings`."""
    found = canonical_settings(recorded)
    if found.get("checkpoint") == _identity_before_digests(checkpoint):
        found |= {"checkpoint": settings["checkpoint"]}
    return found == settings


def canonical_settings(recorded: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings, recorded by this version or an earlier one, in the form in which they are compared.

    The name of the VAE is the one that all spellings of its path have in common, and settings that an earlier version
    did not have are their defaults.
    """
    vae = recorded.get("vae")
    with suppress(OSError, RuntimeError, TypeError):  # a damaged record: what is no name differs from all names
        vae = canonical_name(vae) if vae else vae
    return SampleConfig.with_defaults(recorded) | ({"vae": vae} if vae else {})


def sample_sets(run: RunFolder) -> list[SampleFiles]:
    """Return the sets of generated images in a run folder; one with a digest is after that of an earlier version."""
    records = [path for path in run.samples.glob("*.json") if not path.name.endswith(METRICS_ENDING)]
    records.sort(key=lambda path: path.name.removesuffix(".json"))
    return [SampleFiles(with_ending(path, ".json", IMAGES_ENDING)) for path in records]


def settings_name(config: SampleConfig) -> str:
    """Return the part of a file name that stands for the settings: `ode50-cfg1.5-seed0-50000`."""
    solver = "sde" if config.mode == "sde" else ("heun" if config.heun else "ode")
    words = [f"{solver}{config.num_steps}", f"cfg{config.cfg_scale:g}"]
    words += [] if config.cls_cfg_scale is None else [f"cls{config.cls_cfg_scale:g}"]
    words += [] if config.guidance == "cfg" else [config.guidance]
    words += [f"auto{zlib.crc32(config.guidance_checkpoint.encode()):08x}"] if config.guidance_checkpoint else []
    words += [] if config.guidance_channels is None else [f"channels{config.guidance_channels}"]
    words += [] if config.time_shift is None else [f"shift{config.time_shift:g}"]
    if (config.guidance_low, config.guidance_high) != (0, 1):
        words.append(f"from{config.guidance_low:g}to{config.guidance_high:g}")
    if config.labels != "random":
        words.append("balanced" if config.labels == "balanced" else f"labels{zlib.crc32(config.labels.encode()):08x}")
    words += [Path(each).name for each in (config.vae, config.decoder) if each]
    words += [config.path_type] if config.path_type else []
    words += [f"stats{zlib.crc32(config.latents_stats.encode()):08x}"] if config.latents_stats else []
    words += [] if config.ema else ["no-ema"]
    words += [] if config.precision == "fp32" else [config.precision]
    words += ["compiled"] if config.compile else []
    return "-".join([*words, f"seed{config.global_seed}", str(config.num_fid_samples)])


def sample_settings(config: SampleConfig, checkpoint: Path) -> dict[str, Any]:
    """Return all values that determine the images; a checkpoint is known by its content, wherever it is."""
    from .checkpoints import resolve_checkpoint

    settings = {"checkpoint": {"digest": file_digest(checkpoint)}, "random_streams": STREAMS_VERSION}
    if config.guidance_checkpoint:
        settings["guidance_checkpoint"] = {"digest": file_digest(resolve_checkpoint(config.guidance_checkpoint))}
    return canonical_settings(config.result_settings()) | settings


def _identity_before_digests(checkpoint: Path) -> dict[str, Any]:
    """Return what versions that recorded no digest recorded of a checkpoint."""
    stat = checkpoint.stat()
    return {"path": str(checkpoint.resolve()), "bytes": stat.st_size, "written": stat.st_mtime_ns}


def finished_samples(config: SampleConfig) -> SampleResult | None:
    """Return the result of an earlier, finished run of `sample` with the same settings, if any.

    Raises:
        CheckpointError: there is no checkpoint.
    """
    from .checkpoints import resolve_checkpoint  # imports torch, which reading records does not need

    checkpoint = resolve_checkpoint(config.checkpoint)
    files = files_of(config, checkpoint)
    if not (files.npz.exists() and files.record.exists()):
        return None
    values = read_json(files.record)
    settings = sample_settings(config, checkpoint)
    if not are_same_settings(_settings_in(values, files.record), settings, checkpoint):
        return None
    recorded = {item.name: values.get(item.name) for item in fields(SampleResult)}
    return structure(recorded, SampleResult, str(files.record))
