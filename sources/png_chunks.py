"""PNG files without their metadata, for those with more text than Pillow accepts."""

_METADATA = frozenset({b"tEXt", b"zTXt", b"iTXt", b"iCCP"})


def without_metadata(png: bytes) -> bytes:
    """Return a PNG without its text and color profile, none of which affects a crop."""
    parts, start = [png[:8]], 8
    while start < len(png):
        end = start + 12 + int.from_bytes(png[start : start + 4])
        if png[start + 4 : start + 8] not in _METADATA:
            parts.append(png[start:end])
        start = end
    return b"".join(parts)
