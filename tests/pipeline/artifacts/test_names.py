"""Names of files that are made from other names and from settings."""

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from repa_pipe.config.paths import same as same_path
from repa_pipe.pipeline.artifacts.names import digest_of, with_ending

NAMES = st.lists(st.sampled_from("ab1"), min_size=1, max_size=3).map(".".join)


@given(NAMES, NAMES, st.sampled_from(["", ".npz"]))
def test_files_of_different_names_never_share_a_name(first, second, ending):
    made = [with_ending(Path("folder", f"{name}{ending}"), ".npz", ".metrics.json") for name in (first, second)]
    assert (made[0] == made[1]) == (first == second)
    assert {path.parent for path in made} == {Path("folder")}


@given(st.dictionaries(st.text(max_size=3), st.integers()), st.dictionaries(st.text(max_size=3), st.integers()))
def test_a_digest_depends_on_the_settings_and_not_on_their_order(first, second):
    assert (digest_of(first) == digest_of(second)) == (first == second)
    assert digest_of(first) == digest_of(dict(reversed(first.items())))


def test_all_spellings_of_a_path_are_the_same(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    Path("store").mkdir()
    Path("link").symlink_to("store")
    spellings = ["store", "./store", "store/", str(tmp_path / "store"), "link", "~/store", "store/../store"]
    assert all(same_path(first, second) for first in spellings for second in spellings)
    assert not same_path("store", "store2")
