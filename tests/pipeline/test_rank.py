"""Ranking of encoders in a real store, from tokens whose spatial structure is known."""

import dataclasses
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from repa_pipe import cli
from repa_pipe.config import RankConfig
from repa_pipe.errors import ConfigError, StoreError
from repa_pipe.metrics.spatial import cds, lds, rmsc
from repa_pipe.pipeline import rank
from repa_pipe.stores.codecs import make_codec
from repa_pipe.stores.layout import GroupSpec
from repa_pipe.stores.writer import ShardWriter, create_group

GRID, WIDTH, NUM_SAMPLES = 8, 16, 20


def tokens_of(structure):
    """Return noise plus `structure` times waves over the grid, which make neighboring tokens similar."""
    rng = np.random.default_rng(0)
    rows, columns = np.divmod(np.arange(GRID * GRID), GRID)
    angles = rows[:, None] * rng.uniform(0.2, 0.6, WIDTH) + columns[:, None] * rng.uniform(0.2, 0.6, WIDTH)
    noise = rng.standard_normal((NUM_SAMPLES, GRID * GRID, WIDTH))
    return torch.from_numpy(noise + structure * np.sin(angles)).float()


def add_encoder(path, manifest, name, tokens, codec_name="float16"):
    codec = make_codec(codec_name, *tokens.shape[1:])
    attributes = {"encoder": name, "fingerprint": {}, "num_tokens": tokens.shape[1], "width": tokens.shape[2]}
    spec = GroupSpec(path=f"features/{name}", arrays=codec.arrays, attributes=attributes | {"codec": codec.attributes})
    create_group(path, manifest, spec)
    arrays = codec.encode(tokens)
    for shard in range(2):
        with ShardWriter(path, manifest, spec, shard) as writer:
            rows = slice(writer.samples.start, writer.samples.stop)
            writer.append({key: array[rows] for key, array in arrays.items()})
            writer.commit(np.arange(rows.start, rows.stop, dtype=np.uint32), ())


@pytest.fixture
def store(tmp_path, helpers):
    path = tmp_path / "store"
    manifest = helpers.new_store(path, NUM_SAMPLES, 10)
    add_encoder(path, manifest, "rough", tokens_of(0.5))
    add_encoder(path, manifest, "smooth", tokens_of(5.0))
    add_encoder(path, manifest, "smooth-int4", tokens_of(5.0), "int4")
    return path


def config_of(store, **options):
    return RankConfig(store=str(store), out=str(store.parent / "rank.json"), **options)


def test_encoders_are_ranked_by_spatial_structure(store):
    result = rank.run(config_of(store, batch_size=7))
    assert {row["encoder"] for row in result.rows[:2]} == {"smooth", "smooth-int4"}
    assert result.rows[2]["encoder"] == "rough"
    by_name = {row["encoder"]: row for row in result.rows}
    for metric in (lds, cds, rmsc):
        name, values = metric.__name__, metric(tokens_of(5.0).half().float()).double()
        assert by_name["smooth"][name] == pytest.approx(float(values.mean()), abs=1e-6)
        assert by_name["smooth"][f"{name}_error"] == pytest.approx(float(values.std() / NUM_SAMPLES**0.5), rel=1e-4)
        assert by_name["smooth-int4"][name] == pytest.approx(by_name["smooth"][name], abs=0.02)
    assert [row["codec"] for row in (by_name["smooth"], by_name["smooth-int4"])] == ["float16", "int4"]


def test_table_json_and_page_agree_and_state_that_the_ranking_is_a_prediction(store):
    result = rank.run(config_of(store))
    written = json.loads(Path(result.json).read_text())
    assert written["rows"] == result.rows
    assert "0.85" in written["note"]
    assert "0.26" in written["note"]
    lines = result.table.splitlines()
    assert lines[0].split()[:4] == ["encoder", "LDS", "CDS", "RMSC"]
    assert f"{result.rows[0]['lds']:.4f} ±" in lines[1]
    page = Path(result.page).read_text()
    assert "This ranking is a prediction" in page
    assert "smooth-int4" in page
    assert not re.search(r"<(script|link|img)[^>]*(src|href)=", page)  # self-contained


def test_command_prints_the_table_and_the_prediction_note(store, monkeypatch, capsys):
    args = ["rank", "--store", str(store), "--out", str(store.parent / "rank.json"), "--num-samples", "7"]
    monkeypatch.setattr(sys, "argv", ["repa-pipe", *args])
    cli.main()
    out = capsys.readouterr().out
    assert "means over 7 samples" in out
    assert rank.PREDICTION in out


def test_seed_determines_the_samples(store):
    first, again, other = (rank.run(config_of(store, num_samples=5, seed=seed)).rows[0]["lds"] for seed in (1, 1, 2))
    assert first == again != other


def test_encoder_with_a_grid_too_small_for_lds_is_ranked_last(store, helpers, caplog):
    manifest = helpers.manifest_of(NUM_SAMPLES, 10)
    add_encoder(store, manifest, "coarse", tokens_of(9.0)[:, :9])  # 3 x 3: no tokens at distance 6
    result = rank.run(config_of(store))
    assert result.rows[-1]["encoder"] == "coarse"
    assert result.rows[-1]["lds"] is None
    assert result.rows[-1]["rmsc"] > 0
    assert "features/coarse: LDS is not available: a grid of 9 tokens has no pair at distance 6" in caplog.text
    assert "coarse" in result.table.splitlines()[-2]


def test_incomplete_encoders_are_skipped_and_a_store_without_encoders_is_an_error(store, tmp_path, helpers, caplog):
    manifest = helpers.new_store(tmp_path / "empty", NUM_SAMPLES, 10)
    with pytest.raises(StoreError, match="has no complete encoder"):
        rank.run(config_of(tmp_path / "empty"))
    create_group(store, manifest, dataclasses.replace(helpers.FEATURES, path="features/unfinished"))
    assert len(rank.run(config_of(store)).rows) == 3
    assert "skipping unfinished, which is incomplete: re-run its encode command to finish it" in caplog.text


def test_output_must_be_a_json_file():
    with pytest.raises(ConfigError, match=r"--out is 'a\.txt'"):
        RankConfig(store="s", out="a.txt")
