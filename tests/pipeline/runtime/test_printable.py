"""Text from files cannot act on the terminal, or pass for output of ours."""

import unicodedata

import pytest

from repa_pipe.pipeline.runtime.printable import one_line, printable

SHOWN = {
    "\x1b[2J": r"\x1b[2J",
    "a\rb": r"a\rb",
    "\x00\x07\x08\x7f": r"\x00\x07\x08\x7f",
    "\x9b31m": r"\x9b31m",
    "\u202egnp.exe": r"\u202egnp.exe",
    "\u2066\u2069\u200f": r"\u2066\u2069\u200f",
    "\u2028\u2029\ufeff": r"\u2028\u2029\ufeff",
    "A\udce9": r"A\xe9",  # a file name in Latin-1
    "\ud800": r"\ud800",
    "\U000e0041": r"\U000e0041",
}


@pytest.mark.parametrize("text", SHOWN)
def test_special_characters_are_shown_as_escapes(text):
    assert printable(text) == one_line(text) == SHOWN[text]
    printable(text).encode()


@pytest.mark.parametrize("text", ["n01440764/a b.JPEG", "Tench, Größe 日本語 🐟", "ن‌و", "\\x1b", ""])
def test_other_text_is_unchanged(text):
    assert printable(text) == one_line(text) == text


def test_only_a_line_has_no_tabs_and_ends():
    assert printable("a\tb\nc") == "a\tb\nc"
    assert one_line("a\tb\nc") == r"a\tb\nc"


def test_no_character_of_control_or_direction_is_left():
    everything = "".join(map(chr, range(0x30000)))
    left = printable(everything)
    assert {c for c in left if unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp")} == {"\t", "\n"}
    directions = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}
    assert not {c for c in left if unicodedata.bidirectional(c) in directions}
