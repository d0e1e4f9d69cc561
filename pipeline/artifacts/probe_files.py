"""Files of probes: their names and contents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, TypedDict

from msgspec import Meta

from ...config import ProbeConfig
from ...config.paths import same_settings
from ...converter import read_record, structure
from ...errors import ConfigError
from .names import digest_of, with_ending
from .run_folder import RunFolder, run_of

STREAMS = "random_streams"

Row = dict[str, Any]  # checkpoint, step, time, block, accuracy, cknna_<encoder> …


class _Position(TypedDict):
    """What a row is about."""

    checkpoint: str  # name and time of the file
    step: Annotated[int, Meta(ge=0)]
    time: Annotated[float, Meta(ge=0, le=1)]
    block: Annotated[int, Meta(ge=1)]


@dataclass(frozen=True, slots=True)
class ProbeRecord:
    """The contents of a file of probes."""

    rows: list[Row]
    encoder_accuracy: dict[str, float]
    settings: dict[str, Any] = field(default_factory=dict)
    cknna_topk: Annotated[int, Meta(ge=1)] | None = None

    def __post_init__(self) -> None:
        measures = {"accuracy", *(f"cknna_{encoder}" for encoder in self.encoder_accuracy)}
        for number, row in enumerate(self.rows):
            where = f"rows[{number}]"
            structure({name: value for name, value in row.items() if name not in measures}, _Position, where)
            structure({name: row.get(name) for name in measures}, dict[str, float], where)


def read_probes(path: Path) -> ProbeRecord:
    """Read a file of probes; raise ConfigError when it is damaged or not from this version."""
    return read_record(path, ProbeRecord, "delete it, and probe again")


def probe_file(out: str | None, settings: Mapping[str, Any], checkpoints: Sequence[Path]) -> Path:
    """Return the file of the probes of checkpoints: `out`, else `probe.json` in the run folder.

    For a checkpoint outside of a run folder, it is next to the checkpoint. If probes with other settings or of another
    training have the name, it ends with a digest of the settings and the checkpoint.
    """
    if out:
        return Path(out)
    last = checkpoints[-1]
    run = run_of(last)
    plain = (run or RunFolder(last.parent)).probes
    names = None if run else {path.name for path in checkpoints}
    if not plain.exists() or _may_take(plain, settings, names):
        return plain
    identity = {"settings": settings, "checkpoint": None if run else last.name}
    return with_ending(plain, ".json", f"-{digest_of(identity)}.json")


def _may_take(plain: Path, settings: Mapping[str, Any], names: set[str] | None) -> bool:
    try:
        return _holds(read_probes(plain), settings, names)
    except ConfigError:
        return True  # damaged: it will be set aside


def _holds(recorded: ProbeRecord, settings: Mapping[str, Any], names: set[str] | None) -> bool:
    """Return whether probes have the same settings, and are of the files `names` alone; None: whatever the files.

    Probes with the random streams of an earlier version are replaced, since those of a run can be computed again.
    """
    files = {row["checkpoint"].rpartition(" ")[0] for row in recorded.rows}
    streams = {STREAMS: settings.get(STREAMS)}
    return same_probe_settings(recorded.settings | streams, dict(settings) | streams) and (
        names is None or files <= names
    )


def same_probe_settings(recorded: Mapping[str, Any] | None, settings: Mapping[str, Any]) -> bool:
    """Return whether recorded settings give the same probes, whatever the spelling of the store's path.

    Settings that an earlier version did not have are their defaults.
    """
    return same_settings(ProbeConfig.with_defaults(recorded or {}), ProbeConfig.with_defaults(settings))
