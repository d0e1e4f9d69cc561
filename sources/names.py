"""Which files of a source are images, by their names: the rules of listing, one per version."""

from collections.abc import Collection
from dataclasses import dataclass

LISTING = 2
"""The version of the rules by which new stores list their sources. A store keeps the rules it was created with."""

_COMMON = (".jpeg", ".jpg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".pgm")
_UNCOMMON = (
    *(".jpe", ".jfif", ".jif", ".apng", ".gif", ".dib", ".pbm", ".pnm", ".pfm", ".tga", ".pcx", ".dds", ".qoi", ".exr"),
    *(".jp2", ".j2k", ".jpf", ".jpx", ".jxl", ".avif", ".avifs", ".heic", ".heif", ".hif"),
)

TOOL_NAMES = frozenset(
    {"__MACOSX", "Thumbs.db", "ehthumbs.db", "desktop.ini", "Desktop.ini", "$RECYCLE.BIN", "System Volume Information"}
    | {"@eaDir", "@tmp", "@Recycle", "#recycle", "#snapshot", "lost+found", "__pycache__", ".DS_Store"}
)
"""Files and folders that operating systems, file servers and Python create next to images."""

HIDDEN = "hidden"
TOOLS = "created by other programs"
LEFT_OUT = "left out by the rules of version 0.1.0"
NO_ENDING = "no file name ending"


def ending_of(name: str) -> str:
    """Return the lower-case ending of a file name with its dot, or an empty string."""
    dot = name.rfind(".")
    return "" if dot < 0 or "/" in name[dot:] else name[dot:].lower()


def is_of_tools(path: str) -> bool:
    """Return whether a file, or a folder that contains it, has a name that other programs use."""
    return path.startswith("._") or "/._" in path or not TOOL_NAMES.isdisjoint(path.split("/"))


@dataclass(frozen=True, slots=True)
class ListingRule:
    """One version of the rules.

    Attributes:
        version: the number that stores record.
        endings: lower-case endings of images.
        skips_hidden: whether hidden files, and those of other programs, are skipped.
    """

    version: int
    endings: tuple[str, ...]
    skips_hidden: bool

    def is_image(self, name: str) -> bool:
        """Return whether a file name has the ending of an image."""
        return name.lower().endswith(self.endings)

    def why_hidden(self, name: str) -> str | None:
        """Return why a file or folder with this name, and everything in it, is skipped; None if it is not."""
        if name in TOOL_NAMES:
            return TOOLS if self.skips_hidden else None
        if name[:1] != "." or not self.skips_hidden:
            return None
        return TOOLS if name.startswith("._") else HIDDEN

    def why_path_hidden(self, path: str) -> str | None:
        """Return why a path is skipped because of one of its folders or its name, else None."""
        if not path.startswith(".") and "/." not in path and TOOL_NAMES.isdisjoint(path.split("/")):
            return None  # three times as fast as the next line
        return next((why for part in path.split("/") if (why := self.why_hidden(part))), None)

    def why_not_image(self, name: str) -> str:
        """Return why a file that is not an image by its name is skipped."""
        ending = ending_of(name)
        if ending in _UNCOMMON:
            return LEFT_OUT
        return f"ending {ending}" if ending else NO_ENDING


_RULES = {
    1: ListingRule(1, _COMMON, skips_hidden=False),
    LISTING: ListingRule(LISTING, (*_COMMON, *_UNCOMMON), skips_hidden=True),
}

RULE = _RULES[LISTING]
"""The rules of new stores."""


def rule_of(version: int) -> ListingRule:
    """Return the rules of a version."""
    return _RULES[version]


def listing_versions() -> Collection[int]:
    """Return the versions that can be listed."""
    return _RULES.keys()
