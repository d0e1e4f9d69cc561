"""The same run on one rank, on several ranks, with sharded weights, and on Ray."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from repa_pipe.errors import ConfigError
from repa_pipe.pipeline import train
from repa_pipe.pipeline.artifacts.metrics_log import read_metrics
from repa_pipe.pipeline.artifacts.run_folder import RunFolder

LAUNCHER = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]


def command(config, *launcher):
    return [*(launcher or (sys.executable,)), "-m", "repa_pipe.cli", config.kind, *config.flags()]


@pytest.mark.slow
def test_two_ranks_agree_with_one(config_of, on_two_ranks, assert_close_weights):
    options = {"alignment_steps": 3, "microbatches": 2}
    one = train.run(config_of(exp_name="one", **options))
    two = on_two_ranks(config_of(exp_name="two", **options))
    assert_close_weights(one, two)
    for row, same in zip(read_metrics(RunFolder(Path(one.run))), read_metrics(RunFolder(Path(two.run))), strict=True):
        assert all(row[name] == pytest.approx(same[name], rel=1e-3, abs=1e-4) for name in ("loss", "alignment_loss"))


METHODS = {
    "contrast": {"contrast_coeff": 0.05, "microbatches": 2},
    "self": {"self_coeff": 0.5, "self_blocks": "2,4", "token_groups": 0.25, "separate_attention": True},
}


@pytest.mark.slow
@pytest.mark.parametrize(("method", "fsdp"), [("contrast", False), ("self", True)])
def test_methods_agree_on_one_and_two_ranks(config_of, method, fsdp, on_two_ranks, assert_close_weights):
    one = train.run(config_of(exp_name="one", **METHODS[method]))
    two = on_two_ranks(config_of(exp_name="two", fsdp=fsdp, **METHODS[method]))
    assert_close_weights(one, two)
    metric = {"contrast": "contrastive_loss", "self": "self_alignment_loss"}[method]
    for row, same in zip(read_metrics(RunFolder(Path(one.run))), read_metrics(RunFolder(Path(two.run))), strict=True):
        assert row[metric] == pytest.approx(same[metric], rel=1e-3, abs=1e-4)


@pytest.mark.slow
def test_sharded_ranks_validate_as_one_rank_does(config_of, on_two_ranks, assert_close_weights):
    options = {"val_fraction": 0.3, "val_steps": 2}
    one = train.run(config_of(exp_name="one", **options))
    two = on_two_ranks(config_of(exp_name="two", fsdp=True, **options))
    assert_close_weights(one, two)
    for row, same in zip(read_metrics(RunFolder(Path(one.run))), read_metrics(RunFolder(Path(two.run))), strict=True):
        assert row["val_denoising_loss"] == pytest.approx(same["val_denoising_loss"], rel=1e-3)


@pytest.mark.slow
def test_sharded_ranks_agree_with_one_rank_which_can_resume_their_run(config_of, on_two_ranks, assert_close_weights):
    options = {"alignment_steps": 4, "microbatches": 2}
    one = train.run(config_of(exp_name="one", **options))
    assert_close_weights(one, on_two_ranks(config_of(exp_name="sharded", fsdp=True, **options)))
    on_two_ranks(config_of(max_train_steps=3, fsdp=True, **options))
    assert_close_weights(one, train.run(config_of(**options)))


@pytest.mark.slow
def test_sharded_ranks_resume_bit_identically(config_of, weights_of, assert_same_weights, on_two_ranks):
    whole = on_two_ranks(config_of(exp_name="whole", fsdp=True))
    on_two_ranks(config_of(max_train_steps=3, fsdp=True))
    assert_same_weights(weights_of(whole), weights_of(on_two_ranks(config_of(fsdp=True))))


@pytest.mark.slow
def test_all_ranks_resume_from_the_checkpoint_before_a_damaged_one(
    config_of, weights_of, assert_same_weights, on_two_ranks
):
    whole = on_two_ranks(config_of(exp_name="whole"))
    path = Path(on_two_ranks(config_of()).checkpoint)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    (path.parent.parent / "train.json").write_text("{")
    done = subprocess.run(command(config_of(), *LAUNCHER), check=True, capture_output=True, text=True)
    assert done.stderr.count("steps 4 to 6 are lost: resuming from 0000003.pt") == 1
    assert done.stderr.count("the settings are restored from ") == 1
    assert sorted(each.name for each in path.parent.iterdir()) == ["0000003.pt", "0000006.pt", "0000006.pt.damaged-1"]
    assert_same_weights(weights_of(whole), weights_of(train.run(config_of())))


@pytest.mark.slow
def test_two_ranks_without_a_good_checkpoint_end_with_the_reason(config_of, on_two_ranks):
    path = Path(on_two_ranks(config_of(max_train_steps=3)).checkpoint)
    path.write_bytes(path.read_bytes()[:-1000])
    done = subprocess.run(command(config_of(), *LAUNCHER), check=False, capture_output=True, text=True, timeout=120)
    assert done.returncode != 0
    assert "there is no earlier checkpoint in " in done.stderr
    assert "the first rank cannot resume from " in done.stderr


@pytest.mark.slow
def test_two_workers_of_ray_train_agree_with_one_rank(config_of, weights_of, assert_close_weights):
    pytest.importorskip("ray.train", exc_type=ImportError)
    one = train.run(config_of(exp_name="one"))
    config = config_of(exp_name="ray", ray=True, ray_workers=2)
    done = subprocess.run(command(config), capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["step"] == 6
    assert_close_weights(one, train.run(config_of(exp_name="ray")))
    other = command(config_of(exp_name="ray", ray=True, seed=5))
    refused = subprocess.run(other, check=False, capture_output=True, text=True)
    assert (refused.returncode, "--seed: recorded 0, requested 5" in refused.stderr) == (2, True)
    assert not list(Path(config.output_dir).glob(".ray-*"))


def test_the_error_says_how_to_install_ray_train(config_of, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray.train", None)
    with pytest.raises(ConfigError, match=r"pip install 'ray\[train\]'"):
        train.run(config_of(ray=True))


def test_one_module_uses_ray_train():
    root = Path(train.__file__).parents[1]
    sources = [
        path
        for folder in ("pipeline", "stores", "sources", "models", "config")
        for path in (root / folder).rglob("*.py")
    ]
    users = [path for path in sources if "ray.train" in path.read_text()]
    assert [path.relative_to(root).as_posix() for path in users] == ["pipeline/training/on_ray.py"]
