"""The file formats that are decoded, and short reasons for files that are not."""

import functools
import re

import PIL.features
import PIL.Image

from .decoder_limits import LimitedReads
from .signatures import format_name

FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "PPM", "GIF", "AVIF", "JPEG2000")
"""The formats that Pillow may decode: none that start another program (EPS) or contain drawing commands (WMF)."""

_CODECS = {"JPEG": "jpg", "PNG": "zlib", "WEBP": "webp", "AVIF": "avif", "JPEG2000": "jpg_2000"}  # `PIL.features`

# Messages of Pillow about intact files of a kind that it does not decode.
_UNSUPPORTED = re.compile(
    "unknown pixel mode|unknown data organization|cannot handle|unsupported|not (yet )?supported|not available", re.I
)


@functools.cache
def readable_formats() -> tuple[str, ...]:
    """Return those of `FORMATS` that this installation of Pillow can decode."""
    PIL.Image.init()
    known = (name for name in FORMATS if name in PIL.Image.OPEN)
    return tuple(name for name in known if name not in _CODECS or PIL.features.check(_CODECS[name]))


def bad_header(data: bytes, error: Exception | None = None) -> str:
    """Return the reason why a file cannot be opened.

    Args:
        data: the bytes of the file.
        error: the exception of Pillow's reader. By default, Pillow found no reader for the file.
    """
    found, readable = format_name(data), readable_formats()
    expected = f"expected one of {', '.join(readable)}"
    if found in FORMATS and found not in readable:
        return f"its format is {found}, which this installation of Pillow cannot decode; {expected}"
    if found is not None and found not in FORMATS:
        return f"its format is {found}; {expected}"
    for name in readable:
        accept = PIL.Image.OPEN[name][1]
        if accept and accept(data[:16]):
            return unsupported(name, error or _error_of(name, data)) or (
                f"its {name} header is truncated or damaged ({reason_of(error) if error else f'{len(data):,} bytes'})"
            )
    return f"not an image (starts with {data[:8]!r}): {expected}"


def unsupported(name: str | None, error: Exception | None) -> str | None:
    """Return the reason if Pillow's error means that it does not decode this kind of file, else None."""
    if error is None or not _UNSUPPORTED.search(str(error)):
        return None
    return f"it is a {name} of a kind that Pillow does not decode ({reason_of(error)})"


def reason_of(error: Exception) -> str:
    """Return the message of one of Pillow's exceptions in one short line."""
    return " ".join(str(error).split())[:160] or type(error).__name__


def _error_of(name: str, data: bytes) -> Exception | None:
    """Return the exception of a format's reader, which `PIL.Image.open` does not pass on."""
    try:
        PIL.Image.OPEN[name][0](LimitedReads(data), "")
    except MemoryError:
        raise
    except Exception as error:
        return error
    return None
