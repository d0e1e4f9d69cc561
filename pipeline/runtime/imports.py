"""Imports of large libraries without the searches for cyclic garbage that they set off."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quick_imports() -> Iterator[None]:
    """Import libraries and create models in this block without searching for cyclic garbage, which finds nothing.

    torch, timm and diffusers create a million objects that stay. Python searches them for cyclic garbage again and
    again while they are imported, which takes a third of the time. Afterwards, they count as old objects.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.freeze()
            gc.unfreeze()  # both together make all objects old, without a search
            gc.enable()
