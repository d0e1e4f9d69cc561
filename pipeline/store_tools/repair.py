"""`repa-pipe store repair`: encode the damaged shards of a store again, from the images that it was made from.

A damaged shard stays where it is until the new one replaces it: when images or weights are unavailable, or the command
is interrupted, nothing is lost. Images are compared with the checksums of the first encoding, and models with the
fingerprint of their group.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ...config import EncodeConfig
from ...config.base import Precision
from ...errors import StoreError
from ...models.vae_files import require_trusted
from ...sources import SourceOptions, kind_of_recorded
from ...stores import Group, Store, open_store
from ...stores.files import remove_abandoned
from ...stores.layout import commit_file
from ...stores.manifest import read_commit
from ...stores.verify import VerifyReport
from ...stores.verify_shard import ShardVerifier
from ..encoding.monitor import EncodeMonitor
from ..encoding.work import FailedShard, ShardTask, images_of, require_models
from ..runtime.progress import progress
from .inspection import verified

_PRECISIONS: dict[str, Precision] = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}


@dataclass(frozen=True, kw_only=True, slots=True)
class RepairOptions:
    """What may be elsewhere than it was when the store was created.

    Attributes:
        source: location of the images. None: as recorded in the store.
        source_kind: kind of the source; required for a plug-in.
        encoder_weights: `NAME=PATH`, files with the published weights of encoders.
        device: torch device. None: the CPU for groups that were encoded on a CPU, else the default.
    """

    source: str | None = None
    source_kind: str | None = None
    encoder_weights: tuple[str, ...] = ()
    device: str | None = None


def repair(path: str, options: RepairOptions) -> tuple[str, bool]:
    """Verify a store and encode its damaged shards again; return the findings, and whether the store is intact now.

    Raises:
        StoreError: there is no store, an image has changed, or a model differs from the fingerprint of its group.
        ConfigError, SourceError, WeightsError: the source or a model is unavailable.
    """
    report = verified(path)
    lines, damaged = [str(problem) for problem in report.problems], _damaged(report)
    with open_store(path) as store:
        for name, shards in damaged.items():
            lines += _repair_group(store, store.group(name), shards, options)
    remaining = [problem for problem in report.problems if problem.shard is None]
    if remaining:
        lines.append("metadata is not encoded again: restore the files named above without a shard from a copy")
    for name, shards in report.incomplete.items():
        lines.append(f"{name} is incomplete, shards {_listed(shards)}: re-run 'repa-pipe encode' to complete it")
    return "\n".join(lines or ["all committed shards match their checksums"]), not remaining


def _damaged(report: VerifyReport) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for group, shard in report.bad_shards:
        found.setdefault(group, []).append(shard)
    return found


def _repair_group(store: Store, group: Group, shards: list[int], options: RepairOptions) -> list[str]:
    """Encode shards of a group again; return what was done.

    Raises:
        StoreError: a shard could not be encoded, or does not match its checksums afterwards.
    """
    from ..encoding.inline import run_inline

    config = _config_of(store, group, options)
    require_models(config, [group.path])
    before = {shard: _files_of(store, group, shard) for shard in shards}
    work = [ShardTask(shard, (group.path,), replace=True) for shard in shards]
    with progress(f"repair {group.path}", images_of(work, store), "images") as bar:
        failures = run_inline(config, store, work, EncodeMonitor(config, store, (), bar))
    problems = [f"shard {failed.shard} ({failed.cause})" for failed in map(FailedShard.from_failure, failures)]
    _remove_temporary_files(store, group, shards)
    with open_store(store.location) as repaired:  # reopened, since the commits have changed
        group = repaired.group(group.path)
        problems += [str(each) for shard in shards for each in ShardVerifier(repaired, group, shard, None).verify()]
        after = {shard: _files_of(repaired, group, shard) for shard in shards}
    if problems:
        raise StoreError(f"{store.location}: {group.path} could not be repaired: {'; '.join(problems)}")
    changed = [shard for shard in shards if before[shard] not in (None, after[shard])]
    lines = [f"{group.path}: encoded shards {_listed(shards)} again"]
    if changed:
        lines.append(
            f"{group.path}: shards {_listed(changed)} differ from the first encoding in their last bits, as on another "
            "type of machine: runs that are resumed from this store are not bit-identical to uninterrupted ones"
        )
    return lines


def _remove_temporary_files(store: Store, group: Group, shards: list[int]) -> None:
    """Remove what an earlier, killed repair of these shards left behind."""
    remove_abandoned((store.path / commit_file(group.path, 0)).parent)
    for shard in shards:
        for folder in (store.path / group.path).glob(f"*/c/{shard}/**/"):
            remove_abandoned(folder)


def _config_of(store: Store, group: Group, options: RepairOptions) -> EncodeConfig:
    """Return the settings with which a group was encoded.

    Raises:
        StoreError: the group was imported or made by another program.
        SourceError: the source needs a plug-in that is not specified.
    """
    attributes, fingerprint, recorded = group.attributes, group.fingerprint, store.manifest.source
    if "imported_from" in fingerprint:
        raise StoreError(
            f"{store.location}: {group.path} was imported: run 'repa-pipe store verify --store {store.location} "
            "--repair', then 'repa-pipe store import-repa' or 'store import' again"
        )
    precision = _PRECISIONS.get(str(fingerprint.get("precision")).split()[0])
    if precision is None:
        raise StoreError(
            f"{store.location}: {group.path} has no recorded precision, so it was not encoded by repa-pipe: restore "
            "the damaged files from a copy"
        )
    read = SourceOptions.from_json(recorded.get("options", {}), f"source options of {store.location}")
    encoder, vae = attributes.get("encoder"), attributes.get("vae")
    return EncodeConfig(
        source=options.source or recorded["path"],
        source_kind=kind_of_recorded(recorded, options.source, options.source_kind),
        split=read.split,
        image_column=read.image_column,
        store=store.location,
        vae=require_trusted(vae) if vae else "sd-vae-ft-mse",  # unused without latents
        encoder=() if encoder is None else (encoder,),
        encoder_weights=tuple(entry for entry in options.encoder_weights if entry.startswith(f"{encoder}=")),
        resolution=store.manifest.resolution,
        flip=group.spec.has_flips,
        codec=attributes.get("codec", {}).get("name", "float16"),
        compile="compiled" in fingerprint,
        precision=precision,
        device=options.device or ("cpu" if "threads" in fingerprint else None),
    )


def _files_of(store: Store, group: Group, shard: int) -> object:
    """Return sizes and checksums of a shard's files; None if its commit record is damaged."""
    try:
        commit = read_commit(store.path, group.path, shard)
    except StoreError:
        return None
    return commit and commit.files


def _listed(shards: Sequence[int], most: int = 8) -> str:
    more = f" and {len(shards) - most:,} more" if len(shards) > most else ""
    return ", ".join(map(str, shards[:most])) + more
