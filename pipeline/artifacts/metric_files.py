"""Files of metrics, of one set of images or of all checkpoints of a run: their names, contents and completeness."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired, TypeAlias, TypedDict

from msgspec import Meta

from ...config import EvaluateConfig, SampleConfig
from ...config.paths import place
from ...config.paths import same as same_path
from ...converter import read_record, unstructure
from ...errors import ConfigError, RepaPipeError
from ...models.checked_zip import zip_digest
from ...stores.files import last_change, write_json
from ...stores.layout import SAMPLES_FILE
from ...stores.upload import ROOT
from .digests import file_digest
from .images import holds_statistics, read_npz_header
from .names import digest_of, with_ending
from .run_folder import RunFolder
from .sample_files import IMAGES_ENDING, METRICS_ENDING, SampleFiles, sample_sets, settings_name

INCEPTION = "inception"  # the detector whose metrics are named without it
LPIPS = "lpips"  # the detector of diversity, which needs no reference
DISTANCES = ("fid", "sfid", "fd", "fdr")  # metrics that are computed from statistics
FDR6 = "fdr6"  # a mean over six detectors
SIX = "six detectors"
REFERENCE = "reference"  # role of what samples are compared with
SAMPLES = "samples"
Count: TypeAlias = Annotated[int, Meta(ge=0)]


class Inputs(TypedDict):
    """What a detector compared with. `path`: as `config.paths.place` spells it."""

    path: NotRequired[str]
    statistics: Literal["file", "images"]
    statistics_images: Count | None  # None when a statistics file does not record them
    images: Count | None  # None for statistics alone


class DetectorValues(TypedDict, total=False):
    """A detector, and what it compared with: since version 0.2. `rule`, `library`, `weights`: since version 0.2."""

    name: str
    width: Count
    reference: Inputs  # not of LPIPS
    rule: str  # how images become features
    library: str  # name and version
    weights: str  # SHA-256


@dataclass(frozen=True, slots=True)
class MetricRecord:
    """The contents of `<name>.metrics.json`."""

    metrics: dict[str, Annotated[float, Meta(ge=-1e300, le=1e300)]]  # finite: no metric is computed of others
    num_samples: Count | None
    num_reference: Count | None  # images of the first Fréchet distance; None as in `Inputs.statistics_images`
    detectors: dict[str, DetectorValues]
    warnings: tuple[str, ...]
    config: EvaluateConfig
    seconds: float = 0.0
    inputs: dict[str, str] = dataclasses.field(default_factory=dict)  # digests of the files that were read, by role
    margins: dict[str, float] = dataclasses.field(default_factory=dict)  # half the width of the 95% interval

    def split(self, name: str) -> tuple[str, str]:
        """Split the name of a metric: `fd_efficientnet-lite0` → `("fd", "efficientnet-lite0")`.

        Most metrics of Inception are named without a detector: `fid` → `("fid", "inception")`.
        """
        if name == FDR6:
            return name, SIX
        for detector in self.detectors:
            if name.endswith(f"_{detector}"):
                return name.removesuffix(f"_{detector}"), detector
        return name, INCEPTION

    @property
    def has_inputs(self) -> bool:
        """Whether it is recorded which images and statistics of the reference were used, as since version 0.2."""
        return all("reference" in detector for name, detector in self.detectors.items() if name != LPIPS)

    def num_reference_of(self, name: str) -> int | None:
        """Return the number of reference images behind a metric; None when a statistics file does not record it."""
        kind, detector = self.split(name)
        inputs = self.detectors.get(detector, DetectorValues()).get("reference")
        if inputs is None:
            return self.num_reference
        return inputs["statistics_images" if kind in DISTANCES else "images"]

    def reference_text(self) -> str:
        """Describe what the samples were compared with, for each kind of metric."""
        if set(self.detectors) == {LPIPS}:
            return "each other"
        of_detectors = ((name, values) for name, values in self.detectors.items() if name != LPIPS)
        texts = {name: _reference_text(values.get("reference")) for name, values in of_detectors}
        if not self.has_inputs:
            return f"{self.num_reference:,} reference images" if self.num_reference else "reference statistics"
        if len(set(texts.values())) == 1:
            return next(iter(texts.values()))
        return "; ".join(f"{name}: {text}" for name, text in texts.items())


def _reference_text(inputs: Inputs | None) -> str:
    if inputs is None:
        return ""
    images = f"{inputs['images'] or 0:,} reference images"
    if inputs["statistics"] != "file":
        return images
    count = inputs["statistics_images"]
    statistics = f"reference statistics of {'an unrecorded number of' if count is None else f'{count:,}'} images"
    return statistics if inputs["images"] is None else f"{statistics} (FID, sFID) and {images} (other metrics)"


def resolve_samples(config: EvaluateConfig) -> EvaluateConfig:
    """Return the config with a run folder replaced by the images that were generated from its last checkpoint.

    Raises:
        ConfigError: no images were generated from it, or several sets of images.
    """
    run = RunFolder(Path(config.samples))
    if not run.config_file.exists():
        return config
    last = run.last_checkpoint().stem
    found = [files.npz for files in sample_sets(run) if files.npz.name.startswith(f"{last}-") and files.npz.exists()]
    if not found:
        raise ConfigError(
            f"{run.path} has no images of its last checkpoint, {last}: run 'repa-pipe sample --checkpoint {run.path}'"
        )
    if len(found) > 1:
        listed = ", ".join(map(str, found))
        raise ConfigError(f"{run.path} has {len(found)} sets of images of its last checkpoint: specify one of {listed}")
    return dataclasses.replace(config, samples=str(found[0]))


def metrics_file(config: EvaluateConfig) -> Path:
    """Return the file that evaluating with `config` writes: `--out`, else `NAME.metrics.json` next to the samples.

    If the metrics of an evaluation with other settings have this name, it ends with a digest of the settings.
    """
    if config.out:
        return Path(config.out)
    samples = Path(config.samples)
    if samples.name in {"", ".."}:  # the current folder, or the one above
        samples = samples.resolve()
    files = SampleFiles(samples)
    for path in (files.metrics, samples.with_suffix(METRICS_ENDING)):  # the latter as in 0.1.0: without a last suffix
        if _recorded(path, config) is not None:
            return path
    is_free = not files.metrics.exists() or _read(files.metrics) is None
    return files.metrics if is_free else files.metrics_with(_result_settings(config))


def curve_file(sampling: SampleConfig, evaluation: EvaluateConfig) -> Path:
    """Return the file of the metrics of every checkpoint: `--out`, else `by-step/<settings>.json` in the run folder.

    If a curve with other settings has this name, it ends with a digest of the settings.
    """
    if evaluation.out:
        if not evaluation.out.endswith(".json"):
            raise ConfigError(f"--out is {evaluation.out!r}: expected a name that ends in .json")
        return Path(evaluation.out)
    plain = RunFolder(Path(sampling.checkpoint)).curves / f"{settings_name(sampling)}.json"
    if _may_take(plain, sampling, evaluation):
        return plain
    settings = {"sampling": sampling.result_settings(), "evaluation": _result_settings(evaluation)}
    for part, name in (("sampling", "checkpoint"), ("evaluation", "samples")):  # where the run folder is
        del settings[part][name]
    return with_ending(plain, ".json", f"-{digest_of(settings)}.json")


def _may_take(curve: Path, sampling: SampleConfig, evaluation: EvaluateConfig) -> bool:
    """Return whether a curve does not exist, cannot be read, or has the same settings for the same run folder."""
    if not curve.exists():
        return True
    try:
        recorded = read_curve(curve)
    except RepaPipeError:
        return True
    sampled = dataclasses.replace(recorded.sampling, checkpoint=sampling.checkpoint)
    evaluated = dataclasses.replace(recorded.evaluation, samples=evaluation.samples)
    return sampled.same_result_as(sampling) and evaluated.same_result_as(evaluation)


@dataclass(frozen=True, slots=True)
class CurveRecord:
    """The contents of `by-step/<settings>.json`: metrics of every checkpoint, in the order of their steps."""

    rows: list[dict[str, Any]]  # step, samples, metrics by name, warnings
    sampling: SampleConfig
    evaluation: EvaluateConfig
    reference: str = ""  # what the samples were compared with, as printed


def read_curve(path: Path) -> CurveRecord:
    """Read a file of metrics of every checkpoint; raise ConfigError when it is damaged or not from this version."""
    return read_record(path, CurveRecord, "delete it, and run 'repa-pipe evaluate-checkpoints' again")


def write_metrics_file(path: Path, record: MetricRecord) -> None:
    """Write a file of metrics."""
    write_json(path, unstructure(record))


def read_metrics_file(path: Path) -> MetricRecord:
    """Read a file of metrics; raise ConfigError when it is damaged or not from this version."""
    return read_record(path, MetricRecord, "run 'repa-pipe evaluate' again on these images, or delete the file")


def finished_metrics(config: EvaluateConfig) -> MetricRecord | None:
    """Return the metrics of an earlier, finished evaluation of the same images with the same settings, if any."""
    path = metrics_file(config)
    record = _recorded(path, config)
    if record is None or not Path(config.samples).exists():
        return None
    digests = input_digests(config) if record.inputs else {}
    if any(digests.get(role) != digest for role, digest in record.inputs.items()):
        return None
    others = [given for role, given in _inputs(config).items() if role not in digests]
    if path.stat().st_mtime_ns < max((last_change(given) for given in others), default=0):
        return None
    return record if record.has_inputs or not _inputs_were_guessed(config) else None


def input_digests(config: EvaluateConfig) -> dict[str, str]:
    """Return digests of the files that metrics are computed from, by role.

    Those of folders and of archives other than zip are left out: they are too large to be read for a comparison, which
    is made with their time instead. A store has the digest of its table of samples.
    """
    digests = {}
    for role, path in _inputs(config).items():
        table = path / SAMPLES_FILE
        if table.exists():
            digests[role] = file_digest(table)
        elif path.is_file() and (role not in {SAMPLES, REFERENCE} or zip_digest(path)):
            digests[role] = file_digest(path)
    return digests


def _inputs(config: EvaluateConfig) -> dict[str, Path]:
    """Return what metrics are computed from: images, reference, and files of weights."""
    weights = {f"weights of {name}": config.weights_of(name) for name in config.detector}
    given = {SAMPLES: config.samples, REFERENCE: config.reference} | weights
    return {role: Path(path) for role, path in given.items() if path}


def _inputs_were_guessed(config: EvaluateConfig) -> bool:
    """Return whether versions that did not record their inputs may have used others than this one does.

    They took the images of a reference that also holds statistics, and scaled the images of a folder to the first one.
    """
    paths = [Path(config.samples), Path(config.reference)]
    if not all(path.suffix == IMAGES_ENDING or (path / ROOT).exists() for path in paths):
        return True  # a folder, or an archive
    return holds_statistics(paths[1]) and read_npz_header(paths[1]) is not None


def _recorded(path: Path, config: EvaluateConfig) -> MetricRecord | None:
    """Return the metrics in a file if they are those of the samples of `config` with the same settings."""
    record = _read(path)
    if record is None:
        return None
    reference = place(config.reference)
    here = str(path.parent / Path(record.config.samples).name)  # wherever the folder of both was moved
    known = any(same_path(spelling, config.samples) for spelling in (here, record.config.samples))
    inputs = (detector["reference"] for detector in record.detectors.values() if "reference" in detector)
    known &= all(each.get("path", reference) == reference for each in inputs)  # a relative path depends on the folder
    recorded = dataclasses.replace(record.config, samples=config.samples)
    return record if known and recorded.same_result_as(config) else None


def _read(path: Path) -> MetricRecord | None:
    """Return the metrics in a file; None if there are none, or if they are damaged or from another version."""
    try:
        return read_metrics_file(path) if path.exists() else None
    except RepaPipeError:
        return None


def _result_settings(config: EvaluateConfig) -> dict[str, Any]:
    """Return the settings that metrics depend on, without how paths are spelled."""
    return config.result_settings() | {
        "samples": Path(config.samples).name,
        "reference": place(config.reference),
    }
