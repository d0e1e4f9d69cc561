"""Short versions of the benchmarks, their smallest arguments, and their list."""

import importlib
import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

FOLDER = Path(__file__).parents[1] / "benchmarks"
PARTS = {
    "synthetic.py",
    "peers.py",
    "peer_tables.py",
    "peer_loaders.py",
    "object_server.py",
    "arguments.py",
    "chaos_world.py",
    "chaos_trials.py",
}
SCRIPTS = sorted(path.name for path in FOLDER.glob("*.py") if path.name not in PARTS)


@pytest.fixture
def benchmark(monkeypatch):
    """Import a benchmark by its name, as its forked processes do."""
    monkeypatch.syspath_prepend(FOLDER)
    return importlib.import_module


def test_every_script_is_listed():
    text = (FOLDER / "README.md").read_text()
    commands = re.findall(
        r"^\| `([a-z_]+\.py)[^`]*` \|.*\| `python benchmarks/([a-z_]+\.py)[^`]*` \|$", text, re.MULTILINE
    )
    assert all(script == run for script, run in commands)
    assert sorted({script for script, _ in commands}) == SCRIPTS


@pytest.mark.parametrize(
    ("script", "words"),
    [("encode", ["--images", "0"]), ("prefetch", ["--samples", "255"]), ("step", ["--rounds", "0"])],
)
def test_numbers_that_are_too_small_are_refused(benchmark, script, words, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [script, *words])
    with pytest.raises(SystemExit):
        benchmark(script).main()
    assert f"argument {words[0]}: {words[1]} is too small: expected at least" in capsys.readouterr().err


@pytest.mark.parametrize("count", [8, 15, 256, 320, 512, 640, 10_000])
def test_a_measurement_of_encode_has_shards_after_those_of_the_warm_up(benchmark, count):
    encode = benchmark("encode")
    shards = -(-count // encode.shard_size(count))
    assert shards > 2 * encode.IN_FLIGHT  # two workers
    assert count - 2 * encode.IN_FLIGHT * encode.shard_size(count) > 0
    assert encode.shard_size(640) == encode.SHARD


@pytest.mark.parametrize(
    ("count", "one", "two"), [(1, 0, 0), (2, 0, 0), (3, 1, 0), (5, 3, 1), (8, 6, 4), (512, 384, 256)]
)
def test_encode_is_measured_with_the_images_after_the_warm_up(benchmark, count, one, two):
    encode = benchmark("encode")
    assert [encode.measured_images(count, workers) for workers in (1, 2)] == [one, two]


def test_figures_of_encode_from_too_few_images_are_listed(benchmark):
    assert benchmark("encode").few_images({"inline": 64, "ray-1": 63, "ray-2": 0}) == {
        "ray-1": "measured with 63 of at least 64 images",
        "ray-2": "measured with 0 of at least 64 images",
    }


def test_decoding_is_only_compared_if_the_crops_are_equal(benchmark, tmp_path, monkeypatch):
    if importlib.util.find_spec("foolbox") is None:
        pytest.skip("the extra 'demo' is not installed")
    monkeypatch.delitem(sys.modules, "decode", raising=False)  # the package itself, if its folder has this name
    decode = benchmark("decode")
    monkeypatch.setattr(decode, "LARGE", decode.SMALL)
    folder = decode.write_images(tmp_path, 1)["jpeg"]
    assert decode.compare(folder, 1, 64)["encode / pillow"] > 0
    monkeypatch.setattr(decode, "by_pillow", lambda path, size: np.zeros((size, size, 3), np.uint8))
    with pytest.raises(AssertionError, match="not equal"):
        decode.compare(folder, 1, 64)


@pytest.mark.slow
def test_encode_is_measured_with_few_images(benchmark):
    row = benchmark("encode").throughput(3, 1)
    rates, ratios = row["images_per_s"], row["ratios"]
    assert set(row["too_few_images"]) == set(rates) == {"inline", "ray-1", "ray-2", "published", "loop"}
    assert {name for name, rate in rates.items() if rate is None} == {"ray-2"}  # both actors only warm up
    assert all(rate > 0 for rate in rates.values() if rate is not None)
    assert {name for name, ratio in ratios.items() if ratio is None} == {"ray-2 / loop", "ray-2 / published"}


@pytest.mark.slow
def test_reading_from_an_object_store_is_measured_with_one_batch(benchmark, tmp_path, monkeypatch):
    remote, out = benchmark("remote"), tmp_path / "rows.json"
    monkeypatch.setattr(remote, "WARM_UP", 1)
    words = ["remote.py", "--rounds", "1", "--latencies", "0", "--folder", str(tmp_path), "--out", str(out)]
    monkeypatch.setattr(sys, "argv", words)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION", "AWS_ENDPOINT", "AWS_ALLOW_HTTP"):
        monkeypatch.setenv(name, "")  # the script sets them
    remote.main()
    rows = json.loads(out.read_text())["rows"]
    assert len(rows) == 7
    assert all(row["samples_per_s"] > 0 for row in rows)


@pytest.mark.slow
def test_start_up_is_measured_with_one_image(benchmark, tmp_path, monkeypatch):
    startup, out = benchmark("startup"), tmp_path / "table.json"
    program = str(Path(sys.executable).with_name("repa-pipe"))
    words = ["startup.py", "--program", program, "--encode", "1", "--runs", "1", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", words)
    startup.main()
    assert all(seconds > 0 for [[seconds, _]] in json.loads(out.read_text())["table"].values())


@pytest.mark.slow
def test_a_store_survives_ten_kills_with_identical_bytes(tmp_path, benchmark):
    summary = benchmark("kill_encode").kill_runs(tmp_path, runs=10, images=48, seed=1)
    assert summary["killed"] >= 5
    assert summary["differing_files"] == 0
    assert len(summary["shards_committed_when_killed"]) >= 3


@pytest.mark.slow
def test_one_trial_of_every_kind_survives(tmp_path, benchmark, capsys):
    chaos = benchmark("chaos")
    counts = chaos.run_trials(tmp_path, minutes=0, seed=1, kinds=list(chaos.KINDS))
    assert sum(count["tried"] for count in counts.values()) >= len(chaos.KINDS) - 1  # without root, no disk is filled
    bad = {
        kind: dict(count) for kind, count in counts.items() if count["lost"] or count["silent"] or count["tracebacks"]
    }
    assert bad == {}, capsys.readouterr().err


def test_the_parts_for_a_gpu_take_at_most_40_minutes(benchmark):
    assert sum(part.minutes for part in benchmark("gpu").PARTS) <= 40


def test_a_part_that_fails_is_recorded_and_the_next_one_begins(benchmark, tmp_path, monkeypatch, capsys):
    gpu = benchmark("gpu")
    parts = [gpu.Part("bad", 1, "", "-m no_such_module"), gpu.Part("slow", 0.01, "", "-m http.server 0")]
    monkeypatch.setattr(gpu, "PARTS", [*parts, gpu.Part("good", 1, "", "-m platform")])
    monkeypatch.setattr(sys, "argv", ["gpu", "--tiny", "--out", str(tmp_path / "gpu.json")])
    with pytest.raises(SystemExit, match="failed: bad, slow"):
        gpu.main()
    found = json.loads((tmp_path / "gpu.json").read_text())["parts"]
    assert "No module named no_such_module" in found[0]["error"]
    assert found[1]["error"] == "not finished after 0.01 minutes"
    assert found[2]["error"] is None


@pytest.mark.slow
def test_everything_for_a_gpu_runs_in_its_smallest_form(tmp_path):
    command = [FOLDER / "gpu.sh", "--tiny", "--out", tmp_path / "gpu.json"]
    subprocess.run(command, check=True, env=os.environ | {"PYTHON": sys.executable}, timeout=600)
    parts = json.loads((tmp_path / "gpu.json").read_text())["parts"]
    expected = {"tests", "step", "sample", "encode models", "decode codes", "tokens as latents"}
    assert {part["part"] for part in parts} == expected


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_products_of_blocks_in_float8_keep_names_and_almost_the_output(benchmark):
    pytest.importorskip("torchao")
    from repa_pipe.models.sit import make_sit, sit_config

    torch.manual_seed(0)
    model = make_sit(sit_config("SiT-T/2", input_size=8, in_channels=4, num_classes=10, z_dims=(16,)))
    for block in model.blocks:
        torch.nn.init.normal_(block.adaLN_modulation[-1].weight, std=0.02)
    torch.nn.init.normal_(model.final_layer.linear.weight, std=0.02)
    names = list(model.state_dict())
    inputs = torch.randn(2, 4, 8, 8), torch.rand(2), torch.tensor([0, 1])
    exact = model.eval()(*inputs)[0]
    benchmark("step").use_float8(model.blocks, emulate=True)
    rounded = model(*inputs)[0]
    assert list(model.state_dict()) == names
    assert 0 < (rounded - exact).norm() / exact.norm() < 0.1
