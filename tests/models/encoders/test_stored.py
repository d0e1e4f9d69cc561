"""Recorded outputs of the published code, compared again after `encode` and a store: this is what training reads."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from repa_pipe.config import EncodeConfig
from repa_pipe.pipeline import encode
from repa_pipe.stores import open_store
from repa_pipe.stores.layout import features_group

REFERENCE = Path(__file__).parents[2] / "reference"
QUICK = ["dinov2-vit-s", "dinov2reg-vit-b", "mocov3-vit-s", "dinov2-vit-b_512"]
LONG = ["dinov1-vit-b", "clip-vit-L", "jepa-vit-h", "mae-vit-l"]  # one of each family
HALF_ROUNDING = 2.0**-11  # relative rounding error of float16
HALF_SMALLEST = 2.0**-25  # half the spacing of the smallest float16 numbers


def assert_rounded(stored, exact):
    """Check float16 roundings of values that are themselves accurate to 1e-4 of the largest."""
    allowed = np.abs(exact) * HALF_ROUNDING + HALF_SMALLEST + 1e-4 * np.abs(exact).max()
    assert (np.abs(stored.astype(np.float32) - exact) <= allowed).all()


@pytest.mark.parametrize("recording", [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in LONG)])
def test_stored_tokens_match_the_published_code(published_file, recording, tmp_path):
    name, resolution = recording.removesuffix("_512"), 512 if recording.endswith("_512") else 256
    with np.load(REFERENCE / f"encoder_{recording}_seed3.npz") as file:
        recorded = dict(file)
    folder = tmp_path / "images" / "all"
    folder.mkdir(parents=True)
    for number, image in enumerate(recorded["images"]):
        Image.fromarray(image.transpose(1, 2, 0)).save(folder / f"{number}.png")
    encode.run(
        EncodeConfig(
            source=str(tmp_path / "images"),
            store=str(tmp_path / "store"),
            vae="tiny-kl-f8",
            encoder=(name,),
            encoder_weights=(f"{name}={published_file(name)}",),
            resolution=resolution,
            device="cpu",
        )
    )
    group = features_group(name)
    arrays = open_store(tmp_path / "store").read([group], range(len(recorded["images"])))
    assert_rounded(arrays[f"{group}/tokens"][:, ::8], recorded["tokens_every_8th"])
    if "cls" in recorded:
        assert_rounded(arrays[f"{group}/cls_token"], recorded["cls"])
