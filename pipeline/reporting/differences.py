"""What differs between runs: settings, stores, and the machines and versions that trained them. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from ...config import TrainConfig, flag, paths
from ...config.paths import PathKind
from ...errors import RepaPipeError, first_line
from ...stores import Store, open_store
from ...stores.layout import latents_group
from ..artifacts.run_record import RunRecord
from .runs import Run
from .side_by_side import Row, Section

_NOT_COMPARED = {"store", "output_dir", "exp_name", "notes", "tag"}  # the store has a section of its own
_OF_FINGERPRINTS = 12  # digits of digests that are shown


def settings_sections(runs: Sequence[Run]) -> list[Section]:
    """Return the settings that differ: those that affect the result, then the others."""
    affecting: list[Row] = []
    others: list[Row] = []
    for item in fields(TrainConfig):
        values = tuple(getattr(run.config, item.name) for run in runs)
        if item.name in _NOT_COMPARED or _are_equal(item.metadata["path"], values):
            continue
        (affecting if item.metadata["affects_result"] else others).append(Row(flag(item.name), values))
    return [
        Section("Settings that differ and affect the result", tuple(affecting)),
        Section("Other settings that differ", tuple(others)),
    ]


def _are_equal(kind: PathKind | None, values: Sequence[Any]) -> bool:
    first = values[0]
    for other in values[1:]:
        both_text = isinstance(first, str) and isinstance(other, str)
        if first != other and not (kind is not None and both_text and paths.same(first, other, kind)):
            return False
    return True


def store_section(runs: Sequence[Run]) -> Section:
    """Return what differs between the stores as they are now: images, crops, and fingerprints of what the runs read."""
    title = "Stores that differ"
    locations = tuple(run.config.store for run in runs)
    if _are_equal(PathKind.PATH, locations):
        return Section(title, (), (f"all runs read {locations[0]}",))
    facts, notes = [], []
    for run in runs:
        try:
            with open_store(run.config.store) as store:
                facts.append(_store_facts(store, run.config))
        except (RepaPipeError, OSError) as error:
            facts.append({})
            notes.append(f"the store of {run.name} cannot be read ({first_line(error)})")
    rows = _different(facts)
    if rows or notes:
        notes.insert(0, "losses on different images are not comparable")
    else:
        notes.append("these stores hold the same images and models")
    return Section(title, (Row("store", locations), *rows), tuple(notes))


def _store_facts(store: Store, config: TrainConfig) -> dict[str, Any]:
    manifest = store.manifest
    facts: dict[str, Any] = {
        "images": manifest.num_samples,
        "resolution": manifest.resolution,
        "crop": manifest.crop,
        "classes": len(manifest.class_names),
        "sample index": manifest.index_digest[:_OF_FINGERPRINTS],
    }
    latents = [f"features/{config.token_latents}"] if config.token_latents else []
    latents += [latents_group(config.vae)] if config.vae else []
    for path in dict.fromkeys([*latents, *(f"features/{name}" for name in config.enc_type)]):
        facts |= {f"{path} {name}": value for name, value in _flat(store.group(path).fingerprint).items()}
    return facts


def _flat(values: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """Return the leaves of nested mappings by their path."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        found |= _flat(value, f"{before}{name}.") if isinstance(value, dict) else {f"{before}{name}": value}
    return found


def environment_section(records: Sequence[RunRecord | None]) -> Section:
    """Return what differs between the machines, versions and commits of the last session of each run."""
    facts = [_environment(record) for record in records]
    missing = sum(not each for each in facts)
    note = f"{missing} of {len(facts)} runs recorded none, as version 0.1.0 did not" if missing else ""
    return Section("Machines and versions that differ", _different(facts), (note,) if note else ())


def _environment(record: RunRecord | None) -> dict[str, Any]:
    if record is None or not record.sessions:
        return {}
    last = record.sessions[-1]
    facts: dict[str, Any] = {
        "host": last.host,
        "GPU": last.gpu,
        "GPUs": last.num_gpus,
        "CPU": last.cpu,
        "CPU flags": last.cpu_flags,
    }
    facts |= {f"{name} version": version for name, version in last.versions.items()}
    return facts | {"git commit": last.git_commit, "uncommitted changes": last.git_dirty}


def _different(facts: Sequence[Mapping[str, Any]]) -> tuple[Row, ...]:
    """Return a row for each name whose values differ; runs without any facts have none."""
    rows = []
    for name in dict.fromkeys(name for each in facts for name in each):
        known = [each.get(name) for each in facts if each]
        if any(value != known[0] for value in known):
            rows.append(Row(name, tuple(each.get(name) for each in facts)))
    return tuple(rows)
