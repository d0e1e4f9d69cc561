"""The objective as a sum of terms: weights, random draws, and terms that are defined outside of the package."""

import dataclasses
import itertools
from pathlib import Path

import pytest
import torch

from repa_pipe.pipeline import train
from repa_pipe.pipeline.artifacts.metrics_log import read_metrics
from repa_pipe.pipeline.artifacts.run_folder import RunFolder
from repa_pipe.pipeline.runtime.distributed import DistributedContext
from repa_pipe.pipeline.runtime.seeds import RandomStreams, Stream
from repa_pipe.pipeline.training import trainer as trainer_module
from repa_pipe.pipeline.training.objective import Objective, make_space
from repa_pipe.pipeline.training.setup import resolve
from repa_pipe.pipeline.training.terms.alignment import AlignmentTerm
from repa_pipe.pipeline.training.terms.denoising import DenoisingTerm
from repa_pipe.pipeline.training.terms.term import Term
from repa_pipe.pipeline.training.trainer import Trainer
from repa_pipe.stores import open_store

ALONE = DistributedContext(0, 1)


class VelocityNorm(Term):
    """A term with random draws, a weight that depends on the step, and inputs per sample."""

    metric = "velocity_norm"

    def __init__(self, seed):
        self._streams = RandomStreams(seed)

    def prepare(self, batch, step, ranks):
        generator = self._streams.generator(Stream.LABEL, step, batch.moments.device)
        count = len(batch.labels) * ranks.world_size
        return {"factor": torch.rand(count, generator=generator)[ranks.rows(count)]}

    def weight(self, step):
        return 0.25 * (step + 1)

    def loss(self, output, prepared):
        return (prepared["factor"] * output.velocity.square().mean((1, 2, 3))).mean()


@pytest.fixture
def trainer_of(config_of):
    """Build a trainer on the CPU; a fresh model predicts zero, so its weights are replaced by random ones."""
    with open_store(config_of().store) as store:

        def build(**options):
            config = resolve(config_of(**options), store)
            trainer = Trainer(config, store, torch.device("cpu"), ALONE, RunFolder(Path("unused")))
            generator = torch.Generator().manual_seed(1)
            with torch.no_grad():
                for weight in trainer.model.parameters():
                    if weight.requires_grad:
                        weight.copy_(0.05 * torch.randn(weight.shape, generator=generator))
            trainer.store = store
            return trainer

        yield build


def first_batch(trainer):
    return trainer.dataset.read(trainer.dataset.indices_of_step(0))


def with_extra_term(trainer):
    """Return the objective of a trainer with VelocityNorm as third term."""
    config = trainer.config
    terms = [DenoisingTerm(trainer.model), AlignmentTerm(config, trainer.store), VelocityNorm(config.seed)]
    space = make_space(config, trainer.store, trainer.metadata)
    return Objective(trainer.model, config, space, trainer.streams, terms, trainer.ema.model)


@pytest.mark.parametrize(
    ("options", "weights"),
    [
        ({}, [1.0, 0.5]),
        ({"proj_coeff": 0.0}, [1.0, 0.0]),
        ({"proj_coeff": 2.0, "proj_coeff_decay_steps": 4}, [1.0, 1.0]),
        ({"alignment_steps": 2}, [1.0, 0.0]),
        ({"cls_coeff": 0.03}, [1.0, 0.5, 0.03]),
    ],
)
def test_the_loss_is_the_sum_of_weight_times_loss_over_terms(trainer_of, options, weights):
    trainer = trainer_of(**options)
    inputs = trainer.objective.inputs(first_batch(trainer), 2, ALONE)
    values = trainer.objective(inputs)
    assert inputs.weights == pytest.approx(weights)
    assert trainer.objective.names == ("loss", "denoising_loss", "alignment_loss", "cls_loss")[: 1 + len(weights)]
    assert values.shape == (1 + len(weights),)
    assert values[0].item() == pytest.approx((torch.tensor(weights) * values[1:]).sum().item(), rel=1e-6)
    assert (values[1:] != 0).tolist() == [True, options.get("proj_coeff") != 0.0, True][: len(weights)]


def assert_same_inputs(one, other, terms):
    """Assert that two inputs have the same batch and draws, and their first terms the same keys and weights."""
    for field in dataclasses.fields(one):
        if field.name not in ("terms", "weights", "routing"):
            values = getattr(one, field.name), getattr(other, field.name)
            assert values == (None, None) or torch.equal(*values), field.name
    for i in range(terms):
        assert one.terms[i].keys() == other.terms[i].keys()
    assert one.weights[:terms] == other.weights[:terms]


@pytest.mark.parametrize("step", [0, 5])
def test_the_class_token_term_changes_no_other_draw(trainer_of, step):
    plain, entangled = trainer_of(), trainer_of(cls_coeff=0.03)
    one, other = (each.objective.inputs(first_batch(each), step, ALONE) for each in (plain, entangled))
    assert_same_inputs(one, other, terms=2)
    assert torch.equal(one.terms[1]["targets"][0], other.terms[1]["targets"][0][:, 1:])  # after the class token
    assert len(other.terms) == 3
    assert not torch.equal(other.terms[2]["cls_noise"], torch.zeros_like(other.terms[2]["cls_noise"]))


def test_trainings_that_differ_only_in_the_seed_draw_different_times_and_noise(trainer_of):
    drawn = []
    for seed in (0, 1, 1 << 32):
        trainer = trainer_of(seed=seed, cls_coeff=0.03, cfg_prob=0.5)
        inputs = trainer.objective.inputs(first_batch(trainer), 3, ALONE)
        drawn.append((inputs.times, inputs.noise, inputs.posterior, inputs.terms[2]["cls_noise"]))
    for one, other in itertools.combinations(drawn, 2):
        for a, b in zip(one, other, strict=True):
            assert (a != b).all()


def test_the_noise_has_the_scale_of_the_model(trainer_of, monkeypatch):
    trainer = trainer_of()
    inputs = trainer.objective.inputs(first_batch(trainer), 0, ALONE)
    data, noise = trainer.objective.state(inputs)
    assert torch.equal(noise, inputs.noise)
    monkeypatch.setattr(type(trainer.model), "noise_scale", 2.0)
    scaled = trainer.objective.state(inputs)
    assert torch.equal(scaled[0], data)
    assert torch.equal(scaled[1], 2 * noise)


def test_times_have_the_mean_and_deviation_of_the_config(trainer_of):
    trainer = trainer_of(weighting="lognormal", time_mean=3.0, time_std=0.01)
    times = trainer.objective.inputs(first_batch(trainer), 0, ALONE).times
    torch.testing.assert_close(times.logit(), torch.full_like(times, 3.0), atol=0.1, rtol=0)


def test_rows_of_the_inputs_are_rows_of_every_term(trainer_of):
    trainer = trainer_of(cls_coeff=0.03)
    inputs = trainer.objective.inputs(first_batch(trainer), 0, ALONE)
    part = inputs.rows(slice(2, 5))
    assert torch.equal(part.noise, inputs.noise[2:5])
    assert torch.equal(part.terms[1]["targets"][0], inputs.terms[1]["targets"][0][2:5])
    assert torch.equal(part.terms[2]["cls_noise"], inputs.terms[2]["cls_noise"][2:5])
    assert part.weights == inputs.weights


def test_a_term_of_a_user_is_added_to_the_loss_and_changes_no_other_draw(trainer_of):
    trainer = trainer_of()
    objective, batch = with_extra_term(trainer), first_batch(trainer)
    plain, extended = trainer.objective.inputs(batch, 3, ALONE), objective.inputs(batch, 3, ALONE)
    assert_same_inputs(plain, extended, terms=2)
    assert objective.names == ("loss", "denoising_loss", "alignment_loss", "velocity_norm")
    assert extended.weights == [1.0, 0.5, 1.0]
    before, after = trainer.objective(plain), objective(extended)
    assert torch.equal(before[1:], after[1:3])
    assert after[3] > 0
    assert after[0].item() == pytest.approx((before[0] + after[3]).item(), rel=1e-6)


def test_the_rows_of_ranks_together_are_those_of_one_rank(trainer_of):
    trainer = trainer_of()
    objective, batch = with_extra_term(trainer), first_batch(trainer)
    whole = objective.inputs(batch, 3, ALONE)
    for rank in range(2):
        half = slice(4 * rank, 4 * rank + 4)
        ranks = DistributedContext(rank, 2)
        rows = trainer.dataset.read(trainer.dataset.indices_of_step(0)[half])
        own = objective.inputs(rows, 3, ranks)
        assert torch.equal(own.latents, whole.latents[half])
        assert torch.equal(own.noise, whole.noise[half])
        assert torch.equal(own.terms[2]["factor"], whole.terms[2]["factor"][half])


def test_a_run_trains_with_a_term_of_a_user(config_of, monkeypatch):
    def make_objective(context, metadata, teacher):
        config = context.config
        terms = [DenoisingTerm(context.model), AlignmentTerm(config, context.store), VelocityNorm(config.seed)]
        space = make_space(context.config, context.store, metadata)
        return Objective(context.model, context.config, space, context.streams, terms, teacher)

    monkeypatch.setattr(trainer_module, "make_objective", make_objective)
    result = train.run(config_of(max_train_steps=3, log_steps=1, microbatches=2, learning_rate=1e-2))
    rows = read_metrics(RunFolder(Path(result.run)))
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert rows[-1]["velocity_norm"] > 0
    for number, row in enumerate(rows, start=1):
        total = row["denoising_loss"] + 0.5 * row["alignment_loss"] + 0.25 * number * row["velocity_norm"]
        assert row["loss"] == pytest.approx(total, rel=1e-5)
