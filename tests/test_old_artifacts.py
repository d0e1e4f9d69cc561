"""Stores, checkpoints, runs, generated images, metrics, probes and sweeps written by version 0.1.0 stay usable.

tests/data/README.md says how they were made.
"""

import json
import os
import sys
import tarfile
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from repa_pipe import cli
from repa_pipe.config import AblateConfig, EncodeConfig, EvaluateConfig, ProbeConfig, SampleConfig, TrainConfig
from repa_pipe.models.sit import SIT_PRESETS, SiTConfig
from repa_pipe.pipeline import ablate, encode, evaluate, probe, report, sample, train
from repa_pipe.pipeline import evaluate_checkpoints as evaluate_run
from repa_pipe.pipeline.ablation import job as ablate_run
from repa_pipe.pipeline.artifacts.checkpoints import list_checkpoints, load_checkpoint
from repa_pipe.pipeline.artifacts.metrics_log import read_metrics
from repa_pipe.stores import open_store

ARCHIVE = Path(__file__).parent / "data/made-by-0.1.0.tar.xz"
RUN = Path("exps/run")
FIRST_S = 1_700_000_000  # everything is as old as this, metrics are a minute younger than the images that they describe


@pytest.fixture(autouse=True)
def _artifacts(tmp_path, monkeypatch):
    """Unpack the artifacts, as if they had been written here, and work in their folder."""
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path, filter="data")
    monkeypatch.chdir(tmp_path)
    preset = partial(SiTConfig, patch_size=2, hidden_size=8, depth=2, num_heads=2, encoder_depth=1)
    monkeypatch.setitem(SIT_PRESETS, "SiT-test/2", preset)
    for path in tmp_path.rglob("*"):
        os.utime(path, (FIRST_S, FIRST_S + 60 * path.name.endswith(".metrics.json")))
    for path in tmp_path.rglob("samples/*[0-9].json"):
        values = json.loads(path.read_text())
        checkpoint = path.parents[1] / "checkpoints" / f"{values['step']:07d}.pt"
        values["settings"]["checkpoint"] |= {"path": str(checkpoint), "written": checkpoint.stat().st_mtime_ns}
        path.write_text(json.dumps(values))
    probes = json.loads((RUN / "probe.json").read_text())
    for row in probes["rows"]:
        name = row["checkpoint"].split()[0]
        row["checkpoint"] = f"{name} {(RUN / 'checkpoints' / name).stat().st_mtime_ns}"
    (RUN / "probe.json").write_text(json.dumps(probes))


def train_config(**changes):
    values = json.loads((RUN / "train.json").read_text())
    return TrainConfig.from_json(values | changes)


def forbidden(*_, **__):
    raise AssertionError("this is finished and must not be done again")


def test_a_store_opens_verifies_and_is_complete(monkeypatch, capsys):
    config = EncodeConfig(
        source="images",
        store="store",
        vae="tiny-kl-f8",
        encoder=("efficientnet-lite0",),
        device="cpu",
        shard_size=4,
        max_bad=0.5,
    )
    result = encode.run(config)
    assert (result.encoded, result.num_samples, result.quarantined, result.failed) == (0, 13, 1, [])
    with open_store("store") as store:
        rows = store.valid_indices(store.group_names())
        tokens = store.read(["features/efficientnet-lite0"], rows)["features/efficientnet-lite0/tokens"]
        assert tokens.shape == (12, 256, 112)
        assert np.isfinite(tokens).all()
    monkeypatch.setattr(sys, "argv", ["repa-pipe", "store", "verify", "store"])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 0, capsys.readouterr().out


def test_a_shard_that_is_gone_is_encoded_again():
    before = Path("store/latents/tiny-kl-f8/moments/c/1/0/0/0").read_bytes()
    Path("store/commits/latents/tiny-kl-f8/00001.json").unlink()
    config = EncodeConfig(source="images", store="store", vae="tiny-kl-f8", device="cpu", max_bad=0.5)
    with open_store("store") as store:
        fingerprint = store.group("latents/tiny-kl-f8").fingerprint
    try:
        result = encode.run(config)
    except Exception as error:  # other versions of the libraries: refused, and only for that reason
        assert any(f"{name}: " in str(error) for name in ("diffusers", "pillow", "torch")), error  # noqa: PT017
        return
    assert result.encoded == 4
    assert fingerprint["weights_sha256"]
    after = Path("store/latents/tiny-kl-f8/moments/c/1/0/0/0").read_bytes()
    assert len(after) == len(before)


def test_a_finished_run_is_finished():
    stamp = (RUN / "checkpoints/0000004.pt").stat().st_mtime_ns
    assert train.run(train_config()).step == 4
    assert (RUN / "checkpoints/0000004.pt").stat().st_mtime_ns == stamp


def test_a_run_resumes_to_the_same_losses_and_weights():
    losses = [row["loss"] for row in read_metrics(RUN)]
    old = load_checkpoint(RUN / "checkpoints/0000004.pt")
    old = {part: {name: value.clone() for name, value in old[part].items()} for part in ("model", "ema")}
    (RUN / "checkpoints/0000004.pt").unlink()
    result = train.run(train_config(max_train_steps=6))
    assert result.step == 6
    rows = read_metrics(RUN)
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert [row["loss"] for row in rows[:4]] == pytest.approx(losses, rel=1e-4)
    new = load_checkpoint(RUN / "checkpoints/0000004.pt")
    for part, weights in old.items():
        for name, value in weights.items():
            torch.testing.assert_close(new[part][name], value, rtol=1e-3, atol=1e-5)


def test_generated_images_and_metrics_are_not_made_again(monkeypatch):
    monkeypatch.setattr(evaluate, "extract", forbidden)
    sampling = SampleConfig(checkpoint=str(RUN), num_fid_samples=4, num_steps=2, device="cpu")
    made = sample.run(sampling)
    assert Path(made.npz).stat().st_mtime_ns == FIRST_S * 10**9
    recorded = json.loads((RUN / "by-step/ode2-cfg1.5-seed0-4.json").read_text())
    judging = EvaluateConfig(samples=str(RUN), reference="store", detector=("efficientnet-lite0",), device="cpu")
    assert evaluate_run.run(sampling, judging).rows == recorded["rows"]


def test_an_old_checkpoint_gives_the_same_images():
    made = np.load(RUN / "samples/0000004-ode2-cfg1.5-seed0-4.npz")
    sampling = SampleConfig(checkpoint=str(RUN), num_fid_samples=4, num_steps=2, device="cpu", out="again.npz")
    again = np.load(sample.run(sampling).npz)
    assert (made["arr_1"] == again["arr_1"]).all()
    assert np.abs(made["arr_0"].astype(int) - again["arr_0"].astype(int)).max() <= 1


def test_probes_are_not_made_again(monkeypatch):
    recorded = json.loads((RUN / "probe.json").read_text())["rows"]
    monkeypatch.setattr(probe, "_probe", forbidden)
    assert probe.run(ProbeConfig(checkpoint=str(RUN), device="cpu", test_share=0.5)).rows == recorded


def test_a_sweep_is_finished_and_its_table_the_same(monkeypatch):
    monkeypatch.setattr(ablate_run, "_call", forbidden)
    recorded = json.loads(Path("sweep/results.json").read_text())
    result = ablate.run(AblateConfig(sweep="sweep.toml", store="store", out="sweep", ray=False))
    assert not result.failed
    assert result.rows == recorded["runs"]
    assert result.means == recorded["over_seeds"]


def test_runs_are_reported():
    sweep = [str(path.parent) for path in sorted(Path("sweep").glob("*/train.json"))]
    page = report.run([str(RUN), *sweep], "page.html").read_text()
    assert all(name in page for name in ("run", "proj_coeff=0", "proj_coeff=0.5", "efficientnet-lite0"))
    assert len(list_checkpoints(RUN)) == 2
