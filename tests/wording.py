"""Check that no file of the project uses a phrase listed in phrases.toml.

    python tests/wording.py            # all files that git tracks or would track
    python tests/wording.py FILE …     # only these files

Prints one line per hit and exits with status 1 when there is one. Needs nothing but the standard library and git.
"""

import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
LIST = ROOT / "tests" / "phrases.toml"
SUFFIXES = {".py", ".md", ".html", ".toml", ".yml", ".yaml", ".sh", ".js"}
NAMES = {"Makefile"}
SKIPPED = (
    "tests/data/",
    "tests/reference/",
    "tests/phrases.toml",
    "tests/test_wording.py",
)  # recorded values, the list


class Hit(NamedTuple):
    """A forbidden phrase in a text."""

    line: int  # counted from 1
    found: str
    instead: str


def read_phrases(path: Path = LIST) -> tuple[dict[re.Pattern[str], str], list[str]]:
    """Return the phrases as patterns, each with the wording to use instead, and the texts that are allowed."""
    values = tomllib.loads(path.read_text(encoding="utf-8"))
    phrases = {_compile(phrase): instead for phrase, instead in values["phrases"].items()}
    return phrases, [exception["text"] for exception in values.get("exceptions", [])]


def _compile(phrase: str) -> re.Pattern[str]:
    spaced = phrase.replace(" ", r"(?:[ \t]+|[ \t]*\n[ \t]*(?:# *)?)")
    return re.compile(rf"\b(?:{spaced})\b", re.IGNORECASE)


def find_phrases(text: str, phrases: dict[re.Pattern[str], str], allowed: list[str]) -> Iterator[Hit]:
    """Yield the forbidden phrases of a text, in the order of the list."""
    for exception in allowed:
        text = text.replace(exception, " " * len(exception))  # keeps line numbers
    for pattern, instead in phrases.items():
        for match in pattern.finditer(text):
            found = " ".join(match[0].replace("#", " ").split())
            yield Hit(text.count("\n", 0, match.start()) + 1, found, instead)


def project_files() -> list[Path]:
    """Return the files that git tracks, and the new ones that it does not ignore."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [ROOT / name for name in listed.splitlines()]


def is_checked(path: Path) -> bool:
    """Return whether a file of the project holds text that the list applies to."""
    name = path.relative_to(ROOT).as_posix()
    is_text = path.suffix in SUFFIXES or path.name in NAMES
    return is_text and not name.startswith(SKIPPED) and path.is_file()


def check(paths: list[Path]) -> list[str]:
    """Return one line per hit: `path:line: "phrase" (instead: …)`."""
    phrases, allowed = read_phrases()
    return [
        f'{path.relative_to(ROOT)}:{hit.line}: "{hit.found}" (instead: {hit.instead})'
        for path in sorted(filter(is_checked, paths))
        for hit in sorted(find_phrases(path.read_text(encoding="utf-8"), phrases, allowed))
    ]


if __name__ == "__main__":
    hits = check([Path(name).resolve() for name in sys.argv[1:]] or project_files())
    print("\n".join([*hits, f"{len(hits)} forbidden phrases (tests/phrases.toml)"]) if hits else "wording: ok")
    sys.exit(bool(hits))
