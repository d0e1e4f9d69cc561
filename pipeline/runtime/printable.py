"""Text from files that is shown in a terminal or on a page: what would change how other text appears becomes visible.

A name may contain a command of the terminal (`ESC [2J` clears it), an override of the direction of writing, or bytes
that are not UTF-8. Shown as escapes, such as `\\x1b`, they do nothing.
"""

from __future__ import annotations

import re

# Control characters, marks of direction, separators of lines, byte order marks, tags, and halves of surrogate pairs
_SPECIAL = (
    r"\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u206f\ufeff\U000e0000-\U000e007f\ud800-\udfff"
)
_UNSAFE = re.compile(f"[{_SPECIAL}]")
_UNSAFE_IN_A_LINE = re.compile(rf"[{_SPECIAL}\t\n]")


def printable(text: str) -> str:
    """Return text with special characters as escapes, except for tabs and line ends."""
    return _UNSAFE.sub(_escape, text)


def one_line(text: str) -> str:
    """Return text with special characters, tabs and line ends as escapes: it cannot pass for a line of ours."""
    return _UNSAFE_IN_A_LINE.sub(_escape, text)


def _escape(found: re.Match[str]) -> str:
    character = found[0]
    if "\udc80" <= character <= "\udcff":  # a byte of a file name that is not UTF-8
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character.encode("unicode_escape").decode()
