"""Which values of a metric may stand in one column."""

import dataclasses

import pytest

from repa_pipe.config import EvaluateConfig
from repa_pipe.pipeline.artifacts.metric_bases import all_bases, bases, differences
from repa_pipe.pipeline.artifacts.metric_files import MetricRecord
from repa_pipe.pipeline.reporting.metrics import _columns

REFERENCE = {"statistics": "images", "statistics_images": 9, "images": 9}
VALUES = {"name": "i", "width": 3, "reference": REFERENCE, "rule": "to 299", "library": "lib 1", "weights": "0" * 64}
CONFIG = EvaluateConfig(samples="a.npz", reference="b.npz")
RECORD = MetricRecord({"fid": 1.0, "kid": 0.5}, 8, 9, {"inception": VALUES}, (), CONFIG)


def changed(**values):
    return dataclasses.replace(RECORD, detectors={"inception": {**VALUES, **values}})


OTHERS = {
    "9 images": dataclasses.replace(RECORD, num_samples=9),
    "reference c.npz": dataclasses.replace(RECORD, config=dataclasses.replace(CONFIG, reference="c.npz")),
    "--resize 64": dataclasses.replace(RECORD, config=dataclasses.replace(CONFIG, resize=64)),
    "7 reference images": changed(reference={**REFERENCE, "statistics_images": 7}),
    "to 224": changed(rule="to 224"),
    "lib 2": changed(library="lib 2"),
    "weights 11111111": changed(weights="1" * 64),
}


@pytest.mark.parametrize("difference", OTHERS)
def test_values_on_different_bases_are_in_different_columns(difference):
    other = OTHERS[difference]
    columns = _columns([RECORD, other, RECORD])
    fids = {basis: len(records) for (key, basis), records in columns.items() if key == "fid"}
    assert list(fids.values()) == [2, 1]
    assert list(fids)[1] == difference
    one, another = all_bases([RECORD, other])
    assert one != another


def test_equal_bases_share_a_column_whatever_else_differs():
    other = dataclasses.replace(RECORD, metrics={"fid": 2.0, "recall": 0.5}, seconds=3.0, warnings=("few",))
    assert {key: len(records) for key, records in _columns([RECORD, other]).items()} == {
        ("fid", ""): 2,
        ("kid", ""): 1,
        ("recall", ""): 1,
    }
    assert len(set(all_bases([RECORD, other]))) == 1


def test_a_record_of_an_earlier_version_is_on_the_basis_that_the_others_agree_on():
    earlier = dataclasses.replace(RECORD, detectors={"inception": {"name": "i", "width": 3, "reference": REFERENCE}})
    assert len(set(bases([RECORD, earlier], "fid"))) == 1
    three = bases([RECORD, earlier, OTHERS["lib 2"]], "fid")
    assert differences(three) == ["lib 1", "unrecorded", "lib 2"]


def test_the_mean_of_six_detectors_depends_on_all_of_them():
    def record(library):
        detectors = {"inception": VALUES, "mae-l-224": {**VALUES, "library": library}}
        return dataclasses.replace(RECORD, metrics={"fdr6": 1.0, "fid": 2.0}, detectors=detectors)

    assert differences(bases([record("timm 1"), record("timm 2")], "fdr6")) == ["lib 1; timm 1", "lib 1; timm 2"]
    assert differences(bases([record("timm 1"), record("timm 2")], "fid")) == ["", ""]
    assert record("timm 1").split("fdr6") == ("fdr6", "six detectors")
