"""Checkpoint files in their published formats, filled with the deterministic weights of the reference recordings."""

import json
import runpy
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

REFERENCE = Path(__file__).parents[1] / "reference"
PREFIXES = {"mocov3": "module.base_encoder.", "jepa": "module.", "clip": "visual."}


def published_tensors(name: str) -> dict[str, torch.Tensor]:
    """Return an encoder's published tensors. Recorded weights were drawn from names without the file's prefix."""
    fill = runpy.run_path(str(REFERENCE / "weights.py"))["fill"]
    checkpoint = json.loads((REFERENCE / f"encoder_{name}_checkpoint.json").read_text())
    prefix = PREFIXES.get(name.split("-", maxsplit=1)[0], "")
    shapes = {tensor.removeprefix(prefix): torch.empty(shape) for tensor, shape in checkpoint["tensors"].items()}
    return {prefix + tensor: value for tensor, value in fill(shapes, seed=checkpoint["seed"]).items()}


@pytest.fixture(scope="session")
def published_file(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Path]]:
    """Create an encoder's checkpoint file in its published format, once per session. Gigabytes, so nothing is kept."""
    folder = tmp_path_factory.mktemp("published")

    def make(name: str) -> Path:
        path = folder / f"{name}.pth"
        if not path.exists():
            key = json.loads((REFERENCE / f"encoder_{name}_checkpoint.json").read_text())["wrapped_under"]
            tensors = published_tensors(name)
            torch.save(tensors if key is None else {key: tensors, "epoch": 300}, path)
        return path

    yield make
    shutil.rmtree(folder)
