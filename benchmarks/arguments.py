"""Types of command-line arguments of the benchmarks."""

from __future__ import annotations

import argparse
from collections.abc import Callable


def at_least(smallest: int) -> Callable[[str], int]:
    """Return a type for argparse: an integer of at least `smallest`."""

    def integer(text: str) -> int:
        value = int(text)
        if value < smallest:
            raise argparse.ArgumentTypeError(f"{value} is too small: expected at least {smallest}")
        return value

    return integer
