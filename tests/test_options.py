"""Options made from configs: sections of the help, positional arguments, config files, messages as JSON."""

import dataclasses
import json
import re

import pytest

from repa_pipe import cli, config
from repa_pipe.config import SECTIONS, TrainConfig
from repa_pipe.errors import ConfigError
from repa_pipe.options import config_of

CONFIGS = [kind for kind in vars(config).values() if isinstance(kind, type) and "kind" in vars(kind)]


def parse(*words):
    return config_of(TrainConfig, cli.train.make_context("train", list(words)).params)


@pytest.fixture
def config_file(tmp_path):
    def write(text):
        path = tmp_path / "settings.toml"
        path.write_text(text)
        return str(path)

    return write


@pytest.mark.parametrize("kind", CONFIGS, ids=lambda kind: kind.kind)
def test_every_field_has_a_section(kind):
    assert {field.metadata["section"] for field in dataclasses.fields(kind)} <= set(SECTIONS)


def test_help_shows_options_in_sections(run_cli):
    _, out, _ = run_cli("train", "--help")
    titles = re.findall(r"^(\w+) options:$", out, re.MULTILINE)
    assert titles == ["Data", "Model", "Objective", "Optimization", "Output", "Hardware", "General"]
    sections = dict(zip(titles, re.split(r"^\w+ options:$", out, flags=re.MULTILINE)[1:], strict=True))
    assert "--enc-type" in sections["Data"]
    assert "--proj-coeff " in sections["Objective"]
    assert "--learning-rate" in sections["Optimization"]
    assert "--config FILE" in sections["General"]


def test_help_lists_arguments_in_the_usage_line_only(run_cli):
    for command in ("train", "report", "runs", "encoders"):
        _, out, _ = run_cli(command, "--help")
        assert out.splitlines()[0].endswith("]") or out.splitlines()[0].endswith("]...")
        assert not re.search(r"^  \[", out, re.MULTILINE)


# --- positional arguments ----------------------------------------------------------------------------------------


def test_a_required_option_may_be_given_by_position():
    assert parse("mystore") == parse("--store", "mystore") == TrainConfig(store="mystore")
    assert parse("--seed", "3", "mystore").seed == 3


def test_words_go_to_the_options_that_have_no_flag(run_cli, monkeypatch):
    from repa_pipe.pipeline import encode

    found = []

    def run(config):
        found.append((config.source, config.store))
        return encode.EncodeResult(config.store, {}, 0, 0, 0, 0.0, None, [])

    monkeypatch.setattr(encode, "run", run)
    for words in (["a", "b"], ["--source", "a", "b"], ["a", "--store", "b"], ["--store=b", "a"]):
        assert run_cli("encode", *words)[0] == 0
    assert found == [("a", "b")] * 4


@pytest.mark.parametrize("command", ["train", "rank", "store info", "store verify", "store ls"])
def test_a_missing_store_and_a_second_one_are_refused(run_cli, command):
    code, _, errors = run_cli(*command.split())
    assert (code, errors.splitlines()[-1]) == (2, "Error: Missing STORE: pass it as an argument or with --store.")
    for words in (["a", "b"], ["--store", "a", "b"]):
        code, _, errors = run_cli(*command.split(), *words)
        assert (code, errors.splitlines()[-1]) == (2, "Error: Got unexpected extra argument 'b'.")


@pytest.mark.parametrize("command", ["sample", "probe", "evaluate-checkpoints"])
def test_a_run_may_be_given_by_position_or_by_flag(run_cli, command, tmp_path):
    reference = ["--reference", "r"] if command == "evaluate-checkpoints" else []
    answers = [run_cli(command, *words, *reference) for words in (["nowhere"], ["--checkpoint", "nowhere"])]
    assert answers[0] == answers[1]
    assert answers[0][0] == 2
    assert "no checkpoint" in answers[0][2]


# --- config files ------------------------------------------------------------------------------------------------


def test_a_config_file_replaces_defaults_and_flags_override_it(config_file):
    path = config_file('store = "s"\nseed = 3\nenc_type = ["a", "b"]\nlearning_rate = 1\nlegacy = true\n')
    config = parse("--config", path, "--seed", "4")
    assert config == TrainConfig(store="s", seed=4, enc_type=("a", "b"), learning_rate=1.0, legacy=True)
    assert not parse("--config", path, "--no-legacy").legacy
    assert parse("--config", path, "--enc-type", "c").enc_type == ("c",)
    assert parse("other", "--config", path).store == "other"


@pytest.mark.parametrize("first", ["--recipe", "--config"])
def test_a_config_file_overrides_a_recipe_in_any_order(config_file, first):
    words = {"--recipe": "irepa", "--config": config_file("proj_coeff = 0.25\n")}
    order = [first, *({"--recipe", "--config"} - {first})]
    config = parse("s", *(word for name in order for word in (name, words[name])))
    assert (config.proj_coeff, config.projector) == (0.25, "conv")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sed = 1", "unknown key 'sed'; expected seed"),
        ('seed = "1"', "seed: expected int, found str"),
        ("seed = 1.5", "seed: expected int, found float"),
        ("batch_size = 0", "--batch-size is 0: must be at least 1"),
        ("seed = ", "cannot be read"),
    ],
)
def test_an_error_in_a_config_file_names_the_file_and_the_key(config_file, text, message):
    path = config_file(text)
    with pytest.raises(ConfigError, match=f"--config {path}") as raised:
        parse("s", "--config", path)
    assert message in str(raised.value)


def test_a_missing_config_file_is_one_line(run_cli, tmp_path):
    code, _, errors = run_cli("rank", "s", "--config", tmp_path / "none.toml")
    assert code == 2
    assert errors.startswith(f"error: --config {tmp_path}/none.toml cannot be read")
    assert errors.count("\n") == 1


# --- messages as JSON --------------------------------------------------------------------------------------------


def test_messages_and_errors_can_be_json(run_cli, tmp_path):
    code, _, errors = run_cli("train", tmp_path / "nowhere", "--log-format", "json")
    (record,) = map(json.loads, errors.splitlines())
    assert code == 2
    assert record["level"] == "error"
    assert record["message"].startswith("no store at")


def test_progress_as_json_has_numbers(capsys):
    from repa_pipe.pipeline.runtime.console import log_to_stderr
    from repa_pipe.pipeline.runtime.progress import progress

    log_to_stderr(log_format="json")
    try:
        with progress("encode", 10, "images", initial=2) as bar:
            bar.update(8)
        record = json.loads(capsys.readouterr().err)
    finally:
        log_to_stderr()
    assert (record["done"], record["total"], record["unit"], record["seconds_left"]) == (10, 10, "images", 0)
    assert record["per_second"] > 0
    assert record["message"].startswith("encode: 10 of 10 images, ")
