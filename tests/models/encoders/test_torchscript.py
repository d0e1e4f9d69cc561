import os
import pickle
import zipfile
from pathlib import Path

import pytest
import timm
import torch
from torch import nn

from repa_pipe.errors import WeightsError
from repa_pipe.models.encoders import load_encoder
from repa_pipe.models.encoders.formats import CLIP, read_published_file
from repa_pipe.models.encoders.torchscript import is_torchscript, read_torchscript

pytestmark = [
    pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning"),
]


class Visual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 2, bias=False).half()
        self.class_embedding = nn.Parameter(torch.randn(4))
        self.register_buffer("steps", torch.arange(3))
        self.sizes = [1, 2]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv1(x)


class Clip(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.visual = Visual()
        self.input_resolution = 224

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.visual(x)


class Code:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


@pytest.fixture
def archive(tmp_path):
    """An archive with the structure of OpenAI's CLIP, and the tensors that it holds."""
    model = Clip()
    torch.jit.save(torch.jit.script(model), tmp_path / "ViT-L-14.pt")
    return tmp_path / "ViT-L-14.pt", model.state_dict()


def test_tensors_are_read_as_data(archive):
    path, expected = archive
    for found in (read_torchscript(path), read_published_file(path)):
        assert found.keys() == expected.keys()
        for name, tensor in found.items():
            assert tensor.dtype == expected[name].dtype
            assert torch.equal(tensor, expected[name])


def test_torch_file_is_not_an_archive(tmp_path):
    torch.save({"a": torch.ones(2)}, tmp_path / "weights.pt")
    assert not is_torchscript(tmp_path / "weights.pt")
    assert torch.equal(read_published_file(tmp_path / "weights.pt")["a"], torch.ones(2))
    assert not is_torchscript(tmp_path / "missing.pt")


def test_clip_format_reads_the_image_tower_of_an_archive(archive):
    path, published = archive
    tensors = CLIP.read(path, [])
    assert tensors.keys() == {"cls_token", "patch_embed.proj.weight", "steps"}
    assert torch.equal(tensors["cls_token"], published["visual.class_embedding"].reshape(1, 1, 4))
    assert tensors["patch_embed.proj.weight"].dtype == torch.float32


def test_timm_encoder_loads_an_archive(tmp_path):
    torch.manual_seed(0)
    model = timm.create_model("resnet18", num_classes=0).eval()
    torch.save(model.state_dict(), tmp_path / "plain.pth")
    torch.jit.save(torch.jit.trace(model, torch.zeros(1, 3, 64, 64)), tmp_path / "traced.pt")
    plain, traced = (load_encoder("timm:resnet18", weights=tmp_path / name) for name in ("plain.pth", "traced.pt"))
    assert traced.fingerprint == plain.fingerprint


def test_code_in_an_archive_is_reported_and_not_executed(tmp_path):
    marker = tmp_path / "was-here"
    with zipfile.ZipFile(tmp_path / "evil.pt", "w") as file:
        file.writestr("evil/data.pkl", pickle.dumps(Code(marker), protocol=2))
        file.writestr("evil/constants.pkl", b"")
    with pytest.raises(WeightsError) as error:
        read_published_file(tmp_path / "evil.pt")
    text = str(error.value)
    assert "\n" not in text
    assert str(tmp_path / "evil.pt") in text
    assert "mkdir" in text
    assert not marker.exists()
