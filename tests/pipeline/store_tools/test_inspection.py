import numpy as np

from repa_pipe.pipeline.store_tools import inspection as store_commands
from repa_pipe.stores import open_store


def test_measured_scale_gives_latents_mean_zero_and_deviation_one(make_store):
    path, contents = make_store()
    text = store_commands.stats(str(path), "tiny", write=True)
    assert "measured on 50 images, written" in text
    attributes = open_store(path).group("latents/tiny").attributes
    mean, std = np.split(contents["latents/tiny/moments"].astype(np.float64), 2, axis=1)
    draws = mean + std * np.random.default_rng(0).standard_normal(mean.shape)
    shape = (1, 4, 1, 1)
    latents = draws * np.reshape(attributes["scale"], shape) + np.reshape(attributes["bias"], shape)
    np.testing.assert_allclose(latents.mean((0, 2, 3)), 0, atol=0.05)
    np.testing.assert_allclose(latents.std((0, 2, 3)), 1, atol=0.05)


def test_stats_alone_change_nothing(make_store):
    path, _ = make_store()
    before = (path / "latents/tiny/zarr.json").read_bytes()
    store_commands.stats(str(path), "tiny", write=False)
    assert (path / "latents/tiny/zarr.json").read_bytes() == before


def test_info_tells_what_is_there(make_store):
    path, _ = make_store()
    text = store_commands.info(str(path))
    assert "50 images of 3 classes at 32 px" in text
    assert "latents/tiny: 4 of 4 shards" in text
    assert "tokens [16, 24] float16" in text
