import argparse
import hashlib
import os
import pickle
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from repa_pipe.errors import WeightsError
from repa_pipe.models.weight_files import WeightsSource, download_weights, read_checkpoint, weights_sha256

TENSORS = {"a.weight": torch.arange(6.0).reshape(2, 3), "b": torch.tensor([1.5, -2.0], dtype=torch.float16)}


def message(path: Path, key: str | None = None) -> str:
    with pytest.raises(WeightsError) as error:
        read_checkpoint(path, key)
    text = str(error.value)
    assert "\n" not in text
    assert str(path) in text
    return text


def same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> bool:
    return found.keys() == expected.keys() and all(
        found[name].dtype == expected[name].dtype and torch.equal(found[name], expected[name]) for name in found
    )


def test_both_torch_file_formats_are_read(tmp_path):
    torch.save(TENSORS, tmp_path / "new.pth")
    torch.save(TENSORS, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert same(read_checkpoint(tmp_path / "new.pth"), TENSORS)
    assert same(read_checkpoint(tmp_path / "old.pth"), TENSORS)


def test_safetensors_files_are_read(tmp_path):
    save_file(TENSORS, tmp_path / "model.safetensors")
    assert same(read_checkpoint(tmp_path / "model.safetensors"), TENSORS)


def test_only_tensors_under_the_key_are_read(tmp_path):
    other = {"args": argparse.Namespace(lr=1e-4), "loss": np.float64(0.5), "steps": 7}
    torch.save({"ema": TENSORS, "model": {}, **other}, tmp_path / "checkpoint.pt")
    assert same(read_checkpoint(tmp_path / "checkpoint.pt", "ema"), TENSORS)


def test_missing_key_error_lists_the_keys_found(tmp_path):
    torch.save({"model": TENSORS, "opt": {}}, tmp_path / "checkpoint.pt")
    text = message(tmp_path / "checkpoint.pt", "ema")
    assert "'ema'" in text
    assert "model, opt" in text


def test_nested_file_needs_a_key(tmp_path):
    torch.save({"model": TENSORS}, tmp_path / "checkpoint.pt")
    assert "no named tensors" in message(tmp_path / "checkpoint.pt")


class Code:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


def test_code_in_a_torch_file_is_reported_and_not_executed(tmp_path):
    marker = tmp_path / "was-here"
    torch.save({"a": Code(marker)}, tmp_path / "evil.pth")
    assert "mkdir" in message(tmp_path / "evil.pth")
    (tmp_path / "evil.pkl").write_bytes(pickle.dumps({"a": Code(marker)}, protocol=2))
    message(tmp_path / "evil.pkl")
    assert not marker.exists()


@pytest.mark.parametrize("name", ["new.pth", "old.pth", "model.safetensors"])
def test_truncated_file_is_reported(tmp_path, name):
    tensors = {"a": torch.randn(10_000)}
    path = tmp_path / name
    if path.suffix == ".safetensors":
        save_file(tensors, path)
    else:
        torch.save(tensors, path, _use_new_zipfile_serialization=name == "new.pth")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert "truncated" in message(path)


def test_empty_missing_and_foreign_files_are_reported(tmp_path):
    (tmp_path / "empty.pth").write_bytes(b"")
    (tmp_path / "page.pth").write_text("<html>404</html>")
    torch.save(torch.zeros(3), tmp_path / "tensor.pth")
    assert "cannot be read as a torch file" in message(tmp_path / "empty.pth")
    assert "is not a weights file" in message(tmp_path / "page.pth")
    assert "holds a Tensor" in message(tmp_path / "tensor.pth")
    assert "does not exist" in message(tmp_path / "none.pth")
    assert "is a folder" in message(tmp_path)


def test_digest_covers_names_dtypes_shapes_and_bytes():
    digest = hashlib.sha256()
    digest.update(b"a.weight\0torch.float32\0(2, 3)\0" + np.arange(6, dtype="<f4").tobytes())
    digest.update(b"b\0torch.float16\0(2,)\0" + np.array([1.5, -2.0], dtype="<f2").tobytes())
    assert weights_sha256(TENSORS) == digest.hexdigest()


def test_digest_depends_on_content_but_not_on_order_or_memory_layout():
    digest = weights_sha256(TENSORS)
    assert weights_sha256(dict(reversed(TENSORS.items()))) == digest
    assert weights_sha256({**TENSORS, "a.weight": TENSORS["a.weight"].t().contiguous().t()}) == digest
    changes = [
        {"a.weight": TENSORS["a.weight"].reshape(3, 2)},
        {"a.weight": TENSORS["a.weight"].view(torch.int32)},
        {"a.weight": TENSORS["a.weight"].nextafter(torch.tensor(9.0))},
        {"c": torch.tensor(1.0)},
    ]
    assert len({digest, *(weights_sha256({**TENSORS, **change}) for change in changes)}) == 5


@pytest.fixture
def caches(tmp_path, monkeypatch):
    """Empty caches for both hubs, and a hub that cannot be reached."""
    from huggingface_hub import constants

    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    return tmp_path


def test_concurrent_processes_download_once(caches, monkeypatch):
    published = caches / "vit.pth"
    torch.save(TENSORS, published)
    downloads = []

    def download(url, path):
        downloads.append(url)
        time.sleep(0.2)
        shutil.copy(published, path)

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    source = WeightsSource(url=published.as_uri())
    with ThreadPoolExecutor(4) as pool:  # each creates its own FileLock, as processes would
        paths = set(pool.map(lambda _: download_weights("a-vit", [source]), range(4)))
    assert len(paths) == len(downloads) == 1


def test_url_is_downloaded_once(caches):
    published = caches / "vit.pth"
    torch.save(TENSORS, published)
    source = WeightsSource(url=published.as_uri())
    path = download_weights("a-vit", [source])
    assert path == caches / "torch" / "hub" / "checkpoints" / "vit.pth"
    published.unlink()
    assert same(read_checkpoint(download_weights("a-vit", [source])), TENSORS)


def test_url_is_the_fallback_if_the_hub_is_unreachable(caches):
    published = caches / "vit.pth"
    torch.save(TENSORS, published)
    path = download_weights("a-vit", [WeightsSource(repo="timm/a_vit"), WeightsSource(url=published.as_uri())])
    assert path.name == "vit.pth"


def test_cached_hub_file_needs_no_network(caches):
    repository = caches / "hub" / "models--timm--a_vit"
    (repository / "snapshots" / "abc").mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc")
    save_file(TENSORS, repository / "snapshots" / "abc" / "model.safetensors")
    path = download_weights("a-vit", [WeightsSource(repo="timm/a_vit"), WeightsSource(url="file:///nowhere/vit.pth")])
    assert same(read_checkpoint(path), TENSORS)


def test_unreachable_sources_are_listed_in_one_line(caches):
    sources = [WeightsSource(repo="timm/a_vit"), WeightsSource(url="file:///nowhere/vit.pth")]
    with pytest.raises(WeightsError) as error:
        download_weights("a-vit", sources)
    text = str(error.value)
    assert "\n" not in text
    assert "https://huggingface.co/timm/a_vit/resolve/main/model.safetensors" in text
    assert "file:///nowhere/vit.pth" in text
    assert "a-vit" in text
    assert not list(caches.rglob("vit.pth*"))
