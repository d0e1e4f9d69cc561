"""The repository root is the package: what the wheel holds is written by hand in pyproject.toml."""

import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def test_every_package_on_disk_is_listed():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    on_disk = {f"repa_pipe.{path.parent.name}" for path in ROOT.glob("*/__init__.py")}
    assert set(settings["packages"]) == on_disk | {"repa_pipe"}


@pytest.mark.slow
def test_the_wheel_holds_the_package_its_data_and_nothing_else(tmp_path):
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(tmp_path), str(ROOT)]
    subprocess.run(command, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {"repa_pipe"}
    data = [path for folder in ("models/weights", "pipeline/assets") for path in (ROOT / folder).iterdir()]
    assert {f"repa_pipe/{path.relative_to(ROOT)}" for path in data} <= set(names)
    assert not [name for name in names if "/tests/" in name or "/benchmarks/" in name]
