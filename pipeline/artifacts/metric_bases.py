"""What values of a metric are based on: values on different bases are never compared."""

from __future__ import annotations

from collections.abc import Sequence

from .metric_files import SIX, MetricRecord

Basis = tuple[str, ...]
_PARTS = 7


def bases(records: Sequence[MetricRecord], metric: str) -> list[Basis]:
    """Return what each record's value of a metric is based on, in words.

    The parts are the number of images, the reference, its number of images, the size that images are scaled to, and the
    rule, library and weights of the detector. What a record does not have, such as the rule before version 0.2 or a
    metric that was not computed, counts as what the other records agree on.
    """
    found = [_parts(record, metric) if metric in record.metrics else (None,) * _PARTS for record in records]
    filled = []
    for column in zip(*found, strict=True):
        known = {part for part in column if part is not None}
        usual = next(iter(known)) if len(known) == 1 else "unrecorded"
        filled.append([usual if part is None else part for part in column])
    return [tuple(parts) for parts in zip(*filled, strict=True)]


def all_bases(records: Sequence[MetricRecord]) -> list[tuple[Basis, ...]]:
    """Return the bases of all metrics of each record: records are comparable if these are equal."""
    names = list(dict.fromkeys(name for record in records for name in record.metrics))
    by_metric = [bases(records, name) for name in names]
    return list(zip(*by_metric, strict=True)) if names else [() for _ in records]


def differences(found: Sequence[Basis]) -> list[str]:
    """Return the parts of each basis that differ between them, in words; empty texts if none does."""
    different = [i for i, parts in enumerate(zip(*found, strict=True)) if len(set(parts)) > 1]
    return [", ".join(basis[i] for i in different) for basis in found]


def _parts(record: MetricRecord, metric: str) -> tuple[str | None, ...]:
    detector = record.split(metric)[1]
    names = list(record.detectors) if detector == SIX else [detector]
    values = [record.detectors.get(name, {}) for name in names]

    def together(key: str) -> str | None:
        texts = [str(each[key]) for each in values if key in each]  # type: ignore[literal-required]
        return "; ".join(texts) if texts and len(texts) == len(values) else None

    weights = together("weights")
    count = record.num_reference_of(metric)
    return (
        "? images" if record.num_samples is None else f"{record.num_samples:,} images",
        f"reference {record.config.reference}",
        "statistics" if count is None else f"{count:,} reference images",
        "no --resize" if record.config.resize is None else f"--resize {record.config.resize}",
        together("rule"),
        together("library"),
        weights and f"weights {'; '.join(part[:8] for part in weights.split('; '))}",
    )
