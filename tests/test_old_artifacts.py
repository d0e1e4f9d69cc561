"""Stores, checkpoints, runs, generated images, metrics, probes and sweeps written by version 0.1.0 can still be used.

tests/data/README.md describes how they were made.
"""

import importlib.metadata
import json
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray

from repa_pipe import cli
from repa_pipe.config import AblateConfig, EncodeConfig, EvaluateConfig, ProbeConfig, SampleConfig, TrainConfig
from repa_pipe.errors import StoreError
from repa_pipe.models.sit import SIT_PRESETS, SiTConfig
from repa_pipe.pipeline import ablate, encode, evaluate, probe, report, sample, train
from repa_pipe.pipeline.artifacts.checkpoints import load_checkpoint
from repa_pipe.pipeline.artifacts.metrics_log import read_metrics
from repa_pipe.pipeline.artifacts.run_folder import RunFolder
from repa_pipe.pipeline.artifacts.sample_files import finished_samples
from repa_pipe.pipeline.evaluation import comparison
from repa_pipe.pipeline.sampling.sampler import Sampler
from repa_pipe.stores import open_store
from repa_pipe.stores.verify import verify_store
from repa_pipe.stores.writer import ShardWriter

RUN = Path("exps/run")


@pytest.fixture(autouse=True)
def _artifacts(tmp_path, monkeypatch, helpers):
    helpers.unpack_old_artifacts(tmp_path)
    monkeypatch.chdir(tmp_path)
    preset = partial(SiTConfig, patch_size=2, hidden_size=8, depth=2, num_heads=2, encoder_depth=1)
    monkeypatch.setitem(SIT_PRESETS, "SiT-test/2", preset)


def train_config(**changes):
    values = json.loads((RUN / "train.json").read_text())
    return TrainConfig.from_json(values | changes)


def forbidden(*_, **__):
    raise AssertionError("finished work was repeated")


def test_the_store_opens_verifies_and_is_complete(monkeypatch, capsys):
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


def other_versions(fingerprint):
    """Return the libraries in a fingerprint whose installed version differs from the recorded one."""
    recorded = {name: fingerprint[name] for name in ("diffusers", "timm", "torch", "pillow") if name in fingerprint}
    return {name for name, version in recorded.items() if importlib.metadata.version(name) != version}


def test_a_shard_that_is_gone_is_encoded_again():
    groups = {"latents/tiny-kl-f8": "moments/c/1/0/0/0", "features/efficientnet-lite0": "tokens/c/1/0/0"}
    before = {group: Path("store", group, file).read_bytes() for group, file in groups.items()}
    for group in groups:
        Path("store/commits", group, "00001.json").unlink()
    config = EncodeConfig(
        source="images",
        store="store",
        vae="tiny-kl-f8",
        encoder=("efficientnet-lite0",),
        device="cpu",
        max_bad=0.5,
    )
    with open_store("store") as store:
        fingerprints = {group: store.group(group).fingerprint for group in groups}
    changed = {name for fingerprint in fingerprints.values() for name in other_versions(fingerprint)}
    if changed:  # the recorded fingerprints include versions, so encoding must be refused, for this reason alone
        with pytest.raises(StoreError) as refused:
            encode.run(config)
        differences = str(refused.value).partition("(")[2].partition(")")[0].split("; ")
        assert {difference.partition(": ")[0] for difference in differences} <= changed
        return
    result = encode.run(config)
    assert (result.encoded, result.failed) == (4, [])
    for group, file in groups.items():
        with open_store("store") as store:
            assert store.group(group).fingerprint == fingerprints[group]
        assert fingerprints[group]["weights_sha256"]
        assert len(Path("store", group, file).read_bytes()) == len(before[group])


def arrays_without_names():
    metas = {path: json.loads(path.read_text()) for path in Path("store").rglob("zarr.json")}
    return {path for path, meta in metas.items() if meta["node_type"] == "array" and "dimension_names" not in meta}


def test_shards_and_groups_can_be_added_to_a_store_without_dimension_names(helpers):
    old = arrays_without_names()
    assert len(old) == 5
    before = {path: path.read_bytes() for path in old}
    with open_store("store") as store:
        rows, names = store.valid_indices(store.group_names()), store.group_names()
        manifest, expected = store.manifest, store.read(names, rows)
        specs = [store.group(name).spec for name in names]
        contents = {spec.path: store.read(spec.path, range(4, 8)) for spec in specs}
    for spec in specs:  # encode the second shard again, as a resumed run would
        Path("store/commits", spec.path, "00001.json").unlink()
        with ShardWriter(Path("store"), manifest, spec, 1) as writer:
            writer.append({array.name: contents[spec.path][f"{spec.path}/{array.name}"] for array in spec.arrays})
            writer.commit(np.zeros(4, np.uint32), ())
    written = helpers.write_group(Path("store"), manifest, helpers.FEATURES)
    assert arrays_without_names() == old
    assert {path: path.read_bytes() for path in old} == before
    with open_store("store") as store:
        found = store.read([*names, "features/enc"], rows)
        for name, array in expected.items():
            np.testing.assert_array_equal(found[name], array)
        np.testing.assert_array_equal(found["features/enc/tokens"], written["tokens"][rows])
    with xarray.open_zarr("store", group="features/enc") as group:
        assert group["tokens"].dims == ("sample", "token", "width")
    assert verify_store("store").ok


def test_a_finished_run_is_not_trained_again():
    stamp = (RUN / "checkpoints/0000004.pt").stat().st_mtime_ns
    assert train.run(train_config()).step == 4
    assert (RUN / "checkpoints/0000004.pt").stat().st_mtime_ns == stamp


def test_a_run_resumes_to_the_same_losses_and_weights():
    losses = [row["loss"] for row in read_metrics(RunFolder(RUN))]
    old = load_checkpoint(RUN / "checkpoints/0000004.pt")
    old = {part: {name: value.clone() for name, value in old[part].items()} for part in ("model", "ema")}
    (RUN / "checkpoints/0000004.pt").unlink()
    result = train.run(train_config(max_train_steps=6))
    assert result.step == 6
    rows = read_metrics(RunFolder(RUN))
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert [row["loss"] for row in rows[:4]] == pytest.approx(losses, rel=1e-4)
    new = ("learning_rate", "memory_gib")
    assert [[row[name] is None for name in new] for row in rows] == [[step < 2] * 2 for step in range(6)]
    new = load_checkpoint(RUN / "checkpoints/0000004.pt")
    for part, weights in old.items():
        for name, value in weights.items():
            torch.testing.assert_close(new[part][name], value, rtol=1e-3, atol=1e-5)


def test_finished_metrics_of_images_are_not_computed_again(monkeypatch):
    monkeypatch.setattr(comparison, "extract", forbidden)
    recorded = json.loads((RUN / "by-step/ode2-cfg1.5-seed0-4.json").read_text())
    for row in recorded["rows"]:
        evaluation = EvaluateConfig(
            samples=row["samples"], reference="store", detector=("efficientnet-lite0",), device="cpu"
        )
        assert evaluate.run(evaluation).metrics == row["metrics"]


def test_finished_images_with_the_old_random_streams_are_not_taken_for_new_ones():
    sampling = SampleConfig(checkpoint=str(RUN), num_fid_samples=4, num_steps=2, device="cpu")
    old = RUN / "samples/0000004-ode2-cfg1.5-seed0-4.npz"
    before = old.read_bytes()
    assert finished_samples(sampling) is None
    made = sample.run(sampling)
    assert old.read_bytes() == before
    assert not np.array_equal(np.load(made.npz)["arr_0"], np.load(old)["arr_0"])
    assert finished_samples(sampling) == made


def test_the_checkpoint_gives_the_same_images_with_the_old_random_streams(monkeypatch):
    made = np.load(RUN / "samples/0000004-ode2-cfg1.5-seed0-4.npz")
    monkeypatch.setattr(Sampler.__init__, "__defaults__", (1,))
    labels = ",".join(map(str, made["arr_1"]))
    sampling = SampleConfig(
        checkpoint=str(RUN), num_fid_samples=4, num_steps=2, device="cpu", labels=labels, out="again.npz"
    )
    again = np.load(sample.run(sampling).npz)
    assert (made["arr_1"] == again["arr_1"]).all()
    assert np.abs(made["arr_0"].astype(int) - again["arr_0"].astype(int)).max() <= 1


def test_probes_with_the_old_random_streams_are_computed_again():
    recorded = json.loads((RUN / "probe.json").read_text())["rows"]
    rows = probe.run(ProbeConfig(checkpoint=str(RUN), device="cpu", test_share=0.5)).rows
    assert [row["checkpoint"].split()[0] for row in rows] == [row["checkpoint"].split()[0] for row in recorded]
    again = json.loads((RUN / "probe.json").read_text())
    assert again["settings"]["random_streams"] == 2


@pytest.mark.slow
def test_a_finished_sweep_is_not_trained_again(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    root = Path("store/zarr.json")  # where the images are now
    root.write_text(root.read_text().replace("/data/artifacts/images", str(Path("images").absolute())))
    recorded = json.loads(Path("sweep/results.json").read_text())
    trained = {path: path.stat().st_mtime_ns for path in Path("sweep").rglob("*.pt")}
    result = ablate.run(AblateConfig(sweep="sweep.toml", store="store", out="sweep", ray=False))
    assert not result.failed
    assert {path: path.stat().st_mtime_ns for path in Path("sweep").rglob("*.pt")} == trained
    assert [row["run"] for row in result.rows] == [row["run"] for row in recorded["runs"]]


def test_the_report_shows_all_runs():
    sweep = [str(path.parent) for path in sorted(Path("sweep").glob("*/train.json"))]
    page = report.run([str(RUN), *sweep], "page.html").read_text()
    assert all(name in page for name in ("run", "proj_coeff=0", "proj_coeff=0.5", "efficientnet-lite0"))
    assert len(RunFolder(RUN).checkpoints()) == 2
