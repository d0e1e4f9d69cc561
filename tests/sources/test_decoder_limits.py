"""Bombs are refused in a fraction of a second, and the limits leave honest files alone."""

import functools
import struct
import threading
import time

import pytest

from repa_pipe.config import EncodeConfig
from repa_pipe.errors import BadImageError, ConfigError
from repa_pipe.sources import decode_crop
from repa_pipe.sources.crop import MAX_PIXELS
from repa_pipe.sources.decode import decode_rgb, image_size
from repa_pipe.sources.decoder_limits import Budget, LimitedReads, require_limits

from . import bombs

SECONDS = 1.0  # of CPU time; without the limits, most of the files take more than ten


def cpu_seconds(call) -> float:
    start = time.thread_time()
    call()
    return time.thread_time() - start


@pytest.mark.parametrize("name", bombs.REFUSED)
def test_a_bomb_is_refused_before_its_pixels_are_decoded(name):
    make, reason = bombs.REFUSED[name]
    data = make()

    def refuse(decode):
        with pytest.raises(BadImageError, match=reason):
            decode(data)

    assert cpu_seconds(lambda: refuse(lambda data: decode_crop(data, 32))) < SECONDS
    assert cpu_seconds(lambda: refuse(image_size)) < SECONDS


@pytest.mark.parametrize("name", bombs.DECODED)
def test_what_does_not_belong_to_the_first_image_is_not_decoded(name):
    data = bombs.DECODED[name]()
    assert cpu_seconds(lambda: decode_crop(data, 32)) < SECONDS


def test_metadata_behind_the_scans_and_the_end_of_a_jpeg_are_not_counted():
    after = b"\xff\xda\0\2" * 500 + b"Exif\0\0" * 500  # as in the video of a motion photo
    assert decode_crop(bombs.encoded("JPEG") + after, 32).shape == (32, 32, 3)


def test_a_thumbnail_in_the_metadata_of_a_jpeg_is_not_a_scan():
    content = b"\xff\xda\0\2" * 500
    data = bombs.encoded("JPEG")
    assert decode_crop(data[:2] + b"\xff\xe2" + struct.pack(">H", len(content) + 2) + content + data[2:], 32).any()


def test_the_usual_divisions_of_a_jpeg2000_are_decoded():
    options = {"quality_layers": [80, 40, 20, 10], "tile_size": (64, 64), "codeblock_size": (16, 16)}
    assert decode_crop(bombs.encoded("JPEG2000", 512, **options), 32).shape == (32, 32, 3)
    assert decode_crop(bombs.encoded("JPEG2000", 512, precinct_size=(128, 128)), 32).shape == (32, 32, 3)


def test_a_second_coding_style_in_a_tile_of_a_jpeg2000_is_checked():
    data, bomb = bombs.encoded("JPEG2000", 1024, no_jp2=True), bombs.jpeg2000_in_precincts(1024)
    style = bomb[bomb.index(b"\xff\x52") :][:20]
    tile = data.index(b"\xff\x90")
    size = int.from_bytes(data[tile + 6 : tile + 10]) + len(style)
    header = data[tile : tile + 6] + struct.pack(">I", size) + data[tile + 10 : tile + 12]
    with pytest.raises(BadImageError, match="more than 1,000,000 code blocks"):
        decode_crop(data[:tile] + header + style + data[tile + 12 :], 32)


def test_a_codestream_behind_an_honest_one_is_checked():
    honest = bombs.encoded("JPEG2000", 64, no_jp2=True)
    with pytest.raises(BadImageError, match="more than 1,000,000 code blocks"):
        require_limits(honest + bombs.jpeg2000_in_precincts())


def test_images_above_the_given_limit_are_refused_with_their_size():
    data = bombs.noise(0)
    with pytest.raises(BadImageError, match=r"64 x 64 pixels: more than 4,095 \(--max-image-pixels\)"):
        decode_crop(data, 32, max_pixels=4095)
    assert decode_crop(data, 32, max_pixels=4096).shape == (32, 32, 3)
    assert decode_rgb(data).size == (64, 64)


def test_the_default_of_the_command_is_the_limit_of_the_crop():
    def config(**limit):
        EncodeConfig(source="images", store="store", **limit).validate()

    assert EncodeConfig(source="images", store="store").max_image_pixels == MAX_PIXELS
    for limit in (0, -1, MAX_PIXELS + 1):
        with pytest.raises(ConfigError, match="--max-image-pixels"):
            config(max_image_pixels=limit)
    config(max_image_pixels=9)


def test_a_file_may_be_read_in_one_hundred_thousand_pieces_and_more_if_it_is_large():
    for size, allowed in ((0, 100_000), (5000, 100_005)):
        file = LimitedReads(bytes(size))
        for _ in range(allowed):
            file.read(0)
        with pytest.raises(BadImageError, match="too many small pieces"):
            file.read(0)


def test_threads_wait_until_their_images_fit_together():
    budget, holding, most = Budget(), 0, 0
    lock = threading.Lock()

    def hold(amount):
        nonlocal holding, most
        with budget.hold(amount, 100):
            with lock:
                holding += amount
                most = max(most, holding)
            time.sleep(0.005)
            with lock:
                holding -= amount

    threads = [threading.Thread(target=functools.partial(hold, amount)) for amount in (60, 50, 40, 30, 20, 10) * 3]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert 60 < most <= 100
    hold(1000)  # alone
    assert most == 1000
