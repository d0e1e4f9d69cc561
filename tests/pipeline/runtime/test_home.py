"""Users without a home folder, or with one that cannot be written, in new processes."""

import os
import subprocess
import sys

import pytest

# a user that the system does not know, as in containers: only root may become one, so the lookup is replaced
WITHOUT_HOME = """
import pwd, sys

def unknown(user):
    raise KeyError(user)

pwd.getpwuid = unknown
from repa_pipe import cli
sys.argv[0] = "repa-pipe"
cli.main()
"""


def run(*words, home=None, tmp_path):
    hidden = {"HOME", "REPA_PIPE_CACHE", "XDG_CACHE_HOME"}
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    environment |= {"TMPDIR": str(tmp_path)} | ({"HOME": home} if home else {})
    command = [sys.executable, "-c", WITHOUT_HOME, *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


@pytest.mark.slow
@pytest.mark.parametrize("home", [None, "/proc/none"])
def test_a_report_needs_no_home_folder(tmp_path, make_store, home):
    path, _ = make_store()
    done = run("rank", path, "--out", tmp_path / "rank.json", home=home, tmp_path=tmp_path)
    assert done.returncode == 0, done.stderr
    warning = "warning: this user has no home folder, so nothing is cached for later commands: set HOME"
    assert (warning in done.stderr.splitlines()) == (home is None)
    assert not list(tmp_path.glob("repa-pipe-home-*"))


def test_the_environment_is_shown_without_a_home_folder(tmp_path):
    done = run("env", tmp_path=tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"{tmp_path}/repa-pipe-home-" in done.stdout
