"""Commands that have nothing to do, or cannot work, answer without importing torch or another large library."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from repa_pipe.config import EncodeConfig, EvaluateConfig, ProbeConfig, RankConfig, SampleConfig
from repa_pipe.errors import ConfigError
from repa_pipe.metrics import Features
from repa_pipe.pipeline import encode, evaluate, evaluate_checkpoints, probe, rank, sample, train
from repa_pipe.pipeline.encoding.work import require_models, wanted_groups
from repa_pipe.pipeline.evaluation import comparison
from repa_pipe.stores.metadata_writer import record_digests


class MeanColors:
    name, width = "mean-colors", 3
    rule, library = "mean over pixels", "none"
    fingerprint = {"name": name}  # noqa: RUF012

    def features(self, images):
        return Features(images.float().mean((2, 3)), None, None)


@pytest.fixture
def images(tmp_path):
    """Two folders of four images each: `images` and `others`."""
    rng = np.random.default_rng(0)
    for name, side in (("images/cat", 64), ("others/cat", 32)):
        (tmp_path / name).mkdir(parents=True)
        for number in range(4):
            pixels = rng.integers(0, 256, (side, side, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / name / f"{number}.png")
    return tmp_path / "images"


def args(config, *more):
    return [config.kind, *config.flags(), *more]


def test_finished_commands_import_no_torch(  # noqa: PLR0917
    images, config_of, reference, tmp_path, monkeypatch, run_cold
):
    monkeypatch.setattr(comparison, "load_detector", lambda *_: MeanColors())
    encoding = EncodeConfig(source=str(images), store=str(tmp_path / "encoded"), vae="tiny-kl-f8", device="cpu")
    training = config_of(mixed_precision=None)
    run = str(Path(training.output_dir) / str(training.exp_name))
    sampling = SampleConfig(checkpoint=run, num_fid_samples=4, num_steps=1, device="cpu")
    probing = ProbeConfig(checkpoint=run, block=(1,), num_images=16, device="cpu")
    ranking = RankConfig(store=training.store, out=str(tmp_path / "rank.json"))
    encode.run(encoding)
    train.run(training)
    made = sample.run(sampling)
    evaluation = EvaluateConfig(samples=made.npz, reference=reference, device="cpu")
    first = evaluate.run(evaluation)
    evaluate_checkpoints.run(sampling, evaluation)
    probe.run(probing)
    rank.run(ranking)

    commands = [
        args(encoding),
        args(training),
        args(sampling, "--png-folder", str(tmp_path / "png")),
        args(evaluation),
        [
            "evaluate-checkpoints",
            run,
            *evaluation.flags(without=("samples",)),
            *sampling.flags(without=("checkpoint", "device")),
        ],
        args(probing),
        args(ranking),
        ["store", "info", training.store],
        ["store", "ls", training.store],
        ["store", "verify", training.store],
    ]
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    for command, (code, errors, heavy) in zip(commands, run_cold(*commands), strict=True):
        assert (command[0], code, heavy) == (command[0], 0, []), errors
    assert evaluate.run(evaluation) == first
    assert sample.run(sampling) == made
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert len(list((tmp_path / "png").iterdir())) == 4


def test_changed_inputs_are_evaluated_again(reference, tmp_path, monkeypatch, images):
    monkeypatch.setattr(comparison, "load_detector", lambda *_: MeanColors())
    config = EvaluateConfig(samples=str(images), reference=reference, out=str(tmp_path / "metrics.json"), device="cpu")
    first = evaluate.run(config)
    Image.new("RGB", (64, 64)).save(Path(reference) / "class" / "black.png")
    second = evaluate.run(config)
    assert (first.num_reference, second.num_reference) == (8, 9)
    Image.new("RGB", (64, 64)).save(images / "cat" / "0.png")
    assert evaluate.run(config).metrics != second.metrics


def test_a_store_with_other_groups_or_codes_is_ranked_again(config_of, tmp_path):
    config = RankConfig(store=config_of().store, out=str(tmp_path / "rank.json"))
    rank.run(config)
    stamp = Path(config.out).stat().st_mtime_ns
    rank.run(config)
    assert Path(config.out).stat().st_mtime_ns == stamp
    attributes = Path(config.store) / "features/enc/zarr.json"
    attributes.write_text(attributes.read_text().replace('"name": "enc"', '"name": "other"'))
    record_digests(Path(config.store))
    rank.run(config)
    assert Path(config.out).stat().st_mtime_ns > stamp


@pytest.mark.slow
def test_commands_that_cannot_work_import_no_torch(images, config_of, tmp_path, run_cold):
    store = str(tmp_path / "encoded")
    encoding = EncodeConfig(source=str(images), store=store, vae="tiny-kl-f8", device="cpu")
    encode.run(encoding)
    training = config_of(max_train_steps=1)
    run = str(Path(train.run(training).run))
    sweep, fine = tmp_path / "broken.toml", tmp_path / "fine.toml"
    sweep.write_text("[train\n")
    fine.write_text('[[runs]]\nenc_type = "mae-vit-l"\n')
    new = replace(training, exp_name="new")
    encoding_again = replace(encoding, store=str(tmp_path / "new"))
    dinov2 = replace(encoding_again, encoder=("dinov2-vit-b",))
    nowhere = str(tmp_path / "nowhere")
    evaluation = EvaluateConfig(samples=nowhere, reference=str(images))
    expected = [
        ("nowhere does not exist", args(replace(encoding, source=nowhere))),
        ("was made from something else", args(replace(encoding, source=str(images.parent / "others")))),
        ("unknown encoder 'dino'", args(replace(encoding_again, encoder=("dino",)))),
        ("unknown encoder 'dinov9'", args(replace(encoding, encoder=("dinov9",)))),
        ("unknown VAE 'sd-vae'", args(replace(encoding_again, vae="sd-vae"))),
        ("nowhere does not exist", args(replace(dinov2, encoder_weights=(f"dinov2-vit-b={nowhere}",)))),
        ("--seed: recorded 0, requested 1", args(replace(training, seed=1))),
        ("no store at", args(replace(new, store=nowhere))),
        ("has no 'features/mae-vit-l'", args(replace(new, enc_type=("mae-vit-l",)))),
        ("has no 'latents/sd-vae-ft-mse'", args(replace(new, vae="sd-vae-ft-mse"))),
        ("batch size 64 is larger", args(replace(new, batch_size=64))),
        ("--microbatches 3 does not divide", args(replace(new, microbatches=3))),
        ("--num-classes is 2: the largest label", args(replace(new, num_classes=2))),
        ("unknown model 'SiT-T'", args(replace(new, model="SiT-T"))),
        ("weights file initial.pt does not exist", args(replace(new, init_from="initial.pt"))),
        ("no checkpoint in", args(SampleConfig(checkpoint=nowhere))),
        ("unknown VAE 'vae'", args(SampleConfig(checkpoint=run, vae="vae"))),
        ("nowhere does not exist", args(evaluation)),
        ("unknown encoder 'vit'", args(replace(evaluation, samples=str(images), detector=("vit",)))),
        ("no checkpoint in", ["evaluate-checkpoints", nowhere, "--reference", str(images)]),
        ("no checkpoint in", args(ProbeConfig(checkpoint=nowhere))),
        ("has no complete encoder", args(RankConfig(store=store))),
        (f"sweep {sweep} cannot be read", ["ablate", str(sweep), "--store", store]),
        ("lacks mae-vit-l", ["ablate", str(fine), "--store", training.store, "--no-ray"]),
        ("--model is 'SiT'", ["plan", "--model", "SiT"]),
        ("unknown encoder 'vit-b'", ["plan", "--encoder", "vit-b"]),
        ("nowhere does not exist", ["plan", "--source", nowhere]),
        ("no store at", ["store", "info", nowhere]),
        ("no store at", ["store", "ls", nowhere]),
        ("no store at", ["store", "verify", nowhere]),
    ]
    commands = [command for _, command in expected]
    for (message, command), (code, errors, heavy) in zip(expected, run_cold(*commands), strict=True):
        assert (command[0], code, heavy) == (command[0], 2, []), errors
        assert message in errors
    assert not Path(encoding_again.store).exists()


def test_on_ray_files_of_models_need_not_exist_on_this_machine(tmp_path):
    weights = (f"dinov2-vit-b={tmp_path / 'on-the-nodes.pth'}",)
    config = EncodeConfig(
        source="s", store="s", vae=str(tmp_path / "vae"), encoder=("dinov2-vit-b",), encoder_weights=weights
    )
    with pytest.raises(ConfigError, match="unknown VAE"):
        require_models(config, wanted_groups(config))
    require_models(replace(config, ray=True), wanted_groups(config))
    with pytest.raises(ConfigError, match="unknown encoder"):
        require_models(replace(config, encoder=("dino",), encoder_weights=(), ray=True), ("features/dino",))
