"""Plans compared with figures computed by hand and with measurements."""

import numpy as np
import pytest
import torch

from repa_pipe.config import PlanConfig
from repa_pipe.errors import ConfigError
from repa_pipe.models import throughput
from repa_pipe.models.architectures import make_model, preset_config
from repa_pipe.models.flops import encoder_flops, forward_flops, model_flops
from repa_pipe.pipeline import plan
from repa_pipe.pipeline.encoding import batch_size


def plan_of(**options):
    return plan.run(PlanConfig(**{"images": 1_000_000, "encoder": ("dinov2-vit-b",)} | options))


def test_bytes_per_sample_are_those_of_the_arrays():
    assert plan_of().sample_bytes == 4 * 8 * 32 * 32 + 2 * 256 * 768 + 2 * 768
    assert plan_of(codec="int8").sample_bytes == 4 * 8 * 32 * 32 + 256 * 768 + 2 * 256 + 2 * 768
    assert plan_of(flip=True).sample_bytes == 2 * plan_of().sample_bytes
    assert plan_of(resolution=512).sample_bytes == 4 * plan_of().sample_bytes - 3 * 2 * 768


@pytest.mark.parametrize(("model", "measured"), [("SiT-B/2", 1.41), ("SiT-L/2", 1.14), ("SiT-XL/2", 1.09)])
def test_gains_are_those_measured_on_the_same_gpu(model, measured):
    found = plan_of(model=model)
    assert found.online_share - throughput.READING == pytest.approx(measured - 1, abs=0.015)


def test_the_verdict_compares_gains_and_costs():
    assert plan_of(model="SiT-B/2").verdict.startswith("PAYS: steps are 41 % faster")
    assert plan_of(model="SiT-XL/2").verdict.startswith("HARDLY PAYS in speed: steps are 9 % faster, for 428 GB")
    assert plan_of(epochs=1).verdict.startswith("DOES NOT PAY: 1 epochs are planned")
    assert plan_of(flip=True, epochs=1.5).verdict.startswith("DOES NOT PAY")
    assert plan_of(encoder=("efficientnet-lite0",)).payback_epochs == np.inf
    assert "DOES NOT PAY" in plan_of(encoder=("efficientnet-lite0",)).describe()
    assert plan_of(encoder=("dinov2-vit-g",)).online_share == pytest.approx(0.86, abs=0.01)
    assert "nothing to compare" in plan_of(encoder=()).verdict


def test_hours_are_divided_among_gpus_and_doubled_by_flips():
    hours = plan_of(encoder=("dinov2-vit-b",)).costs[1].hours
    assert hours == pytest.approx(1e6 / 5401 / 3600)
    assert plan_of(gpus=4, flip=True).costs[1].hours == pytest.approx(hours / 2)
    assert plan_of(gpus=4).payback_epochs == plan_of().payback_epochs


@pytest.mark.parametrize("name", ["dinov2-vit-b", "jepa-vit-h"])
def test_recorded_flops_of_encoders_are_those_counted(name):
    assert throughput.ENCODERS[name].flops == encoder_flops(name, throughput.RESOLUTION)


@pytest.mark.parametrize("name", throughput.STEPS)
def test_recorded_flops_of_steps_are_those_counted(name):
    assert throughput.STEPS[name].flops == model_flops(name, throughput.RESOLUTION // 8, 4, (768,))


def test_the_time_of_an_unmeasured_encoder_is_estimated_from_flops():
    seconds, origin = throughput.encoder_seconds("dinov1-vit-b", 256)
    ratio = encoder_flops("dinov1-vit-b", 256) / encoder_flops("dinov2-vit-b", 256)
    assert seconds == pytest.approx(ratio / 5401)
    assert origin == "estimated from FLOPs at the speed of dinov2-vit-b"
    assert encoder_flops("dinov2-vit-b", 256) == pytest.approx(46.3e9, rel=1e-3)


def test_a_probe_times_the_models_of_encode(monkeypatch):
    monkeypatch.setattr(plan, "PROBE_SECONDS", 0.1)
    monkeypatch.setattr(batch_size, "CPU_BATCH", 2)
    found = plan_of(vae="tiny-kl-f8", encoder=("efficientnet-lite0",), probe=True, device="cpu")
    assert [cost.origin for cost in found.costs] == ["measured here"] * 2
    assert "on this machine's cpu" in found.describe()
    assert all(cost.hours > 0 for cost in found.costs)


def test_unknown_models_are_refused():
    with pytest.raises(ConfigError, match="--model is 'SiT-Z/2': expected one of SiT-T/1"):
        plan_of(model="SiT-Z/2")
    with pytest.raises(ConfigError, match="dino-v9"):
        plan_of(encoder=("dino-v9",))


def test_tokens_as_latents_need_no_vae():
    tokens = "dinov2reg-vit-b@norm=plain"
    found = plan_of(encoder=(tokens,), token_latents=tokens, model="DiT-DH-XL")
    assert found.sample_bytes == 2 * 256 * 768 + 2 * 768
    assert [cost.name for cost in found.costs] == [tokens]
    assert found.online_share > 0
    with pytest.raises(ConfigError, match="--token-latents is 'mae-vit-l': expected one of the encoders of --encoder"):
        plan_of(encoder=(tokens,), token_latents="mae-vit-l")


def test_recomputed_attention_costs_a_third_of_a_pass_and_its_input_bytes():
    raw = "dinov2-vit-b@block=8+norm=none"
    usual, found = plan_of(encoder=("dinov2-vit-b",)), plan_of(encoder=("dinov2-vit-b", raw))
    assert found.sample_bytes - usual.sample_bytes == 2 * 257 * 768
    assert found.online_share == usual.online_share  # online, one pass gives both
    assert found.attention_share == pytest.approx(usual.online_share / 3)
    assert f"adds {100 * found.attention_share:.1f} % to a step" in found.describe()
    assert usual.attention_share == 0
    assert "attention" not in usual.describe()
    assert found.payback_epochs > 2 * usual.payback_epochs


def test_pixels_and_autoencoders_without_a_distribution_take_fewer_bytes(tmp_path):
    assert plan_of(vae="pixels", encoder=(), model="SiT-B/8").sample_bytes == 3 * 256 * 256
    (tmp_path / "config.json").write_text('{"_class_name": "AutoencoderDC"}')
    (tmp_path / "diffusion_pytorch_model.safetensors").touch()
    assert plan_of(vae=str(tmp_path), encoder=()).sample_bytes == 4 * 32 * 8 * 8


@pytest.mark.parametrize("name", ["SiT-S/2", "DiT-DH-S", "LightningDiT-B/1", "RAEv2-T"])
def test_flops_of_every_architecture_are_at_least_those_of_its_weights(name):
    config = preset_config(name, input_size=16, in_channels=32)
    with torch.device("meta"):
        model = make_model(config)
    per_token = [layer for key, layer in model.named_modules() if isinstance(layer, torch.nn.Linear)]
    per_token = [layer for layer in per_token if layer.in_features > 64]
    tokens = (16 // config.patch_size) ** 2
    products = sum(layer.weight.numel() for layer in per_token)
    assert 0.6 * 2 * tokens * products < forward_flops(config) < 2.5 * 2 * tokens * products
