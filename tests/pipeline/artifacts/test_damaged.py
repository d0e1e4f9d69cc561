"""Damaged files that are kept under another name."""

import pytest

from repa_pipe.errors import ConfigError
from repa_pipe.pipeline.artifacts.damaged import read_or_set_aside, set_aside


@pytest.mark.parametrize("is_folder", [False, True])
def test_every_damaged_file_or_folder_is_kept(tmp_path, caplog, is_folder):
    path = tmp_path / "run.json"
    for number in (1, 2):
        path.mkdir() if is_folder else path.write_text(str(number))
        assert set_aside(path, f"{path} is damaged", "its notes are lost") == tmp_path / f"run.json.damaged-{number}"
    assert not path.exists()
    if not is_folder:
        assert [(tmp_path / f"run.json.damaged-{number}").read_text() for number in (1, 2)] == ["1", "2"]
    assert caplog.messages[1] == f"{path} is damaged; moved to {path}.damaged-2, its notes are lost"


def test_a_missing_file_is_not_damaged_and_other_errors_are_not_hidden(tmp_path):
    path = tmp_path / "run.json"

    def refuse():
        raise ConfigError(f"{path} is damaged")

    def fail():
        raise OSError("no disk")

    assert read_or_set_aside(path, refuse, "") is None
    path.touch()
    assert read_or_set_aside(path, path.read_text, "") == ""
    with pytest.raises(OSError, match="no disk"):
        read_or_set_aside(path, fail, "")
    assert path.exists()
    assert read_or_set_aside(path, refuse, "") is None
    assert not path.exists()
