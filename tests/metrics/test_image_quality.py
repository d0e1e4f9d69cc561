import sys
from urllib.error import URLError

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.signal import convolve2d
from scipy.signal.windows import gaussian

from repa_pipe.errors import ConfigError, WeightsError
from repa_pipe.metrics.image_quality import Lpips, psnr, ssim
from repa_pipe.sources import center_crop
from repa_pipe.sources.demo_images import photographs


@pytest.fixture(scope="module")
def pairs():
    """Three photographs, uint8 [3, 3, 64, 64], and the same with noise of 2, 10 and 40 levels."""
    crops = []
    for path, _ in photographs()[:3]:
        with Image.open(path) as photograph:
            crops.append(center_crop(photograph, 64))
    images = torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2)
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    levels = torch.tensor([2.0, 10.0, 40.0]).reshape(-1, 1, 1, 1)
    return images, (images + noise * levels).round().clamp(0, 255).to(torch.uint8)


def test_psnr_is_that_of_each_image_with_a_data_range_of_255(pairs):
    images, others = pairs
    errors = ((images.numpy().astype(int) - others.numpy().astype(int)) ** 2).reshape(3, -1).mean(1)
    np.testing.assert_allclose(psnr(images, others).numpy(), 10 * np.log10(255**2 / errors), rtol=1e-12)


def test_psnr_of_equal_images_is_infinite(pairs):
    assert psnr(pairs[0], pairs[0]).tolist() == [float("inf")] * 3


@pytest.mark.slow  # imports torchmetrics, which takes seconds
def test_ssim_is_that_of_wang_et_al_with_mirrored_borders(pairs):
    pytest.importorskip("torchmetrics")
    window = np.outer(gaussian(11, 1.5), gaussian(11, 1.5))
    window /= window.sum()

    def mean(values):
        return convolve2d(np.pad(values, 5, mode="reflect"), window, mode="valid")

    def of_channel(x, y):
        mx, my = mean(x), mean(y)
        vx, vy, cov = mean(x * x) - mx**2, mean(y * y) - my**2, mean(x * y) - mx * my
        c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
        return ((2 * mx * my + c1) * (2 * cov + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2))).mean()

    images, others = (each.double().numpy() for each in pairs)
    expected = [
        np.mean([of_channel(*channels) for channels in zip(*pair, strict=True)])
        for pair in zip(images, others, strict=True)
    ]
    np.testing.assert_allclose(ssim(*pairs).numpy(), expected, atol=1e-4)
    np.testing.assert_allclose(ssim(pairs[0], pairs[0]).numpy(), 1, atol=1e-6)


@pytest.mark.slow
def test_lpips_is_that_of_the_library_for_each_image(pairs, random_vgg16):
    from torchmetrics.functional.image import learned_perceptual_image_patch_similarity as direct

    found = Lpips()(*pairs)
    scaled = [each.float() / 127.5 - 1 for each in pairs]
    expected = [direct(a[None], b[None], net_type="vgg").item() for a, b in zip(*scaled, strict=True)]
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-4)
    assert found[0] < found[1] < found[2]
    assert Lpips()(pairs[0], pairs[0]).tolist() == [0.0] * 3


@pytest.mark.slow
def test_missing_weights_of_lpips_are_one_line_with_the_file_to_copy(monkeypatch):
    pytest.importorskip("torchmetrics")
    import torchvision

    def fail(**_):
        raise URLError("no network")

    monkeypatch.setattr(torchvision.models, "vgg16", fail)
    with pytest.raises(WeightsError, match=r"checkpoints/vgg16-397923af\.pth .*no network.* leave LPIPS out") as raised:
        Lpips()
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("metric", ["SSIM", "LPIPS"])
def test_a_missing_library_is_named_with_the_command_that_installs_it(pairs, monkeypatch, metric):
    monkeypatch.setitem(sys.modules, "torchmetrics", None)
    with pytest.raises(WeightsError, match=rf"{metric} requires torchmetrics .*pip install 'repa-pipe\[quality\]'"):
        ssim(*pairs) if metric == "SSIM" else Lpips()


def test_images_of_another_kind_are_refused(pairs):
    images, others = pairs
    for wrong in (images.float(), images[:2], images[:, :, :32], images[0]):
        with pytest.raises(ConfigError, match="expected two of the same shape"):
            psnr(wrong, others)
    with pytest.raises(ConfigError, match="at least 11 pixels, found"):
        ssim(images[..., :10], others[..., :10])
