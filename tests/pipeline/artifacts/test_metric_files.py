"""Names of metrics, and which metrics count as finished."""

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from repa_pipe.config import EvaluateConfig, SampleConfig
from repa_pipe.pipeline.artifacts.metric_files import (
    MetricRecord,
    curve_file,
    finished_metrics,
    input_digests,
    metrics_file,
    read_metrics_file,
    write_metrics_file,
)

IMAGES = {"statistics": "images", "statistics_images": 8, "images": 8}
FILE = {"statistics": "file", "statistics_images": None, "images": 8}


@pytest.fixture(autouse=True)
def _inputs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in ("generated", "generated.v1", "generated.v2", "reference"):
        Path(folder).mkdir()
    for name in ("a", "generated"):
        np.savez(f"{name}.npz", arr_0=np.zeros((8, 4, 4, 3), np.uint8))
    np.savez("adm.npz", arr_0=np.zeros((8, 4, 4, 3), np.uint8), mu=np.zeros(2), sigma=np.eye(2))
    for path in tmp_path.iterdir():
        os.utime(path, (1, 1))


def config_of(samples="a.npz", **options):
    return EvaluateConfig(**{"samples": samples, "reference": "reference"} | options)


def record_of(config, fid=1.0, inputs=IMAGES):
    detectors = {name: {"name": name, "width": 2} for name in config.detector}
    if inputs:
        detectors = {name: values | {"reference": inputs} for name, values in detectors.items()}
    return MetricRecord({"fid": fid}, 8, 8, detectors, (), config)


def evaluate(config, fid=1.0, inputs=IMAGES):
    path = metrics_file(config)
    write_metrics_file(path, record_of(config, fid, inputs))
    return path


def test_metrics_of_other_samples_or_settings_never_share_a_file():
    configs = [
        *(config_of(samples) for samples in ("a.npz", "generated.npz", "generated", "generated.v1", "generated.v2")),
        config_of(reference="adm.npz"),
        config_of(detector=("inception", "efficientnet-lite0")),
        config_of(resize=4),
    ]
    paths = [evaluate(config, number) for number, config in enumerate(configs)]
    assert len(set(paths)) == len(paths)
    assert paths[0] == Path("a.metrics.json")
    assert paths[3:5] == [Path("generated.v1.metrics.json"), Path("generated.v2.metrics.json")]
    found = [finished_metrics(config) for config in configs]
    assert [record.metrics["fid"] for record in found] == list(range(len(configs)))


def test_metrics_are_found_for_every_spelling_and_after_a_move(tmp_path, monkeypatch):
    reference = str(tmp_path / "reference")
    evaluate(config_of(reference=reference))
    for samples, spelling in (("./a.npz", "reference/"), (str(tmp_path / "a.npz"), f"../{tmp_path.name}/reference")):
        assert finished_metrics(config_of(samples, reference=spelling)) is not None
    Path("moved").mkdir()
    for name in ("a.npz", "a.metrics.json"):
        Path(name).rename(Path("moved", name))
    assert finished_metrics(config_of("moved/a.npz")) is not None
    monkeypatch.chdir("moved")
    assert finished_metrics(config_of("a.npz", reference="../reference")) is not None


def test_metrics_of_a_folder_with_a_dot_are_found_under_the_name_of_earlier_versions():
    config = config_of("generated.v1")
    old = Path("generated.metrics.json")  # the last suffix was replaced
    write_metrics_file(old, record_of(config))
    assert metrics_file(config) == old
    other = metrics_file(config_of("generated.v2"))
    assert other == Path("generated.v2.metrics.json")
    assert metrics_file(config_of("generated")) not in {old, other}


def test_the_current_folder_has_metrics_next_to_it(tmp_path, monkeypatch):
    monkeypatch.chdir("generated")
    assert metrics_file(config_of(".")) == tmp_path / "generated.metrics.json"
    assert metrics_file(config_of("..")) == Path(f"{tmp_path}.metrics.json")


def test_damaged_metrics_are_replaced():
    Path("a.metrics.json").write_text("{")
    assert metrics_file(config_of()) == Path("a.metrics.json")
    assert finished_metrics(config_of()) is None


@pytest.mark.parametrize("changed", ["a.npz", "reference"])
def test_metrics_without_digests_that_are_older_than_an_input_are_not_finished(changed):
    path = evaluate(config_of())
    assert finished_metrics(config_of()) is not None
    os.utime(changed, ns=(path.stat().st_mtime_ns + 1,) * 2)
    assert finished_metrics(config_of()) is None
    assert metrics_file(config_of()) == path


def test_metrics_with_digests_are_finished_until_the_content_of_an_input_changes():
    Path("weights.pth").write_bytes(b"weights")
    options = {"reference": "adm.npz", "detector": ("lite",), "encoder_weights": ("lite=weights.pth",)}
    config = config_of(**options)
    path = metrics_file(config)
    write_metrics_file(path, replace(record_of(config), inputs=input_digests(config)))
    assert set(input_digests(config)) == {"samples", "reference", "weights of lite"}
    later = (path.stat().st_mtime_ns + 1,) * 2
    for name in ("a.npz", "adm.npz", "weights.pth"):  # copied or touched
        os.utime(name, ns=later)
    assert finished_metrics(config) is not None
    for name in ("a.npz", "adm.npz", "weights.pth"):
        content = Path(name).read_bytes()
        if name == "weights.pth":
            Path(name).write_bytes(b"Weights")
        else:
            np.savez(name, arr_0=np.ones((8, 4, 4, 3), np.uint8), mu=np.zeros(2), sigma=np.eye(2))
        os.utime(name, (1, 1))  # older than the metrics
        assert finished_metrics(config) is None
        Path(name).write_bytes(content)
    assert finished_metrics(config) is not None


def test_a_folder_is_compared_by_its_time():
    config = config_of("generated")
    path = metrics_file(config)
    write_metrics_file(path, replace(record_of(config), inputs=input_digests(config)))
    assert input_digests(config) == {}
    assert finished_metrics(config) is not None
    os.utime("generated", ns=(path.stat().st_mtime_ns + 1,) * 2)
    assert finished_metrics(config) is None


@pytest.mark.parametrize(
    ("samples", "reference", "is_reused"),
    [("a.npz", "generated.npz", True), ("a.npz", "adm.npz", False), ("generated", "a.npz", False)],
)
def test_metrics_of_versions_that_chose_their_inputs_silently_are_computed_again(samples, reference, is_reused):
    config = config_of(samples, reference=reference)
    evaluate(config, inputs=None)
    assert (finished_metrics(config) is not None) == is_reused


def test_a_record_states_the_number_of_reference_images_of_every_metric():
    config = config_of(detector=("inception", "lite"))
    metrics = {"fid": 1.0, "sfid": 1.0, "precision": 1.0, "fd_lite": 1.0, "recall_lite": 1.0}
    detectors = {"inception": {"reference": FILE}, "lite": {"reference": IMAGES}}
    record = replace(record_of(config), metrics=metrics, detectors=detectors, num_reference=None)
    assert [record.num_reference_of(name) for name in metrics] == [None, None, 8, 8, 8]
    assert record.reference_text() == (
        "inception: reference statistics of an unrecorded number of images (FID, sFID) and 8 reference images (other "
        "metrics); lite: 8 reference images"
    )
    for inputs, text in (
        (IMAGES, "8 reference images"),
        (FILE | {"images": None, "statistics_images": 50_000}, "reference statistics of 50,000 images"),
        (None, "8 reference images"),
    ):
        assert record_of(config_of(), inputs=inputs).reference_text() == text
    path = Path("record.json")
    write_metrics_file(path, record)
    assert read_metrics_file(path) == record


def test_curves_of_other_settings_never_share_a_file():
    sampling = SampleConfig(checkpoint="run")
    choices = [
        (sampling, config_of()),
        (sampling, config_of(reference="adm.npz")),
        (replace(sampling, cfg_scale=1.5 + 1e-9), config_of()),
    ]
    paths = []
    for sampled, evaluated in choices:
        path = curve_file(sampled, evaluated)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"rows": [], "sampling": sampled.as_json(), "evaluation": evaluated.as_json()}))
        paths.append(path)
    assert len(set(paths)) == 3
    assert paths[0] == Path("run/by-step/ode50-cfg1.5-seed0-50000.json")
    assert [curve_file(*choice) for choice in choices] == paths
    moved = replace(sampling, checkpoint=str(Path("run").resolve())), config_of(str(Path("run").resolve()))
    assert curve_file(*moved).resolve() == paths[0].resolve()
