"""The base class of all configs, tested on the configs of the commands."""

import dataclasses
import json
import typing

import pytest

from repa_pipe import cli
from repa_pipe.config import (
    AblateConfig,
    EncodeConfig,
    EvaluateConfig,
    ExportConfig,
    NearestConfig,
    PlanConfig,
    ProbeConfig,
    RankConfig,
    SampleConfig,
    TrainConfig,
    flag,
)
from repa_pipe.config.base import weights_by_name
from repa_pipe.converter import choices_of
from repa_pipe.errors import ConfigError
from repa_pipe.options import config_of

# one config per command, with the required settings alone
MINIMAL = [
    AblateConfig(sweep="sweep.toml", store="s"),
    EncodeConfig(source="images", store="s"),
    EvaluateConfig(samples="a.npz", reference="s"),
    ExportConfig(checkpoint="run", out="a.safetensors"),
    PlanConfig(),
    ProbeConfig(checkpoint="run"),
    NearestConfig(samples="a.npz", store="s"),
    RankConfig(store="s"),
    SampleConfig(checkpoint="run"),
    TrainConfig(store="s"),
]
# values that `validate` accepts, for fields where the generated one would be refused
VALID = {
    "eval_every": 200,
    "self_blocks": "3,8",
    "term": ("a=1", "b=0.5"),
    "resolution": 512,
    "spatial_norm": 0.5,
    "heun": True,
    "time": (0.25, 0.75),
    "block": (3, 4),
    "detector": ("inception", "enc"),
    "out": "other.json",
    "cfg_scale": 2.0,
    "max_bad": 0.25,
    "max_image_pixels": 25_000_000,
    "test_share": 0.5,
    "profile_steps": "100:105",
    "report_to": "wandb,trackio",
    "part": "1/4",
    "repo": "me/model",
    "projector_kernel_size": 5,
}
# settings that a field requires
NEEDED = {
    "separate_attention": {"token_groups": 0.25},
    "projector_kernel_size": {"projector": "conv"},
    "val_steps": {"val_fraction": 0.125},
    "lr_decay_steps": {"lr_schedule": "cosine"},
    "lr_constant_steps": {"lr_schedule": "cosine"},
    "time_mean": {"weighting": "lognormal"},
    "time_std": {"weighting": "lognormal"},
    "attn_encoder": {"attn_coeff": 0.5},
    "to": {"license": "mit"},
    "repo": {"to": "hub", "license": "mit"},
    "private": {"to": "hub", "license": "mit", "repo": "me/model"},
    "with_diffusers": {"to": "hub", "license": "mit", "repo": "me/model"},
    "license": {"to": "diffusers"},
    "lr_final": {"lr_schedule": "cosine", "learning_rate": 1.0},
}


def parse(config):
    """Return the config that the command line parses from the flags of `config`."""
    context = cli.cli.commands[config.kind].make_context(config.kind, config.flags())
    return config_of(type(config), context.params)


def other_value(config, name):
    """Return a valid value of a field that differs from its value in `config`."""
    value, hint = getattr(config, name), typing.get_type_hints(type(config))[name]
    if name in VALID:
        return VALID[name]
    if choices := choices_of(hint):
        return next(choice for choice in choices if choice != value)
    kinds = [kind for kind in typing.get_args(hint) if kind is not type(None)] or [hint]
    if typing.get_origin(hint) is tuple:
        return tuple(kinds[0](text) for text in ("1", "2"))
    if kinds[0] is bool:
        return not value
    if kinds[0] is float:
        return 0.125
    return value + 1 if isinstance(value, int) else kinds[0]("7")


def changes():
    for config in MINIMAL:
        for field in dataclasses.fields(config):
            if field.name != "encoder_weights":  # is checked against --encoder and --detector
                yield pytest.param(config, field.name, id=f"{config.kind} {flag(field.name)}")


@pytest.mark.parametrize(("config", "name"), list(changes()))
def test_every_flag_round_trips_through_the_command_line_and_json(config, name):
    changed = dataclasses.replace(config, **{name: other_value(config, name)}, **NEEDED.get(name, {}))
    assert changed != config
    assert parse(changed) == changed
    assert type(config).from_json(json.loads(json.dumps(changed.as_json()))) == changed


@pytest.mark.parametrize("config", MINIMAL, ids=lambda config: config.kind)
def test_defaults_round_trip_through_the_command_line_without_flags(config):
    assert parse(config) == config
    required = [field.name for field in dataclasses.fields(config) if field.default is dataclasses.MISSING]
    assert config.flags() == [word for name in required for word in (flag(name), getattr(config, name))]


def test_a_command_can_be_pasted_into_a_shell():
    config = TrainConfig(store="my store", enc_type=("a", "b"), flip=True, allow_tf32=False, learning_rate=1e-5)
    assert config.command() == (
        "repa-pipe train --store 'my store' --enc-type a --enc-type b --learning-rate 1e-05 --no-allow-tf32 --flip"
    )
    assert config.flag_groups(without=("store", "learning_rate")) == [
        ["--enc-type", "a"],
        ["--enc-type", "b"],
        ["--no-allow-tf32"],
        ["--flip"],
    ]


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (TrainConfig, {"path_type": "round"}, "--path-type is 'round': expected one of linear, cosine"),
        (TrainConfig, {"mixed_precision": "fp8"}, "--mixed-precision is 'fp8': expected one of fp32, fp16, bf16"),
        (SampleConfig, {"mode": "ddim"}, "--mode is 'ddim': expected one of ode, sde"),
        (EncodeConfig, {"codec": "fp8"}, "--codec is 'fp8': expected one of float16, int8, int4"),
    ],
)
def test_a_value_outside_of_its_literal_type_names_the_flag_and_the_choices(kind, options, message):
    required = {"store": "s", "checkpoint": "run", "source": "images"}
    names = {field.name for field in dataclasses.fields(kind)}
    with pytest.raises(ConfigError) as raised:
        kind(**{name: value for name, value in required.items() if name in names}, **options)
    assert str(raised.value) == message


@pytest.mark.parametrize("value", ["mlflow", "wandb,mlflow", "wandb,none", "wandb,wandb", ""])
def test_trackers_are_names_with_commas(value):
    with pytest.raises(ConfigError, match="expected one of tensorboard, wandb, trackio, aim, several of them with"):
        TrainConfig(store="s", report_to=value)
    names = {"wandb": ("wandb",), "aim, wandb": ("aim", "wandb"), "none": (), None: None}
    assert {each: TrainConfig(store="s", report_to=each).trackers for each in names} == names


def test_none_is_accepted_where_a_choice_is_optional():
    assert TrainConfig(store="s", report_to=None).report_to is None
    assert EncodeConfig(source="images", store="s", precision=None).precision is None


def test_settings_that_do_not_affect_the_result_are_not_compared():
    one = TrainConfig(store="s")
    moved = dataclasses.replace(
        one, store="elsewhere", output_dir="runs", device="cuda", log_steps=1, max_train_steps=7, fsdp=True, ray=True
    )
    assert one.same_result_as(moved)
    assert one.differences(moved) == []
    assert one.result_settings() == moved.result_settings()
    assert "log_steps" not in TrainConfig.result_fields()
    assert not one.same_result_as(dataclasses.replace(moved, seed=1))


def test_differences_say_what_was_recorded_and_what_is_requested():
    recorded = TrainConfig(store="s", enc_type=("a",))
    requested = dataclasses.replace(recorded, enc_type=("a", "b"), learning_rate=2e-4, seed=7, log_steps=1)
    assert recorded.differences(requested) == [
        "--enc-type: recorded ('a',), requested ('a', 'b')",
        "--learning-rate: recorded 0.0001, requested 0.0002",
        "--seed: recorded 0, requested 7",
    ]


@pytest.mark.parametrize(
    ("ray", "address", "expected"),
    [(False, None, False), (True, None, True), (False, "auto", True), (True, "ray://head:10001", True)],
)
def test_an_address_alone_means_ray(ray, address, expected):
    for config in (
        EncodeConfig(source="images", store="s", ray=ray, ray_address=address),
        TrainConfig(store="s", ray=ray, ray_address=address),
        SampleConfig(checkpoint="run", ray=ray, ray_address=address),
    ):
        assert config.uses_ray is expected


def test_repeatable_fields_are_those_with_several_values():
    assert EncodeConfig.repeatable_fields() == ("encoder", "encoder_weights")
    assert ProbeConfig.repeatable_fields() == ("encoder", "block", "time")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"store": "s", "sed": 1}, "a file: unknown key 'sed'; expected seed"),
        ({"seed": 1}, "a file: required key 'store' is missing"),
        ({"store": "s", "seed": "1"}, "a file: seed: expected int, found str"),
        ({"store": "s", "seed": 1.5}, "a file: seed: expected int, found float"),
        ({"store": "s", "batch_size": 0}, "a file: --batch-size is 0: must be at least 1"),
    ],
)
def test_json_that_is_not_a_config_is_refused_with_its_place(values, message):
    with pytest.raises(ConfigError) as raised:
        TrainConfig.from_json(values, "a file")
    assert str(raised.value) == message


def test_weights_are_assigned_to_encoders_by_name():
    config = EncodeConfig(source="i", store="s", encoder=("a", "b"), encoder_weights=("b=dir/b=1.pt",))
    assert (config.weights_of("a"), config.weights_of("b")) == (None, "dir/b=1.pt")
    for entry in ("b.pt", "c=c.pt"):
        with pytest.raises(ConfigError, match=f"--encoder-weights is '{entry}': expected NAME=PATH .* one of a, b"):
            weights_by_name((entry,), ("a", "b"))
    with pytest.raises(ConfigError, match=r"--encoder is .*: each value may be given only once"):
        EncodeConfig(source="i", store="s", encoder=("a", "a"))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"time_mean": 0.8}, "time-mean is 0.8: requires --weighting lognormal"),
        ({"time_std": 0.8, "weighting": "truncated_lognormal"}, "time-std is 0.8: requires --weighting lognormal"),
        ({"time_mean": 11.0, "weighting": "lognormal"}, "time-mean is 11.0: expected a number from -10 to 10"),
        ({"time_std": 0.0, "weighting": "lognormal"}, "time-std is 0.0: expected a number above 0"),
    ],
)
def test_mean_and_deviation_are_those_of_lognormal_times(changed, message):
    with pytest.raises(ConfigError, match=message):
        TrainConfig(store="s", **changed)
