"""Names of file formats by their first bytes, for files that are not what their name says."""

_SIGNATURES = (
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"GIF8", "GIF"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"\0\0\0\x0cjP  ", "JPEG2000"),
    (b"\xff\x4f\xff\x51", "JPEG2000"),
    (b"\xff\x0a", "JPEG XL"),
    (b"\0\0\0\x0cJXL ", "JPEG XL"),
    (b"II\xbc\x01", "JPEG XR"),
    (b"%!PS", "PostScript"),
    (b"\xc5\xd0\xd3\xc6", "PostScript"),
    (b"%PDF", "PDF"),
    (b"8BPS", "Photoshop"),
    (b"\0\0\x01\0", "ICO"),
    (b"\x76\x2f\x31\x01", "OpenEXR"),
    (b"#?RADIANCE", "Radiance HDR"),
    (b"SIMPLE  =", "FITS"),
    (b"DDS ", "DDS"),
    (b"qoif", "QOI"),
    (b"\xd7\xcd\xc6\x9a", "WMF"),
    (b"gimp xcf", "GIMP"),
    (b"<svg", "SVG"),
    (b"<!DOCTYPE svg", "SVG"),
    (b"<!DOCTYPE html", "HTML"),
    (b"<!doctype html", "HTML"),
    (b"<html", "HTML"),
    (b"<?xml", "XML"),
    (b"\x93NUMPY", "NumPy array"),
    (b"\x89HDF\r\n\x1a\n", "HDF5"),
    (b"PK\x03\x04", "zip archive"),
    (b"\x1f\x8b", "gzip archive"),
    (b"\x1aE\xdf\xa3", "Matroska video"),
    (b"version https://git-lfs", "Git LFS pointer, not the file itself"),
)
_BRANDS = (  # of ISO base media files; the first brand that a file declares, in this order
    ({b"avif", b"avis"}, "AVIF"),
    ({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx"}, "HEIC"),
    ({b"crx "}, "Canon CR3"),
    ({b"mif1", b"msf1"}, "HEIF"),
)


def format_name(data: bytes) -> str | None:
    """Return the name of a file's format, such as "HEIC", by its first bytes; None if they are not known."""
    if data[4:8] == b"ftyp":
        length = min(int.from_bytes(data[:4]), 256)
        brands = {data[at : at + 4] for at in range(8, length, 4)}
        return next((name for known, name in _BRANDS if brands & known), "MP4 video")
    if data[:4] == b"RIFF":
        return {b"WEBP": "WEBP", b"AVI ": "AVI video"}.get(data[8:12])
    return next((name for start, name in _SIGNATURES if data.startswith(start)), None)
