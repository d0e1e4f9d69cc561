import json
import re
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from torch.nn.functional import normalize

from repa_pipe.config import ProbeConfig
from repa_pipe.errors import CheckpointError, ConfigError, StoreError
from repa_pipe.metrics import cknna
from repa_pipe.pipeline import probe, train
from repa_pipe.pipeline.artifacts.checkpoints import list_checkpoints, load_model
from repa_pipe.pipeline.evaluation.probe_features import ProbedImages
from repa_pipe.pipeline.sampling.sampler import image_generator
from repa_pipe.stores import open_store


@pytest.fixture
def trained(config_of, tmp_path):
    """The folder of a run with checkpoints at steps 1 and 2, and the contents of its store."""
    options = {"learning_rate": 1e-2, "ema_decay": 0.5, "batch_size": 4, "mixed_precision": "bf16", "log_steps": 100}
    result = train.run(config_of(output_dir=str(tmp_path), max_train_steps=2, checkpointing_steps=1, **options))
    return result.run, config_of.contents


def probing(run, **options):
    return ProbeConfig(checkpoint=run, device="cpu", **{"block": (2, 6), "batch_size": 16} | options)


def test_every_checkpoint_block_and_time_is_a_row(trained):
    run, _ = trained
    result = probe.run(probing(run, time=(0.1, 0.9)))
    assert [(row["step"], row["time"], row["block"]) for row in result.rows] == [
        (step, time, block) for step in (1, 2) for time in (0.1, 0.9) for block in (2, 6)
    ]
    assert all(0 <= row["accuracy"] <= 1 and -1 < row["cknna_enc"] < 1 for row in result.rows)
    last = [row["cknna_enc"] for row in result.rows if row["step"] == 2]  # before, blocks are still the identity
    assert len(set(last)) == 4
    assert pq.read_table(result.parquet).to_pylist() == result.rows
    assert json.loads(Path(result.json).read_text())["rows"] == result.rows
    assert Path(result.json) == Path(run) / "probe.json"
    page = Path(result.page).read_text()
    assert "cknna_enc over depth at time 0.1" in page
    assert not re.search(r"<(script|link|img)[^>]*(src|href)=", page)
    assert result.table.count("\n") == len(result.rows) + 1


def test_a_row_is_the_definition_spelled_out(trained):
    run, contents = trained
    config = probing(run, block=(3,), time=(0.25,), seed=5)
    result = probe.run(config)
    model = load_model(list_checkpoints(Path(run))[-1], ema=True).model
    moments, tokens = contents["latents/tiny/moments"], contents["features/enc/tokens"]
    own = []
    for index in range(50):
        posterior, noise = torch.randn(2, 4, 8, 8, generator=image_generator(5, index))
        mean, std = torch.from_numpy(moments[index]).chunk(2)
        x_t = 0.75 * (mean + std * posterior) + 0.25 * noise
        with torch.no_grad():
            state = model.hidden_states(x_t[None], torch.tensor([0.25]), torch.tensor([3]), [3])[0]
        own.append(state[0].mean(0))
    theirs = torch.from_numpy(tokens.astype(np.float32)).mean(1)
    wanted = cknna(normalize(torch.stack(own)), normalize(theirs), 10)
    assert result.rows[-1]["cknna_enc"] == pytest.approx(wanted, abs=1e-4)


def test_finished_checkpoints_are_not_probed_again(trained, monkeypatch):
    run, _ = trained
    original, probed = ProbedImages.of_blocks, []

    def stop_at_the_second(self, model, time):
        probed.append(model.step)
        if len(probed) == 2:
            raise KeyboardInterrupt
        return original(self, model, time)

    monkeypatch.setattr(ProbedImages, "of_blocks", stop_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        probe.run(probing(run))
    rows = probe.run(probing(run)).rows
    assert probed == [1, 2, 2]
    assert [row["step"] for row in rows] == [1, 1, 2, 2]
    probe.run(probing(run, seed=1))
    assert probed[3:] == [1, 2]


def test_classes_that_stand_in_the_latents_are_found_and_noise_hides_them(trained, make_store, tmp_path):
    """Latents whose class is their sign: a block that sees them tells the classes, at full noise none can."""
    run, _ = trained
    model = load_model(list_checkpoints(Path(run))[-1], ema=True)
    with open_store(tmp_path / "store") as store:
        config = probing(run, num_images=50, test_share=0.4)
        images = ProbedImages(store, "tiny", ["enc"], config)

        def colored(_names, rows):
            signs = np.array([-1.0, 0.0, 1.0])[store.labels[rows]].reshape(-1, 1, 1, 1)
            mean = np.broadcast_to(signs, (len(rows), 4, 8, 8))
            return {"latents/tiny/moments": np.concatenate([mean, 0.1 * np.ones_like(mean)], 1).astype(np.float32)}

        images._store.read = colored
        clean = probe._accuracy(images.of_blocks(model, 0.0)[2], images)
        noise = probe._accuracy(images.of_blocks(model, 1.0)[2], images)
    assert clean == 1.0
    assert noise < 0.8


def test_the_images_are_split_and_drawn_by_the_seed(trained):
    run, _ = trained
    with open_store(Path(run).parent / "store") as store:
        first, again, other = (
            ProbedImages(store, "tiny", ["enc"], probing(run, num_images=20, seed=seed)) for seed in (0, 0, 1)
        )
    assert first.rows.tolist() == again.rows.tolist() != other.rows.tolist()
    assert len(set(first.rows.tolist())) == 20
    assert first.num_train == 16
    assert first.labels.tolist() == [row % 3 for row in first.rows.tolist()]


def test_what_is_not_there_is_named(trained, tmp_path):
    run, _ = trained
    with pytest.raises(ConfigError, match=r"blocks \[7\]: give numbers from 1 to 6"):
        probe.run(probing(run, block=(7,)))
    with pytest.raises(StoreError, match="has no 'features/clip'"):
        probe.run(probing(run, encoder=("clip",)))
    with pytest.raises(CheckpointError, match="no checkpoint in"):
        probe.run(probing(str(tmp_path / "nowhere")))
    with pytest.raises(ConfigError, match="--time is"):
        probing(run, time=(1.5,))
