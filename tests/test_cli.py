"""Help of every command, verbosity, recipes, and errors: one line and exit code 2 for anything a user can get wrong."""

import re
from pathlib import Path
from types import SimpleNamespace

import click
import pytest

from repa_pipe import cli
from repa_pipe.config import TrainConfig
from repa_pipe.pipeline import evaluate_checkpoints, train

COMMANDS = [
    "plan",
    "encode",
    "train",
    "sample",
    "export",
    "evaluate",
    "evaluate-checkpoints",
    "nearest",
    "probe",
    "rank",
    "ablate",
]
COMMANDS += [
    "report",
    "runs",
    "compare",
    "env",
    "recipes",
    "encoders",
    "demo",
    "store",
    "store info",
    "store ls",
    "store stats",
    "store verify",
    "store repair",
    "store export",
    "store push",
    "store pull",
]
COMMANDS += ["store show", "store quality", "store import", "store import-repa"]
STAGES = COMMANDS[: COMMANDS.index("report")]  # their options come from a config


@pytest.fixture
def call(run_cli):
    return run_cli


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(call, command):
    code, out, _ = call(*command.split(), "--help")
    assert code == 0
    assert f"Usage: repa-pipe {command} " in out


def test_the_list_of_commands_is_complete():
    def names(group, prefix=""):
        for name, command in group.commands.items():
            yield prefix + name
            if isinstance(command, click.Group):
                yield from names(command, f"{prefix}{name} ")

    assert sorted(COMMANDS) == sorted(names(cli.cli))


@pytest.mark.parametrize("group", [[], ["store"]], ids=["repa-pipe", "store"])
def test_no_line_of_an_overview_is_cut_off_at_80_columns(call, monkeypatch, group):
    monkeypatch.setenv("COLUMNS", "80")
    _, out, _ = call(*group, "--help")
    assert "...\n" not in out.split("Commands:")[1]


@pytest.mark.parametrize("columns", ["80", "110"])
@pytest.mark.parametrize("command", COMMANDS)
def test_no_line_of_help_breaks_at_a_hyphen_or_inside_a_default(call, monkeypatch, command, columns):
    monkeypatch.setenv("COLUMNS", columns)
    _, out, _ = call(*command.split(), "--help")
    assert not re.search(r"\w-\n|\[default:\n", out)
    assert "\u2011" not in out
    assert "\u00a0" not in out
    assert all(len(line) <= int(columns) for line in out.splitlines())


@pytest.mark.parametrize("command", STAGES)
def test_every_option_states_its_default(call, monkeypatch, command):
    monkeypatch.setenv("COLUMNS", "80")
    _, out, _ = call(command, "--help")
    options = re.split(r"\n  (?=--)", out.split("\n  -v, --verbose")[0])[1:]
    assert len(options) > 3
    options = [option for option in options if not option.startswith("--dry-run")]
    for option in options:
        assert re.search(r"\[default: .+\]|Default: .+\.|\[required\]", " ".join(option.split())), option


def test_recipes_and_encoders_are_listed(call):
    code, out, _ = call("recipes")
    assert code == 0
    assert re.search(r"^repa .*arXiv 2410.06940 .*FID 7.9", out, re.MULTILINE)
    code, out, _ = call("encoders", "DINOV2-vit-[sb]")
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()[1:]] == ["dinov2-vit-s", "dinov2-vit-b"]
    assert re.search(r"dinov2-vit-b +86.6 M +16 x 16 x 768 +yes +apache-2.0 +https://", out)
    assert_one_line(call("encoders", "nothing*"), "no encoder matches 'nothing*'", "dinov2-vit-b")


def test_shell_completion_completes_commands_and_options(monkeypatch, call):
    monkeypatch.setenv("_REPA_PIPE_COMPLETE", "bash_complete")
    for line, expected in (("repa-pipe tra", "plain,train"), ("repa-pipe train --proj-co", "plain,--proj-coeff")):
        monkeypatch.setenv("COMP_WORDS", line)
        monkeypatch.setenv("COMP_CWORD", str(len(line.split()) - 1))
        code, out, _ = call()
        assert code == 0
        assert expected in out.splitlines()


# --- verbosity ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "shown"),
    [
        ([], ["some info", "warning: a warning"]),
        (["-v"], ["NAME: a detail", "NAME: some info", "warning: NAME: a warning"]),
        (["--verbose"], ["NAME: a detail", "NAME: some info", "warning: NAME: a warning"]),
        (["-q"], ["warning: a warning"]),
        (["--quiet"], ["warning: a warning"]),
    ],
)
def test_verbosity_selects_the_messages_on_stderr(call, monkeypatch, flags, shown):
    def run(config):
        train.logger.debug("a detail")
        train.logger.info("some info")
        train.logger.warning("a warning")
        return train.TrainResult("run", 1, "checkpoint", 0.0)

    monkeypatch.setattr(train, "run", run)
    code, out, errors = call("train", "--store", "s", *flags)
    assert code == 0
    assert '"checkpoint": "checkpoint"' in out  # results do not depend on verbosity
    assert errors.replace(train.logger.name, "NAME").splitlines() == shown


# --- recipes -----------------------------------------------------------------------------------------------------


@pytest.fixture
def trained(monkeypatch):
    """The configs that `train` was called with."""
    configs = []

    def run(config):
        configs.append(config)
        return train.TrainResult("run", 1, "checkpoint", 0.0)

    monkeypatch.setattr(train, "run", run)
    return configs


def test_train_applies_a_recipe_below_the_flags(call, trained):
    code, _, _ = call("train", "--store", "s", "--recipe", "irepa", "--spatial-norm", "0.5", "--seed", "3")
    assert code == 0
    assert trained == [
        TrainConfig(store="s", encoder_depth=8, proj_coeff=1.0, projector="conv", spatial_norm=0.5, seed=3)
    ]


def test_train_accepts_a_file_as_recipe(call, trained, tmp_path):
    (tmp_path / "own.toml").write_text('model = "SiT-B/2"\nlearning_rate = 1\n')
    assert call("train", "--store", "s", "--recipe", tmp_path / "own.toml")[0] == 0
    assert trained == [TrainConfig(store="s", model="SiT-B/2", learning_rate=1.0)]


def test_a_wrong_recipe_is_one_line(call, trained, tmp_path):
    assert_one_line(
        call("train", "--store", "s", "--recipe", "sit"),
        "--recipe is 'sit'",
        "irepa, irepa-jit, lightningdit, rae-dit-dh",
    )
    (tmp_path / "own.toml").write_text("learning_rat = 1\n")
    answer = call("train", "--store", "s", "--recipe", tmp_path / "own.toml")
    assert_one_line(answer, "own.toml", "unknown key 'learning_rat'", "learning_rate")
    assert trained == []


# --- the two spellings of `evaluate-checkpoints` -----------------------------------------------------------------


@pytest.fixture
def evaluated(monkeypatch):
    """The configs that `evaluate_checkpoints` was called with."""
    configs = []

    def run(sampling, evaluation):
        configs.append((sampling, evaluation))
        row = {"step": 1000, "metrics": {"fid": 12.5}, "warnings": []}
        return SimpleNamespace(rows=[row], json="curve.json", page="curve.html")

    monkeypatch.setattr(evaluate_checkpoints, "run", run)
    return configs


def test_evaluate_checkpoints_and_its_old_spelling_do_the_same(call, evaluated):
    options = ["--reference", "ref", "--detector", "enc", "--out", "o.json", "--device", "cpu", "--num-steps", "7"]
    answers = [
        call("evaluate-checkpoints", "runs/a", *options),
        call("evaluate", "runs/a", "--every-checkpoint", *options),
        call("evaluate", "--every-checkpoint", *options, "runs/a"),
    ]
    assert answers[0] == (0, "     step  fid\n    1,000  12.5000\nsaved to curve.json and curve.html\n", "")
    assert answers[1:] == answers[:1] * 2
    sampling, evaluation = evaluated[0]
    assert evaluated[1:] == evaluated[:1] * 2
    assert (sampling.checkpoint, sampling.num_steps, sampling.device) == ("runs/a", 7, "cpu")
    assert (evaluation.reference, evaluation.detector, evaluation.out) == ("ref", ("enc",), "o.json")


def test_the_help_of_evaluate_does_not_show_the_old_spelling(call):
    _, out, _ = call("evaluate", "--help")
    assert "Usage: repa-pipe evaluate [OPTIONS] [IMAGES or RUN]\n" in out
    assert "use `evaluate-checkpoints`" in out
    for word in ("--every-checkpoint", "--num-steps", "--cfg-scale", "--ray"):
        assert word not in out


def test_evaluate_refers_to_evaluate_checkpoints(call, evaluated):
    for words in (["--every-checkpoint"], [], ["runs/a", "--samples", "a.npz"]):
        assert call("evaluate", *words, "--reference", "ref")[0] == 2
    code, _, errors = call("evaluate", "--samples", "a.npz", "--reference", "ref", "--num-steps", "7")
    assert code == 2
    assert "--num-steps is an option of 'repa-pipe evaluate-checkpoints'." in errors
    assert evaluated == []


# --- errors ------------------------------------------------------------------------------------------------------


def assert_one_line(answer, *words):
    code, _, errors = answer
    lines = [line for line in errors.splitlines() if line.startswith("error:")]
    assert code == 2, errors
    assert len(lines) == 1
    assert "Traceback" not in errors
    for word in words:
        assert word in lines[0]


def test_a_missing_store_is_one_line(call, tmp_path):
    nowhere = tmp_path / "nowhere"
    assert_one_line(call("train", "--store", nowhere), "no store at", str(nowhere), "repa-pipe encode")
    assert_one_line(call("store", "info", nowhere), "no store at")


def test_an_unknown_encoder_is_one_line(call, tmp_path, images):
    answer = call(
        "encode", "--source", images, "--store", tmp_path / "s", "--vae", "tiny-kl-f8", "--encoder", "dino-v9"
    )
    assert_one_line(answer, "dino-v9")


def test_an_unknown_vae_is_one_line(call, tmp_path, images):
    assert_one_line(call("encode", "--source", images, "--store", tmp_path / "s", "--vae", str(tmp_path / "no-vae")))


def test_an_empty_folder_is_one_line(call, tmp_path):
    (tmp_path / "empty").mkdir()
    answer = call("encode", "--source", tmp_path / "empty", "--store", tmp_path / "s", "--vae", "tiny-kl-f8")
    assert_one_line(answer, "empty")
    assert not (tmp_path / "s").exists()


def test_a_source_that_needs_an_option_is_one_line_with_the_flag(call, images):
    data = Path(__file__).parent / "data/hf_arrow"
    assert_one_line(call("plan", "--source", data / "two_labels"), "--label-column fine_label")
    assert_one_line(call("plan", "--source", data / "two_splits"), "--split train")
    assert_one_line(call("plan", "--source", images, "--image-column", "img"), "--image-column does not apply")
    code, out, _ = call("plan", "--source", data / "two_splits", "--split", "test")
    assert code == 0
    assert "2 images" in out


def test_a_store_of_other_images_is_one_line(call, tmp_path, images, make_store):
    store, _ = make_store()
    answer = call("encode", "--source", images, "--store", store, "--vae", "tiny-kl-f8")
    assert_one_line(answer, "was made from something else")


def test_a_missing_checkpoint_is_one_line(call, tmp_path):
    assert_one_line(call("sample", "--checkpoint", tmp_path / "run"), "no checkpoint", "repa-pipe train")


def test_missing_samples_are_one_line(call, tmp_path):
    answer = call(
        "evaluate", "--samples", tmp_path / "a.npz", "--reference", tmp_path, "--detector", "efficientnet-lite0"
    )
    assert_one_line(answer, "a.npz")


def test_a_folder_that_is_not_a_run_is_one_line(call, tmp_path):
    assert_one_line(call("report", tmp_path, "--out", tmp_path / "page.html"))


def test_invalid_values_name_their_flag(call, tmp_path):
    assert_one_line(call("train", "--store", tmp_path, "--batch-size", "0"), "--batch-size is 0")
    assert_one_line(
        call("encode", "--source", "a", "--store", "b", "--resolution", "100"), "--resolution is 100", "96 or 112"
    )
    code, _, errors = call("train", "--store", "s", "--path-type", "round")
    assert code == 2
    assert "'round' is not one of 'linear', 'cosine'" in errors


def test_a_damaged_store_is_found_and_repaired(call, make_store):
    path, _ = make_store()
    assert call("store", "verify", path)[0] == 0
    file = path / "features/enc/tokens/c/1/0/0"
    data = bytearray(file.read_bytes())
    data[100] ^= 4
    file.write_bytes(data)
    code, out, _ = call("store", "verify", path, "--repair")
    assert code == 1
    assert "features/enc" in out
    assert "dropped 1 shard" in out
    _, out, _ = call("store", "info", path)
    assert "features/enc: 3 of 4 shards" in out


@pytest.fixture
def images(tmp_path):
    from PIL import Image

    folder = tmp_path / "images/cat"
    folder.mkdir(parents=True)
    for number in range(3):
        Image.new("RGB", (300, 280), (number * 50, 80, 120)).save(folder / f"{number}.png")
    return tmp_path / "images"
