from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from repa_pipe.errors import ConfigError, WeightsError
from repa_pipe.metrics import InceptionDetector, detectors

needs_torch_fidelity = pytest.mark.skipif(find_spec("torch_fidelity") is None, reason="torch-fidelity is not installed")


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    """A file in the published format (torchvision's names, 1,008 classes, no batch counters) with random weights."""
    from torchvision.models import inception_v3

    network = inception_v3(num_classes=1008, aux_logits=False, init_weights=False)
    generator = torch.Generator().manual_seed(0)
    state = {name: value for name, value in network.state_dict().items() if not name.endswith("num_batches_tracked")}
    for value in state.values():
        if value.ndim > 1:
            value.normal_(0, (2 / value[0].numel()) ** 0.5, generator=generator)
    path = tmp_path_factory.mktemp("weights") / detectors.INCEPTION_FILES[0]
    torch.save(state, path)
    return path


@pytest.fixture(scope="module")
def detector(weights) -> InceptionDetector:
    pytest.importorskip("torch_fidelity")
    return InceptionDetector(weights)


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.randint(0, 256, (2, 3, 64, 80), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def test_features_have_the_published_shapes(detector, images):
    pooled, spatial, probabilities = detector.features(images)
    assert detector.width == 2048
    assert (pooled.shape, spatial.shape, probabilities.shape) == ((2, 2048), (2, 2023), (2, 1008))
    assert {pooled.dtype, spatial.dtype, probabilities.dtype} == {torch.float32}
    torch.testing.assert_close(probabilities.sum(1), torch.ones(2))


def test_spatial_features_are_seven_channels_of_the_seventh_mixed_block_channels_last(detector, images):
    network = detector._network
    from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x

    x = (interpolate_bilinear_2d_like_tensorflow1x(images.float(), size=(299, 299), align_corners=False) - 128) / 128
    blocks = (
        "Conv2d_1a_3x3",
        "Conv2d_2a_3x3",
        "Conv2d_2b_3x3",
        "MaxPool_1",
        "Conv2d_3b_1x1",
        "Conv2d_4a_3x3",
        "MaxPool_2",
    )
    mixed = ("Mixed_5b", "Mixed_5c", "Mixed_5d", "Mixed_6a", "Mixed_6b", "Mixed_6c")  # mixed, mixed_1 ... mixed_5
    for name in (*blocks, *mixed):
        x = getattr(network, name)(x)
    x = network.Mixed_6d.branch1x1(x)
    spatial = detector.features(images).spatial.reshape(2, 17, 17, 7)
    assert spatial.std() > 0
    for channel in range(7):
        torch.testing.assert_close(spatial[..., channel], x[:, channel])


def test_probabilities_exclude_the_bias(detector, images):
    pooled, _, probabilities = detector.features(images)
    torch.testing.assert_close(probabilities, (pooled @ detector._network.fc.weight.T).softmax(1))
    biased = (pooled @ detector._network.fc.weight.T + detector._network.fc.bias).softmax(1)
    assert not torch.allclose(probabilities, biased, atol=1e-6, rtol=1e-3)


def test_features_of_an_image_do_not_depend_on_the_batch(detector, images):
    together, alone = detector.features(images).pooled, detector.features(images[1:]).pooled
    torch.testing.assert_close(together[1:], alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("wrong", [torch.zeros(2, 3, 8, 8), torch.zeros(3, 8, 8, dtype=torch.uint8)])
def test_anything_but_uint8_rgb_is_rejected(detector, wrong):
    with pytest.raises(ConfigError, match=r"detectors expect torch\.uint8"):
        detector.features(wrong)


@needs_torch_fidelity
def test_missing_file_is_reported(tmp_path):
    with pytest.raises(WeightsError, match=r"absent\.pth does not exist\. Download it from https://"):
        InceptionDetector(tmp_path / "absent.pth")


@needs_torch_fidelity
def test_file_without_weights_is_reported(tmp_path):
    (tmp_path / "page.pth").write_text("<html>not found</html>")
    with pytest.raises(WeightsError, match=r"page\.pth is not a weights file"):
        InceptionDetector(tmp_path / "page.pth")


@needs_torch_fidelity
def test_code_in_a_file_is_not_executed(tmp_path):
    torch.save({"fc.weight": Path("anything but a tensor")}, tmp_path / "code.pth")
    with pytest.raises(WeightsError, match=r"code\.pth is not a weights file"):
        InceptionDetector(tmp_path / "code.pth")


@needs_torch_fidelity
@pytest.mark.parametrize("content", [{"fc.weight": torch.zeros(2, 2)}, torch.zeros(3), {"state": {}}])
def test_file_of_another_network_is_reported(tmp_path, content):
    torch.save(content, tmp_path / "other.pth")
    with pytest.raises(WeightsError, match=r"other\.pth holds another network"):
        InceptionDetector(tmp_path / "other.pth")


@pytest.fixture
def hub_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))  # set_dir cannot restore None, the default
    return tmp_path / "checkpoints"


@pytest.mark.parametrize("name", detectors.INCEPTION_FILES)
def test_published_file_is_found_in_the_hub_folder_under_both_names(weights, hub_folder, name):
    pytest.importorskip("torch_fidelity")
    hub_folder.mkdir()
    (hub_folder / name).symlink_to(weights)
    assert InceptionDetector()._network.fc.weight.shape == (1008, 2048)


def test_failed_download_error_names_url_and_path(hub_folder, monkeypatch):
    monkeypatch.setattr(detectors, "INCEPTION_URL", "https://127.0.0.1:9/weights.pth")
    with pytest.raises(WeightsError) as caught:
        InceptionDetector()
    assert "https://127.0.0.1:9/weights.pth" in str(caught.value)
    assert str(hub_folder / detectors.INCEPTION_FILES[0]) in str(caught.value)
    assert not (hub_folder / detectors.INCEPTION_FILES[0]).exists()
