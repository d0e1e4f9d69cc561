"""PNG files without their metadata, for those with more text than Pillow accepts."""

from .decoder_limits import LimitedReads

_METADATA = frozenset({b"tEXt", b"zTXt", b"iTXt", b"iCCP"})


def without_metadata(png: bytes) -> bytes:
    """Return a PNG without its text and color profile, none of which affects a crop.

    Raises:
        BadImageError: it has too many chunks.
    """
    file = LimitedReads(png)
    parts = [file.read(8)]
    while header := file.read(8):
        content = file.read(int.from_bytes(header[:4]) + 4)
        if header[4:] not in _METADATA:
            parts += [header, content]
    return b"".join(parts)
