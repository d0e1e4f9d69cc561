"""Generated images: reproducibility, file formats, resuming, and sampling on Ray."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
import time
import zipfile
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from repa_pipe.config import SampleConfig
from repa_pipe.errors import BusyError, CheckpointError, ConfigError, DamagedCheckpointError, NonFiniteError
from repa_pipe.pipeline import sample, train
from repa_pipe.pipeline.artifacts.checkpoints import load_checkpoint, save_checkpoint
from repa_pipe.pipeline.artifacts.sample_files import SampleFiles, settings_name
from repa_pipe.pipeline.sampling import blocks as sample_blocks
from repa_pipe.pipeline.sampling.sampler import Sampler


@pytest.fixture
def checkpoint(trained_runs, tmp_path):
    options = {"learning_rate": 1e-2, "ema_decay": 0.5, "log_steps": 100}
    run = trained_runs(max_train_steps=4, checkpointing_steps=50_000, **options)
    return str(shutil.copytree(run, tmp_path / "runs" / "run"))


def images_of(checkpoint, tmp_path, name, **options):
    defaults = {"num_fid_samples": 10, "num_steps": 3, "device": "cpu", "out": str(tmp_path / f"{name}.npz")}
    result = sample.run(SampleConfig(checkpoint=checkpoint, **defaults | options))
    with np.load(result.npz) as archive:
        return archive["arr_0"], archive["arr_1"]


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["ode", "sde"])
def test_an_image_does_not_depend_on_its_batch(checkpoint, tmp_path, mode):
    large, labels = images_of(checkpoint, tmp_path, "large", mode=mode, per_proc_batch_size=10)
    small, same_labels = images_of(checkpoint, tmp_path, "small", mode=mode, per_proc_batch_size=3)
    few, _ = images_of(checkpoint, tmp_path, "few", mode=mode, num_fid_samples=4)
    assert large.shape == (10, 64, 64, 3)
    assert large.dtype == np.uint8
    assert labels.tolist() == same_labels.tolist()
    assert np.abs(large.astype(int) - small).max() <= 1
    assert np.abs(large[:4].astype(int) - few).max() <= 1
    assert np.abs(large[0].astype(int) - large[1]).max() > 8


def test_seed_guidance_and_mode_change_the_images(checkpoint, tmp_path):
    settings = {"plain": {}, "seed": {"global_seed": 1}, "cfg": {"cfg_scale": 4.0}, "sde": {"mode": "sde"}}
    plain, *others = [images_of(checkpoint, tmp_path, name, **options)[0] for name, options in settings.items()]
    assert all(not np.array_equal(plain, other) for other in others)


def test_labels_are_random_balanced_or_listed(checkpoint, tmp_path):
    assert images_of(checkpoint, tmp_path, "balanced", labels="balanced")[1].tolist() == [i % 3 for i in range(10)]
    assert images_of(checkpoint, tmp_path, "listed", labels="2,0")[1].tolist() == [2, 0] * 5
    assert set(images_of(checkpoint, tmp_path, "random")[1].tolist()) <= {0, 1, 2}
    for labels, message in (("7", "has classes 0 to 2"), ("cat", "expected random, balanced")):
        with pytest.raises(ConfigError, match=message):
            images_of(checkpoint, tmp_path, "bad", labels=labels)


def test_an_image_that_is_not_finite_is_an_error_and_not_black(checkpoint, tmp_path, monkeypatch):
    original = Sampler.latents

    def not_finite(self, indices):
        latents = original(self, indices)
        if 7 in indices:
            latents[7 - indices.start, 0, 0, 0] = torch.nan
        return latents

    monkeypatch.setattr(Sampler, "latents", not_finite)
    message = r"images 6 to 8 were not written: 1 of 3 latents are NaN or infinite, first number 1\. Sample with"
    with pytest.raises(NonFiniteError, match=message):
        images_of(checkpoint, tmp_path, "bad", per_proc_batch_size=3)
    assert [path.name for path in sorted((tmp_path / "bad.partial").glob("*.npy"))] == ["00000000.npy", "00000003.npy"]
    assert not (tmp_path / "bad.npz").exists()
    monkeypatch.undo()
    assert len(images_of(checkpoint, tmp_path, "bad", per_proc_batch_size=3)[0]) == 10


def test_finished_blocks_are_not_generated_again(checkpoint, tmp_path, monkeypatch):
    whole, _ = images_of(checkpoint, tmp_path, "whole", per_proc_batch_size=3)
    original, started = Sampler.latents, []

    def stop_after_two(self, indices):
        started.append(indices.start)
        if len(started) == 3:
            raise KeyboardInterrupt
        return original(self, indices)

    monkeypatch.setattr(Sampler, "latents", stop_after_two)
    with pytest.raises(KeyboardInterrupt):
        images_of(checkpoint, tmp_path, "stopped", per_proc_batch_size=3)
    resumed, _ = images_of(checkpoint, tmp_path, "stopped", per_proc_batch_size=3)
    assert started == [0, 3, 6, 6, 9]
    np.testing.assert_array_equal(resumed, whole)
    assert not list(tmp_path.glob("*.partial"))


@pytest.fixture
def stopped(checkpoint, tmp_path, monkeypatch):
    """The folder of an interrupted run with the blocks of images 0 to 2 and 3 to 5."""
    original = Sampler.latents

    def stop(self, indices):
        if indices.start == 6:
            raise KeyboardInterrupt
        return original(self, indices)

    with monkeypatch.context() as patch:
        patch.setattr(Sampler, "latents", stop)
        with pytest.raises(KeyboardInterrupt):
            images_of(checkpoint, tmp_path, "stopped", per_proc_batch_size=3)
    return tmp_path / "stopped.partial"


def starts_of(monkeypatch):
    """Record the first image of every block that is generated from now on."""
    original, started = Sampler.latents, []
    monkeypatch.setattr(Sampler, "latents", lambda self, block: started.append(block.start) or original(self, block))
    return started


def test_a_damaged_block_is_generated_again_and_kept_aside(checkpoint, stopped, tmp_path, monkeypatch, caplog):
    whole, _ = images_of(checkpoint, tmp_path, "whole", per_proc_batch_size=3)
    path = stopped / "00000003.npy"
    damaged = bytearray(path.read_bytes())
    damaged[-1000] ^= 1
    path.write_bytes(damaged)
    started = starts_of(monkeypatch)
    resumed, _ = images_of(checkpoint, tmp_path, "stopped", per_proc_batch_size=3)
    assert started == [3, 6, 9]
    np.testing.assert_array_equal(resumed, whole)
    (aside,) = tmp_path.rglob("*.damaged-1")
    assert aside.read_bytes() == damaged
    (message,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert f"{path}: checksum mismatch" in message
    assert str(aside) in message


def test_blocks_of_an_earlier_version_are_used_except_black_ones(checkpoint, stopped, tmp_path, monkeypatch, caplog):
    whole, _ = images_of(checkpoint, tmp_path, "whole", per_proc_batch_size=3)
    for name in ("00000000.npy", "00000003.npy"):
        images = np.load(stopped / name)
        images[1] *= name != "00000003.npy"
        np.save(stopped / name, images)
    started = starts_of(monkeypatch)
    resumed, _ = images_of(checkpoint, tmp_path, "stopped", per_proc_batch_size=3)
    assert started == [3, 6, 9]
    np.testing.assert_array_equal(resumed, whole)
    assert (
        "1 of 4 blocks were written by an earlier version, without checksums; they are used as they are" in caplog.text
    )


def test_a_block_that_is_damaged_before_the_images_are_complete_is_named(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(sample_blocks, "write_block", damaging(sample_blocks.write_block))
    with pytest.raises(ConfigError, match=r"00000006\.npy: checksum mismatch; .*: re-run the same command to generate"):
        images_of(checkpoint, tmp_path, "out", per_proc_batch_size=3)
    assert not (tmp_path / "out.npz").exists()
    monkeypatch.undo()
    started = starts_of(monkeypatch)
    images_of(checkpoint, tmp_path, "out", per_proc_batch_size=3)
    assert started == [6]


def damaging(write):
    def write_and_damage(folder, block, images):
        write(folder, block, images)
        if block.start == 6:
            path = folder / "00000006.npy"
            path.write_bytes(path.read_bytes()[:-1] + b"x")

    return write_and_damage


def test_images_that_are_replaced_are_never_taken_for_those_of_their_old_record(checkpoint, tmp_path, monkeypatch):
    images_of(checkpoint, tmp_path, "out", num_steps=2)
    with monkeypatch.context() as patch:
        patch.setattr(SampleFiles, "write_record", lambda *_: 1 / 0)  # as if it was killed after the .npz
        with pytest.raises(ZeroDivisionError):
            images_of(checkpoint, tmp_path, "out", num_steps=3)
    with pytest.raises(ConfigError, match="holds blocks generated with other settings"):
        images_of(checkpoint, tmp_path, "out", num_steps=2)


def test_blocks_generated_with_other_settings_are_refused(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(Sampler, "all_labels", lambda self: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        images_of(checkpoint, tmp_path, "out")
    monkeypatch.undo()
    with pytest.raises(ConfigError, match="holds blocks generated with other settings"):
        images_of(checkpoint, tmp_path, "out", global_seed=3)


def test_a_grid_and_the_settings_are_written_next_to_the_images(checkpoint, tmp_path):
    images_of(checkpoint, tmp_path, "out")
    with Image.open(tmp_path / "out.png") as grid:
        assert grid.size == (8 * 64, 2 * 64)
    record = json.loads((tmp_path / "out.json").read_text())
    assert record["num_images"] == 10
    assert record["config"]["cfg_scale"] == 1.5


def adm_batches(path, name, batch_size):
    """Yield an array of an .npz in batches, as OpenAI's evaluator streams it: without seeking or unpickling."""
    with zipfile.ZipFile(path) as archive:
        assert f"{name}.npy" in archive.namelist()
        with archive.open(f"{name}.npy", "r") as member:
            read_header = {
                (1, 0): np.lib.format.read_array_header_1_0,
                (2, 0): np.lib.format.read_array_header_2_0,
            }[np.lib.format.read_magic(member)]
            shape, is_fortran, dtype = read_header(member)
            assert not is_fortran
            assert not dtype.hasobject
            for start in range(0, shape[0], batch_size):
                count = min(batch_size, shape[0] - start)
                wanted = count * int(np.prod(shape[1:])) * dtype.itemsize
                data = b""
                while len(data) < wanted:
                    part = member.read(wanted - len(data))
                    assert part, "the file ends before its header says"
                    data += part
                yield np.frombuffer(data, dtype).reshape(count, *shape[1:])
            assert not member.read(1)


def test_the_npz_can_be_read_by_the_adm_suite(checkpoint, tmp_path):
    images, labels = images_of(checkpoint, tmp_path, "out", per_proc_batch_size=4)
    batches = list(adm_batches(tmp_path / "out.npz", "arr_0", 3))
    assert [len(batch) for batch in batches] == [3, 3, 3, 1]
    assert batches[0].dtype == np.uint8
    np.testing.assert_array_equal(np.concatenate(batches), images)
    np.testing.assert_array_equal(np.concatenate(list(adm_batches(tmp_path / "out.npz", "arr_1", 4))), labels)
    with zipfile.ZipFile(tmp_path / "out.npz") as archive:
        assert archive.namelist() == ["arr_0.npy", "arr_1.npy"]
        assert {member.compress_type for member in archive.infolist()} == {zipfile.ZIP_STORED}
        assert archive.testzip() is None


@pytest.mark.slow
def test_a_run_that_is_killed_repeatedly_writes_the_same_file(checkpoint, tmp_path):
    whole = SampleConfig(
        checkpoint=checkpoint,
        num_fid_samples=240,
        per_proc_batch_size=4,
        num_steps=4,
        mode="sde",
        device="cpu",
        out=str(tmp_path / "whole.npz"),
    )
    sample.run(whole)
    killed = dataclasses.replace(whole, out=str(tmp_path / "killed.npz"))
    partial = tmp_path / "killed.partial"
    command = [sys.executable, "-m", "repa_pipe.cli", killed.kind, *killed.flags()]
    finished = 0
    for _ in range(3):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wanted = finished + 6
        while len(list(partial.glob("*.npy"))) < wanted:
            assert process.poll() is None
            time.sleep(0.02)
        process.kill()
        process.wait()
        finished = len(list(partial.glob("*.npy")))
    assert wanted <= finished < 60  # blocks
    sample.run(killed)
    assert Path(killed.out).read_bytes() == Path(whole.out).read_bytes()


def test_finished_images_are_only_generated_again_with_other_settings(checkpoint, monkeypatch, caplog):
    config = SampleConfig(checkpoint=checkpoint, num_fid_samples=2, num_steps=2, device="cpu")
    first = sample.run(config)
    assert first.npz == f"{checkpoint}/samples/0000004-ode2-cfg1.5-seed0-2.npz"
    monkeypatch.setattr(Sampler, "latents", lambda self, indices: 1 / 0)
    assert sample.run(config) == first
    assert "already exists with the same settings; skipping" in caplog.text
    with pytest.raises(ZeroDivisionError):
        sample.run(dataclasses.replace(config, num_steps=3, out=first.npz))
    path = Path(checkpoint) / "checkpoints" / "0000004.pt"
    os.utime(path, (1, 1))
    assert sample.run(config) == first
    save_checkpoint(path, load_checkpoint(path) | {"scaler": {"changed": 1}})
    with pytest.raises(ZeroDivisionError):
        sample.run(config)


def test_a_second_command_for_the_same_images_is_refused_and_for_others_is_not(checkpoint, monkeypatch):
    config = SampleConfig(checkpoint=checkpoint, num_fid_samples=2, num_steps=2, device="cpu")
    latents, refused = Sampler.latents, []

    def start_the_second_meanwhile(self, indices):
        if not refused:
            with pytest.raises(
                BusyError, match=rf"0000004-ode2-cfg1.5-seed0-2 is in use by process {os.getpid()} on "
            ) as raised:
                sample.run(config)
            refused.append(raised.value)
            sample.run(dataclasses.replace(config, num_steps=1))
        return latents(self, indices)

    monkeypatch.setattr(Sampler, "latents", start_the_second_meanwhile)
    folder = Path(checkpoint) / "samples"
    killed = folder / "0000004-ode2-cfg1.5-seed0-2.npz.tmp-another-host-1-abc"
    folder.mkdir()
    killed.touch()
    assert sample.run(config).num_images == 2
    assert refused
    assert not killed.exists()
    assert not list(folder.glob(".*"))


def test_a_damaged_checkpoint_is_not_sampled(checkpoint):
    path = Path(checkpoint) / "checkpoints" / "0000004.pt"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.unlink()
    path.write_bytes(content)
    with pytest.raises(DamagedCheckpointError, match="checksum mismatch"):
        sample.run(SampleConfig(checkpoint=checkpoint, num_fid_samples=2, num_steps=2, device="cpu"))


def test_images_of_an_earlier_version_are_not_generated_again(checkpoint, monkeypatch):
    config = SampleConfig(checkpoint=checkpoint, num_fid_samples=2, num_steps=2, device="cpu")
    first = sample.run(config)
    record = Path(first.npz).with_suffix(".json")
    values = json.loads(record.read_text())
    for name in ("path_type", "latents_stats", "cls_cfg_scale"):
        del values["settings"][name], values["config"][name]
    record.write_text(json.dumps(values))
    monkeypatch.setattr(Sampler, "latents", lambda self, indices: 1 / 0)
    assert sample.run(config) == first
    with pytest.raises(ZeroDivisionError):
        sample.run(dataclasses.replace(config, path_type="linear", out=first.npz))


def test_guidance_of_a_model_without_a_null_label_is_refused(config_of, tmp_path):
    run = train.run(config_of(max_train_steps=1, cfg_prob=0.0)).run
    with pytest.raises(ConfigError, match=r"^--cfg-scale is 1.5: .*use --cfg-scale 1$"):
        images_of(run, tmp_path, "guided")
    assert len(images_of(run, tmp_path, "unguided", cfg_scale=1.0)[0]) == 10


def test_the_path_of_a_run_is_recorded_and_cannot_be_stated_otherwise(checkpoint, tmp_path):
    with pytest.raises(ConfigError, match=r"--path-type is 'cosine', but .* was trained on the linear path"):
        images_of(checkpoint, tmp_path, "cosine", path_type="cosine")
    with pytest.raises(ConfigError, match="records its own latents"):
        images_of(checkpoint, tmp_path, "stats", latents_stats=__file__)


def test_settings_that_affect_the_images_give_different_file_names():
    options = [
        {},
        {"mode": "sde"},
        {"heun": True},
        {"guidance_high": 0.7},
        {"cls_cfg_scale": 2.0},
        {"path_type": "cosine"},
        {"latents_stats": "a.pt"},
        {"latents_stats": "b.pt"},
        {"labels": "balanced"},
        {"labels": "1,2"},
        {"labels": "2,1"},
        {"vae": "sd-vae-ft-ema"},
        {"ema": False},
        {"precision": "bf16"},
        {"compile": True},
        {"global_seed": 1},
    ]
    names = {settings_name(SampleConfig(checkpoint="run", **option)) for option in options}
    assert len(names) == len(options)
    assert not any("/" in name for name in names)


def test_a_png_folder_has_the_images_of_the_npz(checkpoint, tmp_path):
    folder = tmp_path / "png"
    images, _ = images_of(checkpoint, tmp_path, "out", png_folder=str(folder))
    assert sorted(path.name for path in folder.iterdir()) == [f"{i:06d}.png" for i in range(10)]
    (folder / "000003.png").unlink()
    images_of(checkpoint, tmp_path, "out", png_folder=str(folder))
    for i in range(10):
        with Image.open(folder / f"{i:06d}.png") as image:
            np.testing.assert_array_equal(np.asarray(image), images[i])


def test_a_png_folder_of_other_images_is_refused_before_any_is_generated(checkpoint, tmp_path, monkeypatch):
    folder = tmp_path / "png"
    images_of(checkpoint, tmp_path, "out", png_folder=str(folder))
    monkeypatch.setattr(Sampler, "latents", lambda self, indices: 1 / 0)
    with pytest.raises(ConfigError, match=r"holds 000004.png and 5 more, not part of these 4 images"):
        images_of(checkpoint, tmp_path, "few", png_folder=str(folder), num_fid_samples=4)


def test_images_that_are_replaced_lose_their_metrics(checkpoint, tmp_path):
    images_of(checkpoint, tmp_path, "out", num_fid_samples=2)
    metrics = [tmp_path / name for name in ("out.metrics.json", "out.0123abcd.metrics.json", "outer.metrics.json")]
    for path in metrics:
        path.write_text("{}")
    images_of(checkpoint, tmp_path, "out", num_fid_samples=2)
    assert [path.exists() for path in metrics] == [True] * 3  # nothing was generated
    images_of(checkpoint, tmp_path, "out", num_fid_samples=2, global_seed=1)
    assert [path.exists() for path in metrics] == [False, False, True]


@pytest.mark.slow
def test_ray_actors_give_the_same_file(checkpoint, tmp_path, monkeypatch):
    pytest.importorskip("ray")
    config = SampleConfig(
        checkpoint=checkpoint, num_fid_samples=10, per_proc_batch_size=2, num_steps=2, device="cpu", mode="sde"
    )
    inline = sample.run(config)
    on_ray = sample.run(dataclasses.replace(config, out=str(tmp_path / "ray.npz"), ray=True, actors=2))
    assert Path(on_ray.npz).read_bytes() == Path(inline.npz).read_bytes()
    assert on_ray.step == inline.step == 4


@pytest.mark.slow
def test_an_error_in_an_actor_is_raised_as_without_ray(checkpoint, tmp_path):
    pytest.importorskip("ray")
    with pytest.raises(ConfigError, match="has classes 0 to 2"):
        images_of(checkpoint, tmp_path, "out", ray=True, actors=1, labels="7")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_decoding_while_the_next_block_is_denoised_changes_no_image(checkpoint, tmp_path, monkeypatch):
    concurrent, _ = images_of(checkpoint, tmp_path, "concurrent", device="cuda", per_proc_batch_size=2)
    monkeypatch.setattr(sample_blocks, "_finishing", lambda device: nullcontext(lambda latents, do: do(latents)))
    sequential, _ = images_of(checkpoint, tmp_path, "sequential", device="cuda", per_proc_batch_size=2)
    np.testing.assert_array_equal(concurrent, sequential)


@pytest.mark.slow  # compilation takes a minute
def test_a_compiled_model_gives_the_same_images_up_to_rounding(checkpoint, tmp_path):
    plain, _ = images_of(checkpoint, tmp_path, "plain", num_fid_samples=4)
    compiled, _ = images_of(checkpoint, tmp_path, "compiled", num_fid_samples=4, compile=True)
    assert np.abs(plain.astype(int) - compiled).max() <= 1


def test_the_error_names_a_run_without_checkpoints(checkpoint, tmp_path):
    with pytest.raises(CheckpointError, match="no checkpoint in"):
        images_of(str(tmp_path / "nowhere"), tmp_path, "out")
    shutil.rmtree(Path(checkpoint) / "checkpoints")
    with pytest.raises(CheckpointError, match="expected a run folder of 'repa-pipe train'"):
        images_of(checkpoint, tmp_path, "out")


@pytest.mark.slow
def test_a_sampler_refuses_a_second_one_and_resumes_at_once_after_a_kill(checkpoint, caplog):
    caplog.set_level("INFO", "repa_pipe")
    config = SampleConfig(checkpoint=checkpoint, num_fid_samples=8, num_steps=200, per_proc_batch_size=1, device="cpu")
    command = [sys.executable, "-m", "repa_pipe.cli", "sample", *config.flags()]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    folder = Path(checkpoint) / "samples"
    for _ in range(1200):
        if list(folder.glob("*.partial/*.npy")):
            break
        time.sleep(0.05)
    refused = subprocess.run(command, check=False, capture_output=True, text=True)
    assert process.poll() is None
    process.kill()
    process.wait()
    assert refused.returncode == 2
    assert f"0000004-ode200-cfg1.5-seed0-8 is in use by process {process.pid} on " in refused.stderr
    assert len(refused.stderr.strip().splitlines()) == 1
    assert list(folder.glob(".*.lease-1"))
    assert sample.run(config).num_images == 8
    assert "resuming: " in caplog.text
    assert "waiting up to" not in caplog.text
    assert not list(folder.glob(".*.lease-*"))
