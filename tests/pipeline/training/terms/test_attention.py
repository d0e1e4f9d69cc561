"""HASTE's alignment of attention: what is aligned, until when, what is read, resumes, and what is refused."""

import json
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from repa_pipe.config import EncodeConfig
from repa_pipe.diffusion.loss import attention_loss
from repa_pipe.errors import ConfigError, StoreError, WeightsError
from repa_pipe.models.encoders import load_encoder
from repa_pipe.models.layers.attention import attention_logits
from repa_pipe.pipeline import encode, train
from repa_pipe.pipeline.artifacts.metrics_log import read_metrics
from repa_pipe.pipeline.artifacts.run_folder import RunFolder
from repa_pipe.pipeline.runtime.distributed import DistributedContext
from repa_pipe.pipeline.training.online import compare_steps, make_trainer
from repa_pipe.pipeline.training.setup import require_trainable, resolve
from repa_pipe.stores import open_store

REFERENCE = Path(__file__).parents[3] / "reference"
PLAIN, RAW = "dinov2-vit-s", "dinov2-vit-s@block=8+norm=none"
ALONE = DistributedContext(0, 1)


def weights_file(path, seed):
    fill = runpy.run_path(str(REFERENCE / "weights.py"))["fill"]
    tensors = json.loads((REFERENCE / f"encoder_{PLAIN}_checkpoint.json").read_text())["tensors"]
    torch.save(fill({name: torch.empty(shape) for name, shape in tensors.items()}, seed=seed), path)
    return str(path)


@pytest.fixture(scope="module")
def encoded(tmp_path_factory):
    """A store of eight images with both kinds of tokens, and the file of the encoder."""
    folder = tmp_path_factory.mktemp("haste")
    (folder / "images" / "a").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number in range(8):
        image = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)).resize((64, 64))
        image.save(folder / "images" / "a" / f"{number:02d}.png")
    file = weights_file(folder / "dinov2.pth", seed=3)
    encode.run(
        EncodeConfig(
            source=str(folder / "images"),
            store=str(folder / "store"),
            vae="tiny-kl-f8",
            encoder=(PLAIN, RAW),
            encoder_weights=(f"{PLAIN}={file}", f"{RAW}={file}"),
            resolution=64,
            device="cpu",
        )
    )
    return folder / "store", file


@pytest.fixture
def config_of(config_of, encoded):
    store, file = encoded
    options = {
        "store": str(store),
        "model": "SiT-S/2",
        "encoder_depth": None,
        "attn_coeff": 0.5,
        "encoder_weights": (f"{RAW}={file}",),
        "alignment_steps": 2,
        "batch_size": 4,
        "learning_rate": 1e-3,
        "ema_decay": 0.5,
        "log_steps": 1,
        "checkpointing_steps": 100,
    }
    return lambda **changes: config_of(**options | changes)


def trainer_of(config):
    store = open_store(config.store)
    return make_trainer(resolve(config, store), store, torch.device("cpu"))


def test_the_loss_is_that_of_the_whole_encoder_and_both_alignments_stop_together(config_of, encoded):
    trainer = trainer_of(config_of())
    assert trainer.config.enc_type == (PLAIN,)
    assert trainer.config.attn_encoder == RAW
    dataset, objective = trainer.dataset, trainer.objective
    indices = dataset.indices_of_step(0)
    inputs = objective.inputs(dataset.read(indices), 0, ALONE)
    losses = dict(zip(objective.names, objective(inputs), strict=True))
    assert inputs.weights == [1.0, 0.5, 0.5]
    total = losses["denoising_loss"] + 0.5 * losses["alignment_loss"] + 0.5 * losses["attention_loss"]
    assert losses["loss"].item() == pytest.approx(total.item(), rel=1e-6)

    images = np.stack([np.asarray(Image.open(path)) for path in sorted((encoded[0].parent / "images/a").iterdir())])
    encoder, seen = load_encoder(PLAIN, encoded[1], 64), []
    for block in encoder._model.blocks[8:]:
        block.attn.qkv.register_forward_hook(lambda *call: seen.append(call[2]))
    encoder(torch.from_numpy(images[indices]).permute(0, 3, 1, 2))
    heads = [qkv.unflatten(-1, (3, 6, 64)).permute(2, 0, 3, 1, 4)[:2, :, :, 1:] for qkv in seen]
    student, _ = objective.state(inputs)
    x_t = objective._path(student, inputs.noise, inputs.times)[0]
    labels = torch.where(inputs.dropped, objective.model.config.num_classes, inputs.labels)
    names = [f"attention_{number}" for number in (4, 5, 6, 7)]
    tapped = objective.model(x_t, inputs.times, labels, taps=names)[2]
    expected = attention_loss([tapped[name] for name in names], [attention_logits(*each) for each in heads])
    assert losses["attention_loss"].item() == pytest.approx(expected.item(), rel=1e-5)

    later = dataset[2]
    assert later.patch_tokens == later.token_scales == later.cls_tokens == []
    asked = []
    objective.model.register_forward_pre_hook(lambda _, args, options: asked.append(options), with_kwargs=True)
    after = objective.inputs(later, 2, ALONE)
    assert after.weights == [1.0, 0.0, 0.0]
    values = dict(zip(objective.names, objective(after), strict=True))
    assert values["alignment_loss"] == values["attention_loss"] == 0
    assert values["loss"] == values["denoising_loss"]
    assert asked == [{"project": False}]


def test_what_cannot_work_is_refused(config_of, encoded, tmp_path):
    file = encoded[1]
    other = weights_file(tmp_path / "other.pth", seed=4)
    with pytest.raises(StoreError, match=r"was encoded with weights of SHA-256 \w{12}, found \w{12}: pass the file"):
        trainer_of(config_of(encoder_weights=(f"{RAW}={other}",)))
    with pytest.raises(ConfigError, match="reads attention_6 of the model, which SiT-T/2 does not offer"):
        trainer_of(config_of(model="SiT-T/2"))
    for options, message in (
        ({"cls_coeff": 0.03}, "--attn-coeff.*cannot be combined with --cls-coeff"),
        ({"proj_coeff_decay_steps": 5}, "cannot be combined with --attn-coeff"),
        ({"attn_coeff": 0.0}, "requires --attn-coeff"),
        ({"attn_encoder": PLAIN}, "expected NAME=PATH with NAME one of dinov2-vit-s"),
    ):
        with pytest.raises(ConfigError, match=message):
            config_of(**options)
    with pytest.raises(ConfigError, match=r"attn-coeff is 0\.5: must be 0"):
        compare_steps(config_of(), steps=3)
    with open_store(encoded[0]) as store:
        plain = resolve(config_of(attn_encoder=PLAIN, encoder_weights=(f"{PLAIN}={file}",)), store)
        missing = resolve(config_of(encoder_weights=(f"{RAW}=/no/such.pth",)), store)
        for config, error, message in (
            (plain, ConfigError, "expected NAME@block=N\\+norm=none"),
            (missing, WeightsError, "/no/such.pth"),
        ):
            with pytest.raises(error, match=message):
                require_trainable(config, store, RunFolder(tmp_path), ALONE)


@pytest.mark.slow
def test_a_stopped_run_resumes_to_the_same_bits_across_the_stop(config_of, weights_of, assert_same_weights):
    whole = train.run(config_of(exp_name="whole", max_train_steps=4))
    for steps in (1, 2, 4):
        resumed = train.run(config_of(max_train_steps=steps))
    assert_same_weights(weights_of(whole), weights_of(resumed))
    rows = read_metrics(RunFolder(Path(whole.run)))
    assert [row["attention_loss"] > 0 for row in rows] == [True, True, False, False]


@pytest.mark.slow
@pytest.mark.parametrize("fsdp", [False, True])
def test_two_ranks_agree_with_one(config_of, on_two_ranks, assert_close_weights, fsdp):
    one = train.run(config_of(exp_name="one", max_train_steps=3))
    two = on_two_ranks(config_of(exp_name="two", max_train_steps=3, fsdp=fsdp))
    assert_close_weights(one, two)
    rows, same = (read_metrics(RunFolder(Path(run.run))) for run in (one, two))
    for name in ("loss", "attention_loss"):
        assert [row[name] for row in rows] == pytest.approx([row[name] for row in same], rel=1e-3, abs=1e-5)


@pytest.mark.slow
def test_micro_batches_and_recomputed_activations_change_rounding_only_also_without_projection(config_of):
    options = {"proj_coeff": 0.0, "max_train_steps": 2}
    usual = train.run(config_of(exp_name="usual", **options))
    other = train.run(config_of(exp_name="other", microbatches=2, checkpoint_blocks=True, **options))
    rows = [read_metrics(RunFolder(Path(run.run)))[1] for run in (usual, other)]
    assert rows[1]["attention_loss"] == pytest.approx(rows[0]["attention_loss"], rel=1e-4)
    assert rows[0]["attention_loss"] > 0
    assert rows[0]["alignment_loss"] == 0
