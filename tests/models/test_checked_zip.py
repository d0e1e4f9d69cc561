"""Digests of zip files, and changed bytes in them."""

import os
import struct
import zipfile

import numpy as np
import pytest
import torch

from repa_pipe.models.checked_zip import find_damage, zip_digest


@pytest.fixture
def path(tmp_path):
    """A file of torch with two tensors."""
    torch.save({"a": torch.arange(500.0), "b": torch.ones(3)}, tmp_path / "weights.pt")
    return tmp_path / "weights.pt"


def flip(path, position):
    with path.open("r+b") as file:
        file.seek(position)
        byte = file.read(1)[0]
        file.seek(position)
        file.write(bytes([byte ^ 0x10]))


def test_an_intact_file_has_no_damage(path):
    assert find_damage(path) is None


def test_every_changed_byte_of_a_tensor_is_found(path):
    with zipfile.ZipFile(path) as archive:
        entry = archive.getinfo("weights/data/0")
    first = path.read_bytes().index(torch.arange(500.0).numpy().tobytes())
    assert entry.file_size == 2000
    for position in range(first, first + 2000, 37):
        flip(path, position)
        assert find_damage(path) == "checksum mismatch in weights/data/0"
        flip(path, position)
    assert find_damage(path) is None


def test_a_changed_byte_of_compressed_data_is_found(tmp_path):
    path = tmp_path / "a.npz"
    np.savez_compressed(path, images=np.arange(10_000) % 251)
    assert find_damage(path) is None
    flip(path, path.stat().st_size // 2)
    assert find_damage(path) == "checksum mismatch in images.npy"


@pytest.mark.parametrize("offset", [None, 0x7FFFFFFF])
def test_a_tensor_whose_header_is_elsewhere_is_damaged(path, offset):
    data = bytearray(path.read_bytes())
    if offset is None:  # where the directory says that it begins, there is no header
        with zipfile.ZipFile(path) as archive:
            data[archive.getinfo("weights/data/0").header_offset] ^= 1
    else:  # the directory says that it begins behind the end of the file
        struct.pack_into("<I", data, data.rindex(b"weights/data/0") - 46 + 42, offset)
    path.write_bytes(data)
    assert find_damage(path) == "checksum mismatch in weights/data/0"


def test_a_truncated_file_is_damaged(path):
    os.truncate(path, path.stat().st_size - 1)
    assert find_damage(path) is not None


def test_a_file_that_was_written_without_checksums_has_no_damage_and_no_digest(path):
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"a": torch.ones(3)}, path)
    finally:
        torch.serialization.set_crc32_options(True)
    assert find_damage(path) is None
    assert zip_digest(path) is None


def test_a_digest_depends_on_the_content_alone(path, tmp_path):
    digest = zip_digest(path)
    copy = tmp_path / "copy"
    copy.write_bytes(path.read_bytes())
    os.utime(copy, (1, 1))
    assert zip_digest(copy) == digest
    values = torch.load(path)
    values["a"][7] += 1
    torch.save(values, path)
    assert zip_digest(path) != digest


def test_other_files_have_no_digest(tmp_path):
    (tmp_path / "a").write_bytes(b"text")
    assert zip_digest(tmp_path / "a") is None
