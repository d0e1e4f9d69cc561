import pytest
import timm
import torch

from repa_pipe.errors import ConfigError, WeightsError
from repa_pipe.models.encoders import EncoderInfo, describe_encoder, load_encoder
from repa_pipe.models.encoders.registry import TIMM_NAMES, find_entry

ROPE = "vit_tiny_patch16_dinov3_qkvb"  # rotary position embedding, a class token and four registers
REGISTER = "vit_wee_patch16_reg1_gap_256"  # one register, no class token
HIERARCHICAL = "resnet18"
FIXED = "mixer_s32_224"  # one input size, 7x7 tokens


@pytest.fixture(scope="module")
def images():
    return torch.randint(0, 256, (2, 3, 256, 256), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
    """Create a randomly initialized network and its weights file, once per name."""
    folder = tmp_path_factory.mktemp("timm")
    made = {}

    def make(model_name):
        if model_name not in made:
            torch.manual_seed(1)
            model = timm.create_model(model_name, num_classes=0).eval()
            torch.save(model.state_dict(), folder / f"{model_name}.pth")
            made[model_name] = model, folder / f"{model_name}.pth"
        return made[model_name]

    return make


def prepared(name, images, size=256):
    return find_entry(f"timm:{name}").preprocessing(images, size)


def loaded(name, networks, **options):
    encoder = load_encoder(f"timm:{name}", weights=networks(name)[1], **options)
    shapes = EncoderInfo(encoder.num_tokens, encoder.width, encoder.has_cls_token)
    assert describe_encoder(f"timm:{name}", encoder.resolution) == shapes
    return encoder


def test_rotary_network_with_registers_gives_its_patch_and_class_tokens(images, networks):
    model, _ = networks(ROPE)
    encoder = loaded(ROPE, networks)
    with torch.no_grad():
        expected = model.forward_features(prepared(ROPE, images))
    tokens = encoder(images)
    torch.testing.assert_close(tokens.patch_tokens, expected[:, 5:])
    torch.testing.assert_close(tokens.cls_token, expected[:, 0])


def test_rotary_network_accepts_other_resolutions(networks):
    encoder = loaded(ROPE, networks, resolution=512)
    assert encoder(torch.zeros(1, 3, 512, 512, dtype=torch.uint8)).patch_tokens.shape == (1, 1024, 192)
    assert encoder.fingerprint["positions"] == "fitted by timm from 16x16 to 32x32"


def test_register_is_not_mistaken_for_a_class_token(images, networks):
    model, _ = networks(REGISTER)
    encoder = loaded(REGISTER, networks)
    with torch.no_grad():
        expected = model.forward_features(prepared(REGISTER, images))
    tokens = encoder(images)
    assert not encoder.has_cls_token
    assert tokens.cls_token is None
    torch.testing.assert_close(tokens.patch_tokens, expected[:, 1:])


def test_hierarchical_network_gives_its_stride_16_feature_map(images, networks):
    model, _ = networks(HIERARCHICAL)
    encoder = loaded(HIERARCHICAL, networks)
    with torch.no_grad():
        x = model.maxpool(model.act1(model.bn1(model.conv1(prepared(HIERARCHICAL, images)))))
        x = model.layer3(model.layer2(model.layer1(x)))
    tokens = encoder(images)
    assert encoder.fingerprint["token_resampling"] == "none"
    torch.testing.assert_close(tokens.patch_tokens[:, 16 * 2 + 7], x[:, :, 2, 7])


def test_tokens_of_a_fixed_size_network_are_resampled_and_the_fingerprint_records_it(images, networks):
    model, _ = networks(FIXED)
    encoder = loaded(FIXED, networks)
    with torch.no_grad():
        grid = model.forward_features(prepared(FIXED, images, 224)).unflatten(1, (7, 7))
    tokens = encoder(images)
    assert tokens.patch_tokens.shape == (2, 256, 512)
    assert encoder.fingerprint["token_resampling"] == "7x7 to 16x16 (bilinear, antialiased, align_corners=False)"
    torch.testing.assert_close(
        tokens.patch_tokens[:, 0], grid[:, 0, 0]
    )  # corners are unchanged: their bilinear weight is 1
    torch.testing.assert_close(tokens.patch_tokens[:, -1], grid[:, -1, -1])


def test_preprocessing_follows_timms_configuration(networks):
    model, _ = networks(ROPE)
    encoder = loaded(ROPE, networks)
    assert str(list(model.pretrained_cfg["mean"])) in encoder.fingerprint["preprocessing"]
    half = find_entry("siglip2-vit-b").preprocessing
    assert (half.mean, half.std) == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    assert half(torch.tensor([[[[255]]]], dtype=torch.uint8).expand(1, 3, 1, 1), 1).flatten().tolist() == [1.0] * 3


@pytest.mark.parametrize("other", [REGISTER, HIERARCHICAL, FIXED])
def test_file_of_another_network_is_reported_in_one_line(networks, other):
    _, path = networks(other)
    with pytest.raises(WeightsError) as error:
        load_encoder(f"timm:{ROPE}", weights=path)
    assert "\n" not in str(error.value)
    assert f"{path} does not fit timm:{ROPE}" in str(error.value)


@pytest.mark.parametrize("changed", ["fewer", "more"])
def test_file_that_timm_would_load_partially_is_rejected(networks, tmp_path, changed):
    tensors = dict(networks(HIERARCHICAL)[0].state_dict())
    if changed == "fewer":
        del tensors["layer2.0.conv1.weight"]
    else:
        tensors["layer2.2.conv1.weight"] = torch.zeros(1)
    torch.save(tensors, tmp_path / "part.pth")
    expected = r"missing layer2\.0\.conv1\.weight" if changed == "fewer" else r"unexpected layer2\.2\.conv1\.weight"
    with pytest.raises(WeightsError, match=expected):
        load_encoder(f"timm:{HIERARCHICAL}", weights=tmp_path / "part.pth")


def test_classifier_in_the_file_is_ignored(networks, tmp_path):
    tensors = dict(networks(HIERARCHICAL)[0].state_dict())
    torch.save(
        {"state_dict": tensors | {"fc.weight": torch.zeros(1000, 512), "fc.bias": torch.zeros(1000)}}, tmp_path / "f"
    )
    encoder = load_encoder(f"timm:{HIERARCHICAL}", weights=tmp_path / "f")
    assert encoder.fingerprint == loaded(HIERARCHICAL, networks).fingerprint


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("vit_base_patch14_dinov", "did you mean timm:vit_base_patch14_dinov2"),
        ("vit_base_patch14_dinov2.nothing", "nothing"),
        ("crossvit_9_240@block=2", "no numbered blocks"),
        (f"{ROPE}@block=13", "blocks 1 to 12"),
    ],
)
def test_invalid_networks_are_rejected_with_suggestions(name, expected):
    with pytest.raises(ConfigError) as error:
        describe_encoder(f"timm:{name}")
    assert "\n" not in str(error.value)
    assert expected in str(error.value)


@pytest.mark.parametrize("name", [name for name in TIMM_NAMES if name.endswith("-b")])
def test_registered_timm_encoders_match_sits_grid_without_resampling(name):
    entry = find_entry(name)
    assert describe_encoder(name).num_tokens == 256
    assert entry.input_size(256) == 16 * entry.patch
    assert entry.weights.sources


def test_registered_timm_encoders_have_pretrained_weights():
    assert set(TIMM_NAMES.values()) <= set(timm.list_models(pretrained=True))
