"""Other latents than those of a VAE with 8x downsampling: from images to samples."""

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from PIL import Image

from repa_pipe.config import EncodeConfig, SampleConfig, TrainConfig
from repa_pipe.pipeline import encode, sample, train
from repa_pipe.pipeline.artifacts.checkpoints import load_model, resolve_checkpoint
from repa_pipe.stores import open_store


@pytest.fixture
def images(tmp_path):
    folder, rng = tmp_path / "images", np.random.default_rng(0)
    for number in range(12):
        path = folder / str(number % 3) / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (64, 64, 3), np.uint8)).save(path)
    return folder


@pytest.fixture
def f16_vae(tmp_path):
    """Write a random VAE with 16x downsampling and 6 channels, as those that patch size 1 is made for."""
    torch.manual_seed(0)
    model = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 5,
        up_block_types=("UpDecoderBlock2D",) * 5,
        block_out_channels=(4, 4, 4, 8, 8),
        latent_channels=6,
        norm_num_groups=4,
        mid_block_add_attention=False,
    )
    model.save_pretrained(tmp_path / "vae")
    return tmp_path / "vae"


def test_every_pixel_of_16x_downsampled_latents_is_a_token(images, f16_vae, tmp_path):
    store = str(tmp_path / "store")
    encode.run(
        EncodeConfig(
            source=str(images),
            store=store,
            vae=str(f16_vae),
            encoder=("efficientnet-lite0",),
            resolution=64,
            device="cpu",
        )
    )
    with open_store(store) as opened:
        assert opened.group(f"latents/{opened.vaes[0]}").arrays[0].sample_shape == (12, 4, 4)
    run = train.run(
        TrainConfig(
            store=store,
            output_dir=str(tmp_path / "exps"),
            model="SiT-T/1",
            batch_size=4,
            max_train_steps=2,
            learning_rate=1e-2,
            ema_decay=0.5,
            mixed_precision="fp32",
            report_to="none",
        )
    ).run
    model = load_model(resolve_checkpoint(run), ema=True).model
    assert (model.config.patch_size, model.config.in_channels, model.config.input_size) == (1, 6, 4)
    result = sample.run(
        SampleConfig(checkpoint=run, num_fid_samples=2, num_steps=2, device="cpu", out=str(tmp_path / "samples.npz"))
    )
    with np.load(result.npz) as archive:
        assert archive["arr_0"].shape == (2, 64, 64, 3)
