"""The code of docs/own-trainer.md runs in a training loop with the interface of REPA's published one."""

import dataclasses
import re
import textwrap
from argparse import Namespace
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from repa_pipe.models.sit import SIT_PRESETS, SiT

PAGE = (Path(__file__).parents[1] / "docs/own-trainer.md").read_text()
SECTIONS = {part.partition("\n")[0]: part for part in PAGE.split("\n## ")}
ENCODERS, DATASET, PREVIEW, STEP = re.findall(r"```python\n(.*?)```", SECTIONS["In REPA's trainer"], re.DOTALL)
(ITERABLE,) = re.findall(r"```python\n(.*?)```", SECTIONS["Without a DataLoader"], re.DOTALL)
LOADER = """
train_dataloader = DataLoader(
    train_dataset, batch_size=int(args.batch_size // accelerator.num_processes), shuffle=True,
    num_workers=args.num_workers, pin_memory=True, drop_last=True
)
"""

# What surrounds the page's code: the names that a training script in the style of REPA defines, and those that it uses.
LOOP = """
def main(args, accelerator, device):
    latents_scale, latents_bias = torch.full((1, 4, 1, 1), 0.18215), torch.zeros(1, 4, 1, 1)
{encoders}
    model = build_model(args.num_classes, z_dims)
    loss_fn = Loss(encoders=encoders, accelerator=accelerator)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
{dataset}
    described = f"Dataset contains {{len(train_dataset):,}} images ({{args.data_dir}})"
{prepare}
{preview}
    gt_xs = sample_posterior(gt_xs[:4].to(device), latents_scale, latents_bias)
    seen, global_step = [], 0
    for epoch in range(args.epochs):
{step}
            labels = y
            with torch.no_grad():
                x = sample_posterior(x, latents_scale, latents_bias)
            with accelerator.accumulate(model):
                loss, proj_loss = loss_fn(model, x, dict(y=labels), zs=zs)
                (loss.mean() + proj_loss.mean() * args.proj_coeff).backward()
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            global_step += 1
            seen.append((batch, zs))
    return described, gt_xs, seen
"""


class Loss:
    def __init__(self, encoders, accelerator):
        self.encoders = encoders

    def __call__(self, model, images, model_kwargs, zs):
        times = torch.rand(len(images))
        output, projected = model(images, times, **model_kwargs)
        assert [z.shape for z in zs] == [z.shape for z in projected]
        assert {z.dtype for z in zs} == {torch.float32}
        cosines = [torch.cosine_similarity(z, mine, dim=-1).mean() for z, mine in zip(zs, projected, strict=True)]
        return (output - images).square().flatten(1).mean(1), -torch.stack(cosines)


class Model(SiT):
    def forward(self, x, t, y):
        return super().forward(x, t, y)


def build_model(num_classes, z_dims):
    sizes = {"input_size": 8, "in_channels": 4, "encoder_depth": 2, "projector_dim": 32}
    return Model(SIT_PRESETS["SiT-T/2"](num_classes=num_classes, z_dims=tuple(z_dims), **sizes))


def sample_posterior(moments, latents_scale, latents_bias):
    mean, std = torch.chunk(moments, 2, dim=1)
    return (mean + std * torch.randn_like(mean)) * latents_scale + latents_bias


class Accelerator:
    """One of two processes, as far as the loop depends on it."""

    process_index, num_processes = 1, 2

    def prepare(self, *objects):
        return objects

    def accumulate(self, model):
        return nullcontext()


@pytest.fixture
def store(helpers, tmp_path):
    path = tmp_path / "store"
    manifest = helpers.new_store(path)
    latents = dataclasses.replace(helpers.LATENTS, path="latents/sd-vae-ft-mse")
    other = dataclasses.replace(helpers.FEATURES, path="features/other")
    contents = {spec.path: helpers.write_group(path, manifest, spec) for spec in (latents, helpers.FEATURES, other)}
    return path, contents


def run(store, workers=0, **parts):
    parts = {"encoders": ENCODERS, **parts, "step": textwrap.indent(STEP, "    ")}
    code = LOOP.format(**{name: textwrap.indent(part, "    ") for name, part in parts.items()})
    scope = {"torch": torch, "DataLoader": DataLoader, "Loss": Loss, "build_model": build_model}
    scope["sample_posterior"] = sample_posterior
    exec(code, scope)
    args = Namespace(
        data_dir=str(store), enc_type="enc,other", num_classes=3, batch_size=16, num_workers=workers, epochs=2, seed=0
    )
    args.proj_coeff = 0.5
    return scope["main"](args, Accelerator(), torch.device("cpu"))


def assert_trained_on(contents, seen):
    for batch, zs in seen:
        np.testing.assert_array_equal(batch.moments, contents["latents/sd-vae-ft-mse"]["moments"][batch.indices])
        assert batch.labels.tolist() == (batch.indices % 3).tolist()
        for name, tokens in zip(("enc", "other"), zs, strict=True):
            np.testing.assert_array_equal(tokens, contents[f"features/{name}"]["tokens"][batch.indices])


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:'pin_memory' argument is set:UserWarning")
def test_the_loop_keeps_its_data_loader(store, workers):
    path, contents = store
    prepare = "model, optimizer, train_dataloader = accelerator.prepare(model, optimizer, train_dataloader)"
    described, gt_xs, seen = run(path, workers, dataset=DATASET + LOADER, prepare=prepare, preview=PREVIEW)
    assert described == f"Dataset contains 50 images ({path})"
    assert gt_xs.shape == (4, 4, 8, 8)
    assert [len(batch.indices) for batch, _ in seen] == [8] * 12
    assert_trained_on(contents, seen)
    for epoch in (seen[:6], seen[6:]):
        assert len(set(np.concatenate([batch.indices for batch, _ in epoch]).tolist())) == 48


def test_the_loop_iterates_over_the_dataset_itself(store):
    path, contents = store
    dataset, _, preview = ITERABLE.partition(")\n")
    prepare = re.search(r"`(model, optimizer =\s+accelerator\.prepare\(model, optimizer\))`", PAGE)[1]
    parts = {"dataset": f"{dataset})\n", "prepare": " ".join(prepare.split()), "preview": preview}
    _, gt_xs, seen = run(path, **parts)
    assert gt_xs.shape == (4, 4, 8, 8)
    assert [len(batch.indices) for batch, _ in seen] == [8] * 6
    assert_trained_on(contents, seen)
    assert seen[0][0].indices.tolist() != seen[3][0].indices.tolist()  # shuffled again
