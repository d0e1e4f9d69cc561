"""Any multiple of 16 pixels is encoded, trained, sampled and evaluated; other sizes leave no store behind."""

import json

import numpy as np
import pytest

from repa_pipe.config import EncodeConfig, EvaluateConfig, SampleConfig, TrainConfig
from repa_pipe.pipeline import encode, evaluate, sample, train
from repa_pipe.stores import open_store

SIDE = 144


@pytest.mark.slow
@pytest.mark.parametrize("codec", ["float16", "int8", "int4"])
def test_a_store_of_another_resolution_is_encoded_trained_sampled_and_evaluated(reference, tmp_path, codec):
    store, device = str(tmp_path / "store"), "cpu"
    encoding = {"vae": "tiny-kl-f8", "encoder": "efficientnet-lite0", "resolution": SIDE, "codec": codec}
    encode.run(EncodeConfig(source=reference, store=store, device=device, **encoding))
    with open_store(store) as opened:
        assert opened.manifest.resolution == SIDE
        assert opened[0]["latents/tiny-kl-f8/moments"].shape == (8, SIDE // 8, SIDE // 8)
        assert opened.group("features/efficientnet-lite0").attributes["num_tokens"] == (SIDE // 16) ** 2
    run = train.run(
        TrainConfig(
            store=store,
            output_dir=str(tmp_path),
            model="SiT-T/2",
            projector_embed_dims=32,
            batch_size=4,
            max_train_steps=2,
            mixed_precision="fp32",
            device=device,
        )
    ).run
    made = sample.run(SampleConfig(checkpoint=run, num_fid_samples=4, num_steps=2, device=device)).npz
    assert np.load(made)["arr_0"].shape == (4, SIDE, SIDE, 3)
    evaluation = EvaluateConfig(samples=made, reference=store, detector="efficientnet-lite0", device=device)
    assert np.isfinite(evaluate.run(evaluation).metrics["fd_efficientnet-lite0"])


@pytest.mark.parametrize("command", [["encode", "images", "store"], ["plan"]], ids=["encode", "plan"])
@pytest.mark.parametrize(("size", "suggested"), [(250, "240 or 256"), (8, "16 or 32"), (0, "16 or 32"), (-32, "16 or")])
def test_a_resolution_without_a_grid_of_tokens_is_refused(run_cli, command, size, suggested):
    code, _, errors = run_cli(*command, f"--resolution={size}")
    assert (code, errors.count("\n")) == (2, 1)
    assert f"--resolution is {size}: expected a multiple of 16, such as {suggested}" in errors


@pytest.fixture
def coarse_vae(tmp_path):
    """A folder of a VAE that reduces sides to a 32nd; its weights are not read."""
    folder = tmp_path / "vae"
    folder.mkdir()
    config = {"_class_name": "AutoencoderKL", "latent_channels": 4, "block_out_channels": [32] * 6}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "diffusion_pytorch_model.safetensors").touch()
    return str(folder)


@pytest.mark.slow
@pytest.mark.parametrize("words", [[], ["--dry-run"]])
def test_models_that_need_other_sizes_are_refused_before_a_store_is_created(
    run_cli, reference, tmp_path, coarse_vae, words
):
    store = tmp_path / "store"
    base = ["encode", reference, store, "--resolution", 240, "--device", "cpu", *words]
    for given, message in (
        (["--vae", coarse_vae], "does not accept images of 240 pixels: it needs a multiple of 32, such as 224 or 256"),
        (["--encoder", "timm:maxvit_tiny_tf_224", "--vae", "tiny-kl-f8"], "choose --resolution 224 or 256, or another"),
    ):
        code, _, errors = run_cli(*base, *given)
        assert (code, errors.count("error:")) == (2, 1)
        assert message in errors
        assert not store.exists()
