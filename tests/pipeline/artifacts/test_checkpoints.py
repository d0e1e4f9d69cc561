"""Checkpoints: what changed bytes, missing bytes and other files lead to."""

import os

import pytest
import torch

from repa_pipe.errors import CheckpointError, DamagedCheckpointError
from repa_pipe.pipeline.artifacts.checkpoints import is_intact, load_checkpoint, save_checkpoint
from repa_pipe.pipeline.artifacts.digests import file_digest


@pytest.fixture
def checkpoint(tmp_path):
    """A small checkpoint with all keys, and its values."""
    values = {
        "model": {"weight": torch.randn(7, 5), "half": torch.randn(3).bfloat16()},
        "ema": {"weight": torch.randn(7, 5)},
        "opt": {
            "state": {0: {"step": torch.tensor(3.0), "exp_avg": torch.randn(7, 5)}},
            "param_groups": [{"lr": 1e-4}],
        },
        "scaler": {},
        "steps": 3,
        "config": {"store": "s", "seed": 7},
        "sit": {"depth": 2},
        "store": {"vae": "sd"},
    }
    path = tmp_path / "0000003.pt"
    save_checkpoint(path, values)
    return path, values


def is_same(first, second):
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(is_same(first[key], second[key]) for key in first)
    if isinstance(first, torch.Tensor):
        return first.dtype == second.dtype and torch.equal(first, second)
    return first == second


@pytest.mark.slow
def test_every_changed_byte_is_refused_or_changes_nothing(checkpoint):
    path, values = checkpoint
    content, refused = path.read_bytes(), 0
    for position in range(0, len(content), 5):
        path.write_bytes(
            content[:position] + bytes([content[position] ^ (1 << position % 8)]) + content[position + 1 :]
        )
        try:
            assert is_same(load_checkpoint(path), values), position
        except CheckpointError:
            refused += 1
        assert file_digest(path)
    assert refused > len(content) / 5 / 3  # the others are padding, and headers that nobody reads


@pytest.mark.parametrize("kept", [0.0, 0.01, 0.5, 0.99])
def test_a_truncated_checkpoint_is_damaged(checkpoint, kept):
    path, _ = checkpoint
    os.truncate(path, int(path.stat().st_size * kept))
    assert not is_intact(path)
    with pytest.raises(DamagedCheckpointError, match=r"0000003\.pt cannot be read as a checkpoint"):
        load_checkpoint(path)


def test_a_changed_tensor_is_named_with_what_to_do(checkpoint):
    path, values = checkpoint
    content = bytearray(path.read_bytes())
    content[content.index(values["ema"]["weight"].numpy().tobytes()) + 9] ^= 1
    path.write_bytes(content)
    assert not is_intact(path)
    with pytest.raises(
        DamagedCheckpointError, match=r"is damaged \(checksum mismatch in archive/data/\d\): restore it"
    ):
        load_checkpoint(path)


def test_a_checkpoint_of_something_else_is_not_damaged(checkpoint):
    path, _ = checkpoint
    torch.save({"weights": torch.ones(3)}, path)
    with pytest.raises(CheckpointError, match="is not a checkpoint of repa-pipe") as raised:
        load_checkpoint(path)
    assert not isinstance(raised.value, DamagedCheckpointError)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_checkpoint_without_permission_is_not_damaged(checkpoint):
    path, _ = checkpoint
    path.chmod(0)
    with pytest.raises(CheckpointError) as raised:
        load_checkpoint(path)
    assert not isinstance(raised.value, DamagedCheckpointError)


def test_a_checkpoint_on_a_bad_sector_is_damaged_and_one_without_memory_is_not(checkpoint, monkeypatch):
    path, _ = checkpoint

    def fails_with(error):
        def load(*args, **options):
            raise error

        monkeypatch.setattr(torch, "load", load)
        with pytest.raises(CheckpointError) as raised:
            load_checkpoint(path)
        return isinstance(raised.value, DamagedCheckpointError)

    assert fails_with(OSError(5, "Input/output error"))
    assert not fails_with(OSError(13, "Permission denied"))
    assert not fails_with(RuntimeError("unable to mmap 7000000000 bytes: Cannot allocate memory (12)"))
