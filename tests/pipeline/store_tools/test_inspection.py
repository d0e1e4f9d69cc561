"""`store info` and `store stats` on a real store, and errors of commands that open one."""

import numpy as np
import pytest

from repa_pipe.pipeline.store_tools import inspection
from repa_pipe.stores import open_store


def test_measured_scale_and_bias_standardize_the_latents(make_store):
    path, contents = make_store()
    text = inspection.stats(str(path), "tiny", write=True)
    assert "measured on 50 images, written to the store" in text
    attributes = open_store(path).group("latents/tiny").attributes
    mean, std = np.split(contents["latents/tiny/moments"].astype(np.float64), 2, axis=1)
    draws = mean + std * np.random.default_rng(0).standard_normal(mean.shape)
    shape = (1, 4, 1, 1)
    latents = draws * np.reshape(attributes["scale"], shape) + np.reshape(attributes["bias"], shape)
    np.testing.assert_allclose(latents.mean((0, 2, 3)), 0, atol=0.05)
    np.testing.assert_allclose(latents.std((0, 2, 3)), 1, atol=0.05)


def test_stats_without_write_do_not_change_the_store(make_store):
    path, _ = make_store()
    before = (path / "latents/tiny/zarr.json").read_bytes()
    inspection.stats(str(path), "tiny", write=False)
    assert (path / "latents/tiny/zarr.json").read_bytes() == before


def test_info_shows_images_groups_and_arrays(make_store):
    path, _ = make_store()
    text = inspection.info(str(path))
    assert "50 images of 3 classes at 32 px" in text
    assert "latents/tiny: 4 of 4 shards" in text
    assert "per sample: tokens [16, 24] float16" in text


@pytest.mark.parametrize("command", ["info", "ls", "verify", "repair"])
def test_a_store_that_is_missing_is_one_line(run_cli, tmp_path, command):
    code, out, errors = run_cli("store", command, tmp_path / "nowhere")
    assert (code, out, errors.count("\n")) == (2, "", 1)
    assert "no store at" in errors
