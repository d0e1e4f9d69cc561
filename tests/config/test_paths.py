"""However a path is written, it means one place: in every config, and in comparisons of settings."""

import dataclasses
import typing
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from repa_pipe import config as configs
from repa_pipe.config.base import weights_by_name
from repa_pipe.config.paths import PathKind, absolute, plain, same, same_settings, split_named

CONFIGS = [value for name, value in vars(configs).items() if name.endswith("Config") and name != "Config"]
FIELDS = [
    (config, field.name, field.metadata["path"])
    for config in CONFIGS
    for field in dataclasses.fields(config)
    if field.metadata["path"]
]
NO_PATHS = {
    "self_blocks",
    "term",  # text that is no path, or that a source may read as anything
    "source", "source_kind", "encoder", "model", "enc_type", "exp_name", "notes", "tag", "group", "profile_steps",
    "report_to", "device", "eval_device", "eval_detector", "ray_address", "classes", "attn_encoder", "labels",
    "detector", "part", "token_latents",
    "license", "repo", "split", "image_column", "label_column", "class_order",
}  # fmt: skip

NAMES = st.text(st.sampled_from("ab c=~.-é"), min_size=1, max_size=6).filter(lambda name: name not in {".", ".."})


def make(config, **values):
    required = {each.name: "x.json" for each in dataclasses.fields(config) if each.default is dataclasses.MISSING}
    extra = {"encoder": "dinov2-vit-b"} if config.__name__ in {"EncodeConfig", "PlanConfig"} else {}
    if config.__name__ == "TrainConfig" and "encoder_weights" in values:
        extra = {"attn_coeff": 0.5, "attn_encoder": "dinov2-vit-b"}
    return config(**{**required, **extra, **values})


@pytest.mark.parametrize("config", CONFIGS)
def test_every_text_of_a_config_is_known_to_be_a_path_or_none(config):
    hints = typing.get_type_hints(config)
    text = {
        field.name
        for field in dataclasses.fields(config)
        if str in {hints[field.name], *typing.get_args(hints[field.name])}
    }
    paths = {field.name for field in dataclasses.fields(config) if field.metadata["path"]}
    assert text - paths <= NO_PATHS


@pytest.mark.parametrize(("config", "name", "kind"), FIELDS)
def test_the_home_folder_and_trailing_slashes_have_one_spelling(monkeypatch, config, name, kind):
    monkeypatch.setenv("HOME", "/home/me")
    detector = {"detector": "dinov2-vit-b"} if name == "encoder_weights" and config is configs.EvaluateConfig else {}
    prefix = "dinov2-vit-b=" if kind is PathKind.NAMED else ""

    def value(text):
        found = getattr(make(config, **detector, **{name: prefix + text}), name)
        return found[0] if isinstance(found, tuple) else found

    assert value("~/a b.json") == f"{prefix}/home/me/a b.json"
    assert value("/data/a.json") == f"{prefix}/data/a.json"
    assert value("/data/a.json/") == value("/data/a.json")


@given(parts=st.lists(NAMES, min_size=1, max_size=4), slashes=st.integers(1, 3), root=st.booleans())
def test_a_path_has_one_spelling_which_stays(parts, slashes, root):
    start = "/" * root
    text = start + ("/" * slashes).join(parts) + "/" * (slashes - 1)
    once = plain(text, PathKind.PATH)
    assert once == plain(once, PathKind.PATH) or once.startswith("~")
    assert plain(f"{start}{'/'.join(parts)}", PathKind.PATH) == once
    assert same(text, once)
    assert Path(absolute(once, PathKind.PATH)).is_absolute()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ""),
        ("../a/../b", "../a/../b"),  # a may be a symbolic link
        ("s3://bucket/a//b/", "s3://bucket/a//b"),
        ("~nobody-here/a", "~nobody-here/a"),
        ("repa-sit-xl-2-256", "repa-sit-xl-2-256"),
    ],
)
def test_text_that_must_not_change_does_not(text, expected):
    assert plain(text, PathKind.PATH) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [("stabilityai/vae/", "stabilityai/vae"), ("./vae", "./vae"), ("~/vae/", "/home/me/vae"), ("/vae/", "/vae")],
)
def test_names_of_models_stay_names_of_groups(monkeypatch, text, expected):
    monkeypatch.setenv("HOME", "/home/me")
    assert plain(text, PathKind.MODEL) == expected
    assert absolute(expected, PathKind.MODEL) == expected


def test_the_same_place_by_another_path_is_the_same_setting(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("file")
    recorded = make(configs.TrainConfig, init_from="file", indices="file", seed=1)
    for other in ("./file", str(tmp_path / "file"), "link", "../" + tmp_path.name + "/file"):
        assert recorded.same_result_as(make(configs.TrainConfig, init_from=other, indices=other, seed=1))
    assert recorded.differences(make(configs.TrainConfig, init_from="other", indices="file", seed=1)) == [
        "--init-from: recorded 'file', requested 'other'"
    ]
    evaluation = make(configs.EvaluateConfig, detector="mae-vit-l", encoder_weights="mae-vit-l=file")
    assert evaluation.same_result_as(dataclasses.replace(evaluation, encoder_weights=(f"mae-vit-l={tmp_path}/link",)))
    assert not evaluation.same_result_as(dataclasses.replace(evaluation, encoder_weights=()))
    assert same_settings({"store": "link", "seed": 1}, {"store": "file", "seed": 1})
    assert not same_settings({"store": "link", "seed": 1}, {"store": "file", "seed": 2})
    assert not same_settings(None, {"store": "file"})


def test_absolute_paths_are_those_of_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = configs.EncodeConfig(
        source="images/*.tar",
        store="store",
        vae="my-vae",
        encoder="mae-vit-l",
        encoder_weights="mae-vit-l=a=b.pth",
    ).absolute()
    assert (config.source, config.store) == (f"{tmp_path}/images/*.tar", f"{tmp_path}/store")
    assert (config.vae, config.encoder_weights) == ("my-vae", (f"mae-vit-l={tmp_path}/a=b.pth",))
    assert dataclasses.replace(config, class_order="natural").absolute().class_order == "natural"
    assert dataclasses.replace(config, class_order="order.txt").absolute().class_order == f"{tmp_path}/order.txt"
    remote = dataclasses.replace(config, store="s3://bucket/name", source="split=train", source_kind="numbered")
    assert (remote.absolute().store, remote.absolute().source) == ("s3://bucket/name", "split=train")


@pytest.mark.parametrize(
    ("text", "name", "path"),
    [
        ("dinov2-vit-b=/a/b.pth", "dinov2-vit-b", "/a/b.pth"),
        ("dinov2reg-vit-b@norm=plain=/a/b.pth", "dinov2reg-vit-b@norm=plain", "/a/b.pth"),
        ("dinov3-vit-l@layers=11.13.23+norm=plain=x=y", "dinov3-vit-l@layers=11.13.23+norm=plain", "x=y"),
        ("mae-vit-l@block=8=/odd@place=2", "mae-vit-l@block=8", "/odd@place=2"),
        ("dinov2-vit-b=/odd@place=2", "dinov2-vit-b", "/odd@place=2"),
        ("a\nb@norm=plain=/c\nd", "a\nb@norm=plain", "/c\nd"),
    ],
)
def test_names_of_encoders_with_options_are_split_from_their_path(text, name, path):
    assert split_named(text) == (name, "=", path)
    assert weights_by_name([text], [name]) == {name: path}
