"""Any JSON value becomes an instance of any of our dataclasses or a RepaPipeError, never another exception."""

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from repa_pipe.config import (
    AblateConfig,
    EncodeConfig,
    EvaluateConfig,
    ExportConfig,
    PlanConfig,
    ProbeConfig,
    RankConfig,
    SampleConfig,
    TrainConfig,
)
from repa_pipe.config.recipe import About
from repa_pipe.converter import parse_json, structure, unstructure
from repa_pipe.models.sit import SiTConfig
from repa_pipe.pipeline.ablation.sweep import Resources
from repa_pipe.pipeline.artifacts.checkpoints import StoreMetadata
from repa_pipe.pipeline.artifacts.machine_file import Machine
from repa_pipe.pipeline.artifacts.metric_files import MetricRecord
from repa_pipe.pipeline.artifacts.run_record import RunRecord, Session, time_text
from repa_pipe.pipeline.artifacts.sample_files import SampleRecord
from repa_pipe.sources import SourceOptions
from repa_pipe.sources.skipped import Skipped
from repa_pipe.stores.manifest import Manifest

EVALUATION = EvaluateConfig(samples="a.npz", reference="b")
INPUTS = {"path": "b", "statistics": "images", "statistics_images": 4, "images": 4}
SAMPLING = SampleConfig(checkpoint="run")
SESSION = Session(
    started=time_text(0),
    ended=None,
    updated=time_text(1),
    state="running",
    error=None,
    start_step=0,
    end_step=1,
    host="here",
    pid=1,
    gpu=None,
    num_gpus=0,
    cpu="cpu",
    cpu_flags=("avx2",),
    versions={"torch": "2"},
    git_commit=None,
    git_dirty=None,
    command="repa-pipe train",
)
EXAMPLES = [
    TrainConfig(store="s"),
    SAMPLING,
    EVALUATION,
    EncodeConfig(source="i", store="s"),
    ProbeConfig(checkpoint="run"),
    RankConfig(store="s"),
    ExportConfig(checkpoint="run", out="a.safetensors"),
    PlanConfig(),
    AblateConfig(sweep="a.toml", store="s"),
    About("summary", "source", "published"),
    Resources(),
    SiTConfig(input_size=8, patch_size=2, in_channels=4, hidden_size=8, depth=2, num_heads=2, encoder_depth=1),
    StoreMetadata("vae", (1.0,), (0.0,), ("a",), "0" * 64, {"latents/vae": {"name": "x"}}),
    RunRecord(created=time_text(0), sessions=(SESSION,)),
    SampleRecord(SAMPLING, 1, 4),
    MetricRecord({"fid": 1.0}, 4, 4, {"inception": {"reference": INPUTS}}, (), EVALUATION),
    Machine(1.0),
    SourceOptions(),
    Skipped("hidden", 1, ".a"),
    Manifest(
        num_samples=1,
        resolution=16,
        crop="center",
        shard_size=1,
        index_digest="0" * 64,
        class_names=(),
        source={"kind": "folder", "path": "i"},
    ),
]
NAMES = [type(example).__name__ for example in EXAMPLES]

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-(2**70), 2**70),
    st.sampled_from([10**400, 2**63, -1, 0, 1]),
    st.floats(),
    st.text(),
    st.text(st.characters(), max_size=5),
    st.sampled_from(["\ud800", "\0", "linear", "2026-01-01T00:00:00+00:00", "9999-12-31T23:59:59-14:00", "1:2", "0/1"]),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.text(st.characters(), max_size=5), inner, max_size=4)
    ),
    max_leaves=12,
)


def require_accepted_or_refused(values, kind, survives):
    """What is accepted is what is written; what is refused names the place."""
    instance, refused = survives(lambda: structure(values, kind, "here"))
    if refused is None:
        plain = unstructure(instance)
        assert repr(unstructure(structure(plain, kind, "here"))) == repr(plain)  # NaN is not equal to itself
    else:
        assert str(refused).startswith("here: ")


def places_of(values, place=()):
    yield place
    inner = values.items() if isinstance(values, dict) else enumerate(values) if isinstance(values, list) else ()
    for key, value in inner:
        yield from places_of(value, (*place, key))


def replaced(values, place, value):
    if not place:
        return value
    copied = values.copy()
    copied[place[0]] = replaced(values[place[0]], place[1:], value)
    return copied


@pytest.mark.parametrize("example", EXAMPLES, ids=NAMES)
def test_examples_survive_a_round_trip(example):
    assert structure(json.loads(json.dumps(unstructure(example))), type(example), "here") == example


def check_any_value(data, survives):
    require_accepted_or_refused(data.draw(VALUES), type(data.draw(st.sampled_from(EXAMPLES))), survives)


def check_one_changed_value(data, survives):
    example = data.draw(st.sampled_from(EXAMPLES))
    values = unstructure(example)
    place = data.draw(st.sampled_from(list(places_of(values))))
    require_accepted_or_refused(replaced(values, place, data.draw(VALUES)), type(example), survives)


def check_text(text, survives):
    values, refused = survives(lambda: parse_json(text, "here"))
    if refused is None:
        assert repr(json.loads(text.decode("utf-8-sig"))) == repr(values)
    else:
        assert str(refused).startswith("here")


QUICK = settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[*HealthCheck])
LONG = settings(QUICK, max_examples=2_000)
TEXT = st.one_of(st.binary(), VALUES.map(lambda value: json.dumps(value).encode()))


@QUICK
@given(data=st.data())
def test_any_value_is_accepted_or_refused(data, mutations):
    check_any_value(data, mutations.survives)


@QUICK
@given(data=st.data())
def test_one_changed_value_is_accepted_or_refused(data, mutations):
    check_one_changed_value(data, mutations.survives)


@QUICK
@given(text=TEXT)
def test_any_bytes_are_parsed_or_refused(text, mutations):
    check_text(text, mutations.survives)


@pytest.mark.slow
@LONG
@given(data=st.data())
def test_two_thousand_values_are_accepted_or_refused(data, mutations):
    check_any_value(data, mutations.survives)


@pytest.mark.slow
@LONG
@given(data=st.data())
def test_two_thousand_changes_of_one_value_are_accepted_or_refused(data, mutations):
    check_one_changed_value(data, mutations.survives)


@pytest.mark.slow
@LONG
@given(text=TEXT)
def test_two_thousand_texts_are_parsed_or_refused(text, mutations):
    check_text(text, mutations.survives)
