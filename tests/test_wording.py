"""The text of the project avoids the phrases listed in phrases.toml, and the check itself works."""

import runpy
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).parents[1]
wording = SimpleNamespace(**runpy.run_path(str(ROOT / "tests/wording.py")))


def in_git() -> bool:
    """An unpacked source distribution has no list of files."""
    return (
        shutil.which("git") is not None
        and subprocess.run(["git", "rev-parse"], cwd=ROOT, capture_output=True, check=False).returncode == 0
    )


@pytest.mark.skipif(not in_git(), reason="files are listed with git")
def test_no_file_uses_a_forbidden_phrase():
    assert wording.check(wording.project_files()) == []


@pytest.mark.skipif(not in_git(), reason="files are listed with git")
def test_every_exception_is_still_needed():
    _, allowed = wording.read_phrases()
    texts = [path.read_text(encoding="utf-8") for path in wording.project_files() if wording.is_checked(path)]
    assert [exception for exception in allowed if not any(exception in text for text in texts)] == []


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("a = 1  # training goes\n    # on from here", "goes on"),
        ("about 100 images\na second", "images a second"),
        ("Samples a shard.", "Samples a shard"),
        ("One actor a GPU pulls shards", "One actor a GPU"),
        ("the COLOURS of curves", "COLOURS"),
        ("an optimiser", "optimiser"),
    ],
)
def test_phrases_are_found_in_any_case_and_across_a_line_break(text, found):
    hits = list(wording.find_phrases(text, *wording.read_phrases()))
    assert [hit.found for hit in hits] == [found]
    assert hits[0].line == 1


@pytest.mark.parametrize(
    "text",
    [
        "This is a recommendation.",
        "It goes only forward.",
        "how many images a shard holds",
        "a store\n\nA store is a directory",
        "the fingerprint says 'normalise by mean'",
    ],
)
def test_other_text_is_left_alone(text):
    assert list(wording.find_phrases(text, *wording.read_phrases())) == []
