"""The comparison with recorded figures: every file agrees, and the comparison can fail."""

import importlib.util
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

REFERENCE = Path(__file__).parents[1] / "reference"
FILES = [
    "cfm",
    "dispersive",
    "fdr_mind",
    "haste",
    "irepa_jit",
    "irepa_ldm",
    "lightningdit",
    "rae_ditdh",
    "rae_stage1",
    "raev2_ditig",
    "raev2_layers",
    "reg",
    "repae_sit",
    "sra",
    "sra_dts_as",
    "srdit",
]
spec = importlib.util.spec_from_file_location("agreement_run", Path(__file__).with_name("run.py"))
run = importlib.util.module_from_spec(spec)
spec.loader.exec_module(run)


@pytest.mark.parametrize("name", FILES)
def test_every_recorded_output_agrees(name, tmp_path):
    path = shutil.copy(REFERENCE / f"{name}.npz", tmp_path / "other.npz")  # the method is not known by the file's name
    assert run.compare(path) == []


def test_an_output_that_differs_or_is_not_computed_is_reported(tmp_path, monkeypatch, capsys):
    with np.load(REFERENCE / "rae_ditdh.npz") as file:
        arrays = {name: file[name] for name in file.files}
    arrays["eval_v"][0, 0, 0, 0] += 1
    arrays["eval_other"] = arrays["eval_v"]
    path = tmp_path / "figures.npz"
    np.savez(path, **arrays)
    monkeypatch.setattr("sys.argv", ["run.py", str(path)])
    assert run.main() == 1
    told = capsys.readouterr().err
    assert "eval_v differs by" in told
    assert "eval_other was not computed" in told
    assert len(told.splitlines()) == 2


def test_a_move_may_differ_by_rounding_in_one_number_of_a_thousand_alone():
    move = np.random.default_rng(0).standard_normal(2000).astype(np.float32)
    length = np.linalg.norm(move)

    def error(changes):
        found = move.copy()
        found[: len(changes)] += np.array(changes, np.float32) * length
        return run.error_of("move1.weight", found, move)

    assert error([5e-3, 5e-3]) < 1e-4
    assert error([5e-3, 5e-3, 5e-4]) > 1e-4  # a third number
    assert error([2e-2]) > 1e-4  # more than rounding
    assert run.error_of("move1.weight", move * 1.001, move) > 1e-4
    assert run.error_of("move1.weight", move[1:], move) == np.inf
    assert not run.error_of("move1.weight", np.full_like(move, np.nan), move) < 1e-4


def test_a_file_of_an_unknown_method_is_refused(tmp_path):
    np.savez(tmp_path / "figures.npz", config=json.dumps({"model": {}}))
    with pytest.raises(SystemExit, match="belongs to none of cfm"):
        run.compare(tmp_path / "figures.npz")
