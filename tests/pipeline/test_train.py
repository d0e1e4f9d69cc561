"""Training runs: resuming, checkpoints, options, and errors."""

import argparse
import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from repa_pipe.errors import BusyError, CheckpointError, ConfigError, StoreError, WeightsError
from repa_pipe.pipeline import train
from repa_pipe.pipeline.artifacts import metrics_log
from repa_pipe.pipeline.artifacts.checkpoints import load_checkpoint, save_checkpoint
from repa_pipe.pipeline.artifacts.metrics_log import read_metrics
from repa_pipe.pipeline.artifacts.run_folder import RunFolder
from repa_pipe.pipeline.runtime.distributed import DistributedContext
from repa_pipe.pipeline.runtime.lease import lease
from repa_pipe.pipeline.runtime.seeds import RandomStreams
from repa_pipe.pipeline.training.objective import Objective
from repa_pipe.pipeline.training.setup import resolve
from repa_pipe.pipeline.training.trainer import Trainer
from repa_pipe.stores import open_store
from repa_pipe.stores.metadata_writer import record_digests


def test_a_resumed_run_is_bit_identical_to_an_uninterrupted_one(config_of, weights_of, assert_same_weights):
    whole = train.run(config_of(exp_name="whole"))
    train.run(config_of(max_train_steps=3))
    resumed = train.run(config_of())
    assert (whole.step, resumed.step) == (6, 6)
    assert_same_weights(weights_of(whole), weights_of(resumed))


@pytest.mark.slow
def test_a_run_started_with_the_old_random_streams_resumes_with_them(
    config_of, weights_of, assert_same_weights, monkeypatch
):
    monkeypatch.setattr(RandomStreams.__init__, "__defaults__", (1,))
    whole = train.run(config_of(exp_name="whole", val_fraction=0.3, cls_coeff=0.03))
    started = train.run(config_of(max_train_steps=3, val_fraction=0.3, cls_coeff=0.03))
    monkeypatch.undo()
    values = load_checkpoint(Path(started.checkpoint))
    assert values.pop("random_streams") == 1
    save_checkpoint(Path(started.checkpoint), values)  # as version 0.1.0 wrote it
    resumed = train.run(config_of(val_fraction=0.3, cls_coeff=0.03))
    assert_same_weights(weights_of(whole), weights_of(resumed))
    assert load_checkpoint(Path(resumed.checkpoint))["random_streams"] == 1
    new = train.run(config_of(exp_name="new", val_fraction=0.3, cls_coeff=0.03))
    assert load_checkpoint(Path(new.checkpoint))["random_streams"] == 2


def test_training_changes_the_weights_and_logs_metrics(config_of, weights_of):
    first = train.run(config_of(max_train_steps=2, exp_name="short"))
    longer = train.run(config_of(max_train_steps=6))
    name = "model.blocks.0.attn.qkv.weight"
    assert not torch.equal(weights_of(first)[name], weights_of(longer)[name])
    rows = read_metrics(RunFolder(Path(longer.run)))
    assert [row["step"] for row in rows] == [2, 4, 6]
    assert all(np.isfinite(row["denoising_loss"]) and -1 <= row["alignment_loss"] <= 1 for row in rows)
    assert all(row["loss"] == pytest.approx(row["denoising_loss"] + 0.5 * row["alignment_loss"]) for row in rows)


def test_gradients_of_microbatches_add_up_to_those_of_the_batch(config_of, weights_of):
    whole = weights_of(train.run(config_of(exp_name="whole", max_train_steps=2)))
    parts = weights_of(train.run(config_of(exp_name="parts", max_train_steps=2, microbatches=4)))
    name = "model.final_layer.linear.weight"
    torch.testing.assert_close(whole[name], parts[name], rtol=1e-3, atol=2e-5)


def test_no_tokens_are_read_without_alignment(config_of, make_store, weights_of):
    config = config_of(proj_coeff=0.0)
    for file in Path(config.store).glob("features/enc/tokens/c/*/*/*"):
        file.unlink()
    result = train.run(config)
    assert not any("projectors" in name for name in weights_of(result))
    assert {row["alignment_loss"] for row in read_metrics(RunFolder(Path(result.run)))} == {0.0}


def inputs_of_steps(config, steps):
    with open_store(config.store) as store:
        trainer = Trainer(
            resolve(config, store), store, torch.device("cpu"), DistributedContext(0, 1), RunFolder(Path("unused"))
        )
        batch = trainer.dataset.read(trainer.dataset.indices_of_step(0))
        return [trainer.objective.inputs(batch, step, trainer.ranks) for step in range(steps)], trainer.model.config


@pytest.mark.parametrize(("cfg_prob", "share"), [(0.1, 0.19), (0.0, 0.1)])
def test_legacy_drops_labels_twice_and_changes_no_other_draw(config_of, cfg_prob, share):
    options = {"batch_size": 40, "cfg_prob": cfg_prob}
    (plain, _), (legacy, model) = (inputs_of_steps(config_of(legacy=legacy, **options), 100) for legacy in (0, 1))
    once, twice = (torch.cat([inputs.dropped for inputs in each]) for each in (plain, legacy))
    assert once.float().mean() == pytest.approx(cfg_prob, abs=0.015)
    assert twice.float().mean() == pytest.approx(share, abs=0.02)
    assert (twice | ~once).all()
    assert all(torch.equal(one.noise, other.noise) for one, other in zip(plain, legacy, strict=True))
    assert model.null_label == 3


def test_a_run_starts_from_a_published_checkpoint(config_of, tmp_path, weights_of):
    before = train.run(config_of(exp_name="before"))
    ema = load_checkpoint(Path(before.checkpoint))["ema"]
    older = {f"module.{name}": value for name, value in ema.items()}
    older = {
        name.replace("blocks.2.", "decoder_blocks.0.").replace("blocks.3.", "decoder_blocks.1."): value
        for name, value in older.items()
    }
    older = {
        name.replace("blocks.4.", "decoder_blocks.2.").replace("blocks.5.", "decoder_blocks.3."): value
        for name, value in older.items()
    }
    published = tmp_path / "published.pt"
    torch.save({"model": ema, "ema": older, "args": argparse.Namespace(lr=1), "steps": 7}, published)
    config = config_of(init_from=str(published), learning_rate=1e-12, max_train_steps=1)
    after = weights_of(train.run(config))
    for name, value in ema.items():
        torch.testing.assert_close(after[f"model.{name}"], value, atol=1e-9, rtol=0)
        torch.testing.assert_close(after[f"ema.{name}"], value, atol=1e-7, rtol=0)
    published.unlink()
    assert train.run(config_of(init_from=str(published), learning_rate=1e-12, max_train_steps=2)).step == 2


def test_init_from_a_checkpoint_of_another_model_is_refused(config_of, tmp_path):
    torch.save({"ema": {"x_embedder.proj.weight": torch.zeros(2)}}, tmp_path / "other.pt")
    with pytest.raises(CheckpointError, match="the checkpoint does not fit the model"):
        train.run(config_of(init_from=str(tmp_path / "other.pt")))
    with pytest.raises(WeightsError, match="does not exist"):
        train.run(config_of(init_from=str(tmp_path / "nowhere.pt")))


def test_a_checkpoint_of_another_program_in_the_run_folder_is_refused(config_of):
    result = train.run(config_of())
    values = load_checkpoint(Path(result.checkpoint))
    del values["sit"], values["store"]
    torch.save(values, Path(result.checkpoint).with_name("0000009.pt"))
    with pytest.raises(CheckpointError, match=r"0000009\.pt is not a checkpoint of repa-pipe: expected the keys"):
        train.run(config_of(max_train_steps=12))


def test_a_finished_run_does_nothing(config_of, caplog):
    first = train.run(config_of())
    stamp = Path(first.checkpoint).stat().st_mtime_ns
    train.run(config_of())
    assert Path(first.checkpoint).stat().st_mtime_ns == stamp
    assert "nothing to do" in caplog.text


def test_settings_that_affect_the_result_cannot_change(config_of):
    train.run(config_of(max_train_steps=1))
    with pytest.raises(ConfigError, match=r"--seed: recorded 0, requested 7"):
        train.run(config_of(seed=7))
    train.run(config_of(max_train_steps=2, log_steps=1))


def test_a_damaged_sample_stops_the_run_unless_reads_are_not_checked(config_of):
    train.run(config_of(max_train_steps=3))
    for file in (Path(config_of().store) / "features/enc/tokens").rglob("c/*/*/*"):
        data = file.read_bytes()
        file.write_bytes(bytes([data[0] ^ 1]) + data[1:])  # the first sample of every shard
    with pytest.raises(StoreError, match=r"tokens/c/.* sample .* does not match its checksum.*store repair"):
        train.run(config_of(max_train_steps=20))
    assert train.run(config_of(max_train_steps=20, check_reads="never")).step == 20


def test_a_partially_written_checkpoint_is_ignored(config_of):
    train.run(config_of(max_train_steps=3))
    folder = Path(config_of().output_dir) / "run/checkpoints"
    (folder / "0000009.pt.tmp-host-1-abc").write_bytes(b"half")
    assert train.run(config_of()).step == 6


def damage(path):
    """Change one bit in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.unlink()  # weights that were read before are mapped from the old file
    path.write_bytes(content)


def test_a_damaged_checkpoint_is_set_aside_and_the_run_resumes_from_the_one_before(
    config_of, caplog, weights_of, assert_same_weights
):
    result = train.run(config_of())
    expected = weights_of(result)
    damage(Path(result.checkpoint))
    resumed = train.run(config_of())
    assert resumed.step == 6
    assert_same_weights(weights_of(resumed), expected)
    assert Path(f"{result.checkpoint}.damaged-1").exists()
    assert "0000006.pt.damaged-1, steps 4 to 6 are lost: resuming from 0000003.pt" in caplog.text


def test_a_run_whose_only_checkpoint_is_damaged_does_not_start_again(config_of):
    result = train.run(config_of(max_train_steps=3))
    damage(Path(result.checkpoint))
    for _ in range(2):
        with pytest.raises(CheckpointError, match=r"0000003\.pt cannot be read .* there is no earlier checkpoint in"):
            train.run(config_of())


@pytest.mark.parametrize("content", ["{", None])
def test_settings_that_cannot_be_read_are_restored_from_the_last_checkpoint(config_of, caplog, content):
    run = RunFolder(Path(train.run(config_of(max_train_steps=3, checkpointing_steps=1)).run))
    settings = run.config_file.read_bytes()
    run.config_file.unlink()
    if content:
        run.config_file.write_text(content)
    with lease(run.path), pytest.raises(BusyError, match="is in use by process"):
        train.run(config_of(seed=1))
    assert not run.has_config()
    with pytest.raises(ConfigError, match="--seed: recorded 0, requested 1"):
        train.run(config_of(seed=1))
    assert run.config_file.read_bytes() == settings
    assert "the settings are restored from 0000003.pt" in caplog.text
    assert (run.path / "train.json.damaged-1").exists() == bool(content)


def test_files_that_killed_trainings_left_are_deleted_and_others_are_not(config_of):
    run = RunFolder(Path(train.run(config_of(max_train_steps=1)).run))
    run.samples.mkdir()
    names = ("train.json", "run.json", "metrics.parquet", "metrics.parquet.copy", "checkpoints/0000009.pt")
    left = [run.path / f"{name}.tmp-another-host-1-abc" for name in names]
    others = [run.path / f"{name}.tmp-another-host-1-abc" for name in ("probe.json", "samples/a.npz")]
    for path in (*left, *others):
        path.touch()
    train.run(config_of(max_train_steps=2))
    assert [path for path in (*left, *others) if path.exists()] == others


def test_only_the_last_checkpoints_are_kept(config_of):
    result = train.run(config_of(checkpointing_steps=1, keep_checkpoints=1))
    assert [path.stem for path in RunFolder(Path(result.run)).checkpoints()] == ["0000005", "0000006"]


def test_a_run_is_not_resumed_from_another_store(config_of):
    train.run(config_of(max_train_steps=3))
    attributes = Path(config_of().store) / "features/enc/zarr.json"
    changed = json.loads(attributes.read_text())
    changed["attributes"]["fingerprint"]["name"] = "other"
    attributes.write_text(json.dumps(changed))
    record_digests(Path(config_of().store))
    with pytest.raises(CheckpointError, match=r"features/enc name: recorded 'enc', found 'other'"):
        train.run(config_of())


def test_a_model_with_another_token_grid_is_refused(config_of):
    with pytest.raises(StoreError, match=r"SiT-T/4 has 4 tokens, enc has 16"):
        train.run(config_of(model="SiT-T/4"))


def test_errors_name_the_missing_group_or_the_option(config_of):
    with pytest.raises(StoreError, match=r"has no 'features/dinov2-vit-b'"):
        train.run(config_of(enc_type=("dinov2-vit-b",)))
    with pytest.raises(ConfigError, match=r"--batch-size"):
        train.run(config_of(batch_size=64))
    with pytest.raises(ConfigError, match=r"--microbatches 3 does not divide the 8 samples per rank"):
        train.run(config_of(microbatches=3))


def test_milestones_are_kept_permanently(config_of):
    result = train.run(config_of(checkpointing_steps=1, keep_checkpoints=1, milestone_steps=2))
    assert [int(path.stem) for path in RunFolder(Path(result.run)).checkpoints()] == [2, 4, 5, 6]
    alone = train.run(config_of(exp_name="alone", checkpointing_steps=100, milestone_steps=4))
    assert [int(path.stem) for path in RunFolder(Path(alone.run)).checkpoints()] == [4, 6]


@pytest.mark.slow
def test_a_run_with_a_gradient_scaler_resumes_bit_identically(config_of, weights_of, assert_same_weights):
    options = {"mixed_precision": "fp16", "microbatches": 2}
    whole = train.run(config_of(exp_name="whole", **options))
    assert load_checkpoint(Path(whole.checkpoint))["scaler"]["_growth_tracker"] > 0
    train.run(config_of(max_train_steps=3, **options))
    resumed = train.run(config_of(**options))
    assert_same_weights(weights_of(whole), weights_of(resumed))
    one, other = (load_checkpoint(Path(result.checkpoint))["scaler"] for result in (whole, resumed))
    assert one == other


@pytest.mark.parametrize(
    ("error", "becomes", "match"),
    [
        (
            torch.OutOfMemoryError("CUDA out of memory.\nMore."),
            ConfigError,
            "--microbatches.*--checkpoint-blocks.*--batch",
        ),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), ConfigError, "out of memory .*--microbatches"),
        (RuntimeError("something else"), RuntimeError, "^something else$"),
    ],
)
def test_an_out_of_memory_error_names_the_flags_that_help(config_of, monkeypatch, error, becomes, match):
    def forward(self, inputs):
        raise error

    monkeypatch.setattr(Objective, "forward", forward)
    with pytest.raises(becomes, match=match):
        train.run(config_of())


@pytest.mark.slow
@pytest.mark.parametrize("what", ["checkpoint", "metrics"])
def test_a_run_stopped_by_a_full_disk_can_be_resumed(config_of, weights_of, assert_same_weights, monkeypatch, what):
    whole = train.run(config_of(exp_name="whole"))

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    train.run(config_of(max_train_steps=3))
    with monkeypatch.context() as patch, pytest.raises(CheckpointError, match=r"No space left.*free some space"):
        patch.setattr(*{"checkpoint": (torch, "save"), "metrics": (metrics_log, "atomic_write_bytes")}[what], full)
        train.run(config_of())
    folder = Path(whole.run).parent / "run"
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["0000003.pt"]
    assert_same_weights(weights_of(whole), weights_of(train.run(config_of())))


def command(config):
    return [sys.executable, "-m", "repa_pipe.cli", config.kind, *config.flags()]


def test_training_imports_no_library_of_encoders_or_vaes(config_of):
    script = (
        "import sys; from repa_pipe.cli import main; sys.argv = ['repa-pipe', *sys.argv[1:]]\n"
        "try: main()\nfinally: print('LOADED', [m for m in ('timm', 'diffusers', 'ray', 'zarr') if m in sys.modules])"
    )
    words = config_of(max_train_steps=1).command().split()[1:]
    done = subprocess.run([sys.executable, "-c", script, *words], capture_output=True, text=True, check=True)
    assert "LOADED []" in done.stdout


@pytest.mark.slow
def test_a_run_that_is_killed_repeatedly_equals_an_uninterrupted_one(config_of, weights_of, assert_same_weights):
    steps = {"max_train_steps": 120, "checkpointing_steps": 10}
    whole = train.run(config_of(exp_name="whole", **steps))
    config = config_of(exp_name="killed", **steps)
    for delay in (6.0, 7.0, 8.5):
        process = subprocess.Popen(command(config), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(delay)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    assert_same_weights(weights_of(whole), weights_of(train.run(config)))


@pytest.mark.slow
def test_an_interrupted_run_writes_a_checkpoint(config_of):
    config = config_of(max_train_steps=100_000, checkpointing_steps=100_000)
    process = subprocess.Popen(command(config), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    time.sleep(10)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "checkpoint saved; re-run the same command to resume" in errors
    assert len(RunFolder(Path(config.output_dir) / "run").checkpoints()) == 1
