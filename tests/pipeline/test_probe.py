"""Probing of small trained models, compared with direct computation of the definitions."""

import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from torch.nn.functional import normalize

from repa_pipe.config import ProbeConfig
from repa_pipe.errors import CheckpointError, ConfigError, StoreError
from repa_pipe.metrics import cknna
from repa_pipe.pipeline import probe
from repa_pipe.pipeline.artifacts.checkpoints import load_checkpoint, load_model, save_checkpoint
from repa_pipe.pipeline.artifacts.digests import file_digest
from repa_pipe.pipeline.artifacts.run_folder import RunFolder
from repa_pipe.pipeline.evaluation.probe_features import ProbedImages, accuracy
from repa_pipe.pipeline.runtime.seeds import RandomStreams
from repa_pipe.stores import open_store


@pytest.fixture
def trained(trained_runs, written_stores, tmp_path):
    """A run with checkpoints at steps 1 and 2, and the contents of its store."""
    options = {"learning_rate": 1e-2, "ema_decay": 0.5, "batch_size": 4, "log_steps": 100}
    run = trained_runs(max_train_steps=2, checkpointing_steps=1, **options)
    return str(shutil.copytree(run, tmp_path / "run")), written_stores(50, 16, ())[1]


def probe_config(run, **options):
    return ProbeConfig(checkpoint=run, device="cpu", **{"block": (2, 6), "batch_size": 16} | options)


def test_every_checkpoint_time_and_block_has_a_row(trained):
    run, _ = trained
    result = probe.run(probe_config(run, time=(0.1, 0.9)))
    assert [(row["step"], row["time"], row["block"]) for row in result.rows] == [
        (step, time, block) for step in (1, 2) for time in (0.1, 0.9) for block in (2, 6)
    ]
    assert all(0 <= row["accuracy"] <= 1 and -1 < row["cknna_enc"] < 1 for row in result.rows)
    last = [row["cknna_enc"] for row in result.rows if row["step"] == 2]  # at step 1, blocks are still the identity
    assert len(set(last)) == 4
    assert pq.read_table(result.parquet).to_pylist() == result.rows
    assert json.loads(Path(result.json).read_text())["rows"] == result.rows
    assert Path(result.json) == Path(run) / "probe.json"
    page = Path(result.page).read_text()
    assert "cknna_enc over depth at time 0.1" in page
    assert not re.search(r"<(script|link|img)[^>]*(src|href)=", page)
    assert result.table.count("\n") == len(result.rows) + 1


def test_cknna_matches_direct_computation(trained):
    run, contents = trained
    config = probe_config(run, block=(3,), time=(0.25,), seed=5)
    result = probe.run(config)
    model = load_model(RunFolder(Path(run)).checkpoints()[-1], ema=True).model
    moments, tokens = contents["latents/tiny/moments"], contents["features/enc/tokens"]
    own = []
    for index in range(50):
        posterior, noise = torch.randn(2, 4, 8, 8, generator=RandomStreams(5).of_image(index))
        mean, std = torch.from_numpy(moments[index]).chunk(2)
        x_t = 0.75 * (mean + std * posterior) + 0.25 * noise
        with torch.no_grad():
            state = model.hidden_states(x_t[None], torch.tensor([0.25]), torch.tensor([3]), [3])[0]
        own.append(state[0].mean(0))
    theirs = torch.from_numpy(tokens.astype(np.float32)).mean(1)
    expected = cknna(normalize(torch.stack(own)), normalize(theirs), 10)
    assert result.rows[-1]["cknna_enc"] == pytest.approx(expected, abs=1e-4)


@pytest.mark.slow
def test_finished_checkpoints_are_not_probed_again(trained, monkeypatch):
    run, _ = trained
    original, probed = ProbedImages.of_blocks, []

    def interrupt_second_call(self, model, time):
        probed.append(model.step)
        if len(probed) == 2:
            raise KeyboardInterrupt
        return original(self, model, time)

    monkeypatch.setattr(ProbedImages, "of_blocks", interrupt_second_call)
    with pytest.raises(KeyboardInterrupt):
        probe.run(probe_config(run))
    rows = probe.run(probe_config(run)).rows
    assert probed == [1, 2, 2]
    assert [row["step"] for row in rows] == [1, 1, 2, 2]
    probe.run(probe_config(run, seed=1))
    assert probed[3:] == [1, 2]


@pytest.mark.slow
def test_probes_belong_to_the_content_of_a_checkpoint_and_those_of_earlier_versions_to_its_time(trained, monkeypatch):
    run, _ = trained
    first = probe.run(probe_config(run))
    checkpoints = RunFolder(Path(run)).checkpoints()
    values = json.loads(Path(first.json).read_text())
    old = {f"{path.name} {file_digest(path)}": f"{path.name} {path.stat().st_mtime_ns}" for path in checkpoints}
    monkeypatch.setattr(probe, "_probe", lambda config, store, todo, *rest: [1 / 0 for _ in todo])
    for path in checkpoints:
        os.utime(path, ns=(1, path.stat().st_mtime_ns + 1))
    assert probe.run(probe_config(run)).rows == first.rows
    for path in checkpoints:
        os.utime(path, ns=(1, path.stat().st_mtime_ns - 1))
    rows = [row | {"checkpoint": old[row["checkpoint"]]} for row in values["rows"]]
    Path(first.json).write_text(json.dumps(values | {"rows": rows}))
    assert probe.run(probe_config(run)).rows == rows
    save_checkpoint(checkpoints[0], load_checkpoint(checkpoints[0]) | {"scaler": {"changed": 1}})
    with pytest.raises(ZeroDivisionError):
        probe.run(probe_config(run))


@pytest.mark.slow
def test_damaged_probes_are_set_aside_and_damaged_checkpoints_left_out(trained, caplog):
    run, _ = trained
    first = probe.run(probe_config(run))
    Path(first.json).write_text("{")
    checkpoints = RunFolder(Path(run)).checkpoints()
    os.truncate(checkpoints[0], 1000)
    assert probe.run(probe_config(run)).rows == [row for row in first.rows if row["step"] == 2]
    assert "probe.json.damaged-1, all checkpoints are probed again" in caplog.text
    assert "0000001.pt cannot be read as a checkpoint" in caplog.text


def test_linear_probe_finds_classes_in_clean_latents_but_not_in_noise(trained, make_store):
    """The class of a latent is its sign, which every block sees without noise and none sees at full noise."""
    run, _ = trained
    model = load_model(RunFolder(Path(run)).checkpoints()[-1], ema=True)
    with open_store(make_store()[0]) as store:
        config = probe_config(run, num_images=50, test_share=0.4)
        images = ProbedImages(store, "tiny", ["enc"], config)

        def read_signs(_names, rows):
            signs = np.array([-1.0, 0.0, 1.0])[store.labels[rows]].reshape(-1, 1, 1, 1)
            mean = np.broadcast_to(signs, (len(rows), 4, 8, 8))
            return {"latents/tiny/moments": np.concatenate([mean, 0.1 * np.ones_like(mean)], 1).astype(np.float32)}

        images._store.read = read_signs
        clean = accuracy(images.of_blocks(model, 0.0)[2], images)
        noise = accuracy(images.of_blocks(model, 1.0)[2], images)
    assert clean == 1.0
    assert noise < 0.8


def test_seed_determines_the_images_and_their_split(trained, make_store):
    run, _ = trained
    with open_store(make_store()[0]) as store:
        first, again, other = (
            ProbedImages(store, "tiny", ["enc"], probe_config(run, num_images=20, seed=seed)) for seed in (0, 0, 1)
        )
    assert first.rows.tolist() == again.rows.tolist() != other.rows.tolist()
    assert len(set(first.rows.tolist())) == 20
    assert first.num_train == 16
    assert first.labels.tolist() == [row % 3 for row in first.rows.tolist()]


def test_missing_blocks_encoders_and_checkpoints_are_errors(trained, tmp_path):
    run, _ = trained
    with pytest.raises(ConfigError, match=r"blocks \[7\]: expected numbers from 1 to 6"):
        probe.run(probe_config(run, block=(7,)))
    with pytest.raises(StoreError, match="has no 'features/clip'"):
        probe.run(probe_config(run, encoder=("clip",)))
    with pytest.raises(CheckpointError, match="no checkpoint in"):
        probe.run(probe_config(str(tmp_path / "nowhere")))
    with pytest.raises(ConfigError, match="--time is"):
        probe_config(run, time=(1.5,))


def test_a_path_that_differs_from_the_recorded_one_is_refused(trained):
    with pytest.raises(ConfigError, match=r"--path-type is 'cosine', but .* was trained on the linear path"):
        probe.run(probe_config(trained[0], path_type="cosine"))
