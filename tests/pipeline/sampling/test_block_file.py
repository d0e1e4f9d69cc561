"""Blocks of images on disk: damage of any kind is noticed, and blocks of earlier versions are read."""

import io
import os
from pathlib import Path

import numpy as np
import pytest

from repa_pipe.errors import ConfigError
from repa_pipe.pipeline.sampling.block_file import TRAILER, block_path, read_block, write_block

BLOCK = range(6, 8)
IMAGES = np.random.default_rng(0).integers(0, 256, (2, 4, 4, 3), dtype=np.uint8)


@pytest.fixture
def written(tmp_path):
    write_block(tmp_path, BLOCK, IMAGES)
    return block_path(tmp_path, BLOCK)


def test_a_block_is_read_as_it_was_written(written):
    images, checked = read_block(written.parent, BLOCK)
    np.testing.assert_array_equal(images, IMAGES)
    assert checked
    np.testing.assert_array_equal(np.load(written), IMAGES)  # as earlier versions read it


def test_a_flip_of_any_byte_is_noticed(written):
    data = written.read_bytes()
    for place in range(len(data)):
        written.write_bytes(data[:place] + bytes([data[place] ^ 4]) + data[place + 1 :])
        with pytest.raises(ConfigError, match=r"00000006\.npy"):
            read_block(written.parent, BLOCK)


def test_a_block_that_ends_early_or_is_zeros_is_noticed(written):
    data = written.read_bytes()
    without_checksum = len(data) - TRAILER.size
    for size in set(range(len(data))) - {without_checksum}:
        written.write_bytes(data[:size])
        with pytest.raises(ConfigError):
            read_block(written.parent, BLOCK)
    written.write_bytes(bytes(len(data)))
    with pytest.raises(ConfigError):
        read_block(written.parent, BLOCK)


def test_a_block_of_an_earlier_version_is_read_unless_an_image_is_black(written):
    np.save(written, IMAGES)
    images, checked = read_block(written.parent, BLOCK)
    np.testing.assert_array_equal(images, IMAGES)
    assert not checked
    black = IMAGES.copy()
    black[1] = 0
    np.save(written, black)
    with pytest.raises(ConfigError, match="has no checksum and holds a black image"):
        read_block(written.parent, BLOCK)


def test_images_of_another_number_or_type_are_refused(written):
    for images in (IMAGES[:1], IMAGES.astype(np.float32), IMAGES[..., :1], IMAGES[0]):
        buffer = io.BytesIO()
        np.save(buffer, images)
        written.write_bytes(buffer.getvalue())
        with pytest.raises(ConfigError, match="expected 2 images"):
            read_block(written.parent, BLOCK)


def test_a_block_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    synced, original = [], os.fsync

    def fsync(descriptor):
        synced.append((str(Path(f"/proc/self/fd/{descriptor}").readlink()), block_path(tmp_path, BLOCK).exists()))
        original(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    write_block(tmp_path, BLOCK, IMAGES)
    (file, named), (folder, has_name) = synced
    assert (file.startswith(f"{block_path(tmp_path, BLOCK)}.tmp-"), named) == (True, False)
    assert (folder, has_name) == (str(tmp_path), True)
