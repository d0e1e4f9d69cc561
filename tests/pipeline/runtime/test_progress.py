"""Rates and durations in progress lines."""

import pytest

from repa_pipe.pipeline.runtime.progress import rate_text, time_text


@pytest.mark.parametrize(
    ("per_second", "text"),
    [
        (2815.4, "2,815 images/s"),
        (99.6, "99.6 images/s"),
        (1.0, "1 images/s"),
        (0.5, "2.0 s per image"),
        (0.01, "1 min 40 s per image"),
    ],
)
def test_slow_rates_are_the_time_of_one_image(per_second, text):
    assert rate_text(per_second, "images") == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (4.21, "4.2 s"),
        (45.4, "45 s"),
        (59.7, "1 min 0 s"),
        (200, "3 min 20 s"),
        (4320, "1 h 12 min"),
        (190_800, "2 d 5 h"),
    ],
)
def test_durations_have_the_two_largest_units(seconds, text):
    assert time_text(seconds) == text
