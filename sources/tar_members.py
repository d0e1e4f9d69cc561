"""The files of a tar archive: its members, or the members of the archives in it."""

from collections.abc import Iterator

from .archive_paths import normal_name
from .names import RULE, ListingRule, is_of_tools
from .tar_headers import Member, TarHeaders

_ARCHIVES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")  # compressed ones are refused when read


def files_of(headers: TarHeaders, rule: ListingRule, inside: str) -> Iterator[Member]:
    """Yield the files of an archive in its order.

    If the first image or archive among the members is an archive, as in `ILSVRC2012_img_train.tar`, all archives among
    them are expanded in place: `n01440764.tar` becomes the folder `n01440764`.

    Args:
        headers: the archive.
        rule: which files are images.
        inside: only files below this folder with a final slash, with names relative to it; empty for all files.
    """
    members = _expanded(headers, rule) if rule is RULE else headers.members()
    if not inside:
        yield from members
        return
    for member in members:
        name = normal_name(member.name)
        if name.startswith(inside):
            yield member._replace(name=name.removeprefix(inside))


def _expanded(headers: TarHeaders, rule: ListingRule) -> Iterator[Member]:
    members = headers.members()
    expands = False
    for member in members:
        folder = _archive_folder(member.name)
        if folder:
            expands = True
            for file in _expanded(headers.inside(member), rule):
                yield file._replace(name=f"{folder}/{file.name.lstrip('/')}")
        else:
            yield member
        if not expands and rule.is_image(member.name):
            yield from members


def _archive_folder(name: str) -> str | None:
    """Return the name of an archive without its ending, or None if it is not an archive."""
    if not name.lower().endswith(_ARCHIVES) or is_of_tools(name):
        return None
    return name[: -max(len(ending) for ending in _ARCHIVES if name.lower().endswith(ending))]
