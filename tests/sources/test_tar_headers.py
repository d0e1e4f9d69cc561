import tarfile
from pathlib import Path

import pytest

from repa_pipe.errors import SourceError
from repa_pipe.sources.tar_headers import Member, TarHeaders


def header(
    name: str = "a.png", size: int = 0, kind: bytes = tarfile.REGTYPE, patch: tuple[int, bytes] = (0, b"")
) -> bytes:
    """A GNU header with some bytes replaced and a valid checksum."""
    member = tarfile.TarInfo(name)
    member.size, member.type = size, kind
    block = bytearray(member.tobuf(tarfile.GNU_FORMAT))
    start, replacement = patch
    block[start : start + len(replacement)] = replacement
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def members(path: Path, content: bytes) -> list[Member]:
    file = path / "a.tar"
    file.write_bytes(content + bytes(1024))
    with file.open("rb", buffering=0) as opened:
        return list(TarHeaders(str(file), opened).members())


def padded(content: bytes) -> bytes:
    return content + bytes(-len(content) % 512)


def test_times_in_the_header_of_an_incremental_archive_are_not_part_of_the_name(tmp_path):
    block = header(size=3, patch=(345, b"14523071234\0" * 2))
    assert members(tmp_path, block + padded(b"abc")) == [Member("a.png", 512, 3)]


def test_a_name_that_fills_its_field_has_no_terminator(tmp_path):
    assert members(tmp_path, header("n" * 100)) == [Member("n" * 100, 512, 0)]


def test_a_pax_header_applies_to_one_member_only(tmp_path):
    fields = b"17 path=long.png\n"
    content = header("x", len(fields), tarfile.XHDTYPE) + padded(fields) + header("a.png") + header("b.png")
    assert [member.name for member in members(tmp_path, content)] == ["long.png", "b.png"]


BROKEN = {
    "letters for a size": header(patch=(124, b"00000zzzzzz\0")),
    "a negative size": header(patch=(124, b"-0000000001\0")),
    "a pax line longer than its header": header("x", 9, tarfile.XHDTYPE) + padded(b"99 path=a"),
    "a pax line without length": header("x", 6, tarfile.XHDTYPE) + padded(b"path=a"),
    "a pax line of length zero": header("x", 9, tarfile.XHDTYPE) + padded(b"0 path=a\n"),
    "a pax size of letters": header("x", 11, tarfile.XHDTYPE) + padded(b"11 size=ab\n"),
    "a pax size of 5,000 digits": header("x", 5013, tarfile.XHDTYPE) + padded(b"5013 size=" + b"9" * 5002 + b"\n"),
    "a pax line with a length of 5,000 digits": header("x", 5009, tarfile.XHDTYPE) + padded(b"9" * 5000 + b" path=a\n"),
    "a pax header of megabytes": header("x", 2 << 20, tarfile.XHDTYPE) + b"2097152 path=" + b"a" * 2097138 + b"\n",
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_header_is_reported_as_damage(tmp_path, name):
    with pytest.raises(SourceError, match=r"a.tar is not a tar archive or is damaged \(no header at byte 0\)"):
        members(tmp_path, BROKEN[name] + header("b.png"))


@pytest.mark.parametrize("size", [10**9, 2**60])
def test_a_size_beyond_the_end_of_the_file_is_not_believed(tmp_path, size):
    in_pax = b"28 size=1152921504606846976\n"
    for block in (header(size=size), header("x", len(in_pax), tarfile.XHDTYPE) + padded(in_pax) + header()):
        with pytest.raises(SourceError, match=r"a.tar is truncated: its last member ends at byte"):
            members(tmp_path, block)
