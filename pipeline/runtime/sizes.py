"""Sizes in bytes, as people read them."""

from __future__ import annotations


def bytes_text(count: float) -> str:
    """Return a size in decimal units, with up to three digits: `393 KB`, `1.3 GB`."""
    for unit in ("bytes", "KB", "MB", "GB", "TB"):
        if count < 999.5 or unit == "TB":
            break
        count /= 1000
    return f"{count:,.0f} {unit}" if unit == "bytes" or count >= 99.5 else f"{count:.1f} {unit}"
