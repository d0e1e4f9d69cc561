"""Terms of methods published after REPA: their draws, what they read, resumes, combinations, and a term of a user."""

import importlib.metadata
import itertools
import re
from pathlib import Path

import pytest
import torch
from torch import nn

from repa_pipe.config import SampleConfig, TrainConfig
from repa_pipe.diffusion.token_times import over_pixels, times_of, token_groups
from repa_pipe.errors import ConfigError
from repa_pipe.models.self_alignment import SelfAlignmentHead
from repa_pipe.pipeline import sample, train
from repa_pipe.pipeline.artifacts.checkpoints import load_checkpoint, load_model
from repa_pipe.pipeline.artifacts.metrics_log import read_metrics
from repa_pipe.pipeline.artifacts.run_folder import RunFolder
from repa_pipe.pipeline.runtime.distributed import DistributedContext
from repa_pipe.pipeline.training.online import make_trainer
from repa_pipe.pipeline.training.setup import resolve
from repa_pipe.pipeline.training.terms import registry
from repa_pipe.pipeline.training.terms.contrast import partners
from repa_pipe.stores import open_store

METHODS = {
    "cfm": {"contrast_coeff": 0.05},
    "dispersive": {"dispersive_coeff": 0.25, "proj_coeff": 0.0},
    "sra": {"self_coeff": 0.5, "self_blocks": "2,4", "proj_coeff": 0.0},
    "sra-dts-as": {
        "self_coeff": 0.5,
        "self_blocks": "2,4",
        "proj_coeff": 0.0,
        "token_groups": 0.25,
        "separate_attention": True,
    },
    "all": {"contrast_coeff": 0.05, "dispersive_coeff": 0.1, "self_coeff": 0.5, "self_blocks": "1,3"},
}
METRICS = {"cfm": "contrastive_loss", "dispersive": "dispersive_loss", "sra": "self_alignment_loss"}


@pytest.mark.parametrize("name", [*[pytest.param(each, marks=pytest.mark.slow) for each in METHODS][:-1], "all"])
def test_a_killed_run_resumes_to_the_same_bits_and_is_sampled(
    config_of, weights_of, assert_same_weights, tmp_path, name
):
    options = METHODS[name] | {"learning_rate": 1e-2, "ema_decay": 0.5}
    whole = train.run(config_of(exp_name="whole", max_train_steps=4, **options))
    train.run(config_of(max_train_steps=2, **options))
    resumed = train.run(config_of(max_train_steps=4, **options))
    assert_same_weights(weights_of(whole), weights_of(resumed))
    row = read_metrics(RunFolder(Path(whole.run)))[-1]
    for method, metric in METRICS.items():
        assert (metric in row) == (method in name or name == "all" or (method == "sra" and "sra" in name))
    heads = load_checkpoint(Path(whole.checkpoint)).get("heads", [])
    assert heads == (["ap_head"] if "self_coeff" in options else [])
    model = load_model(Path(whole.checkpoint), ema=True).model
    assert not any(key.startswith("ap_head") for key in model.state_dict())
    settings = {"num_fid_samples": 2, "num_steps": 2, "device": "cpu", "out": str(tmp_path / "a.npz")}
    assert sample.run(SampleConfig(checkpoint=whole.run, **settings)).num_images == 2


def trainer_of(config, tmp_path):
    store = open_store(config.store)
    return make_trainer(resolve(config, store), store, torch.device("cpu"))


def test_terms_change_no_draw_of_another(config_of, tmp_path):
    plain = trainer_of(config_of(), tmp_path)
    other = trainer_of(config_of(**METHODS["all"]), tmp_path)
    batch = plain.dataset.read(plain.dataset.indices_of_step(0))
    alone = DistributedContext(0, 1)
    one, two = (each.objective.inputs(batch, 3, alone) for each in (plain, other))
    for name in ("times", "noise", "posterior", "dropped"):
        assert torch.equal(getattr(one, name), getattr(two, name))
    assert one.weights == two.weights[:2]


@pytest.mark.parametrize("name", ["sra-dts-as", "all"])
def test_every_rank_prepares_its_rows_of_what_one_rank_prepares(config_of, tmp_path, name, monkeypatch):
    trainer = trainer_of(config_of(**METHODS[name]), tmp_path)
    batch = trainer.dataset.read(trainer.dataset.indices_of_step(0))
    whole = trainer.objective.inputs(batch, 3, DistributedContext(0, 1))
    gathered = []

    def gather(ranks, values):
        gathered.append(values)
        return full

    full = whole_targets(trainer, batch)
    monkeypatch.setattr(DistributedContext, "gather", gather)
    for rank in range(2):
        half = slice(4 * rank, 4 * rank + 4)
        rows = trainer.dataset.read(trainer.dataset.indices_of_step(0)[half])
        own = trainer.objective.inputs(rows, 3, DistributedContext(rank, 2))
        assert torch.equal(own.times, whole.times[half])
        assert own.groups is None or torch.equal(own.groups, whole.groups[half])
        for mine, theirs in zip(own.terms, whole.terms, strict=True):
            for key, value in mine.items():
                pairs = (
                    [(value, theirs[key])] if isinstance(value, torch.Tensor) else zip(value, theirs[key], strict=True)
                )
                assert all(torch.equal(ours, full_rows[half]) for ours, full_rows in pairs), key
    if "contrast_coeff" in METHODS[name]:
        torch.testing.assert_close(torch.cat(gathered), full)


def whole_targets(trainer, batch):
    inputs = trainer.objective.inputs(batch, 3, DistributedContext(0, 1))
    data, noise = trainer.objective.state(inputs)
    return noise - data


def test_partners_are_other_samples_drawn_evenly():
    for count in (2, 5):
        found = torch.stack(
            [partners(torch.tensor(draws)) for draws in itertools.product(range(count - 1), repeat=count)]
        )
        assert not (found == torch.arange(count)).any()
        for own in range(count):
            counts = found[:, own].bincount(minlength=count)
            assert sorted(counts.tolist()) == [0] + [len(found) // (count - 1)] * (count - 1)


def test_groups_have_their_shares_and_times():
    uniform = torch.rand(3, 10, generator=torch.Generator().manual_seed(0))
    groups = token_groups(uniform, (0.25, 0.75))
    assert groups.sum(1).tolist() == [7, 7, 7]  # 2.5 and 7.5 tokens: the rest goes to the first of equal fractions
    assert all((uniform[row][groups[row] == 0].max() < uniform[row][groups[row] == 1].min()) for row in range(3))
    times = times_of(groups, torch.tensor([[0.1, 0.2, 0.3], [0.9, 0.8, 0.7]]))
    assert times[1].unique().tolist() == pytest.approx([0.2, 0.8])
    pixels = over_pixels(torch.arange(4.0).reshape(1, 4), 4)
    assert pixels[0, 0].tolist() == [[0, 0, 1, 1], [0, 0, 1, 1], [2, 2, 3, 3], [2, 2, 3, 3]]


def test_tokens_of_another_group_are_not_attended_to(config_of, tmp_path):
    model = trainer_of(config_of(**METHODS["sra-dts-as"]), tmp_path).model
    for weight in model.parameters():
        nn.init.normal_(weight, std=0.1)
    side = model.config.input_size
    x, t, labels = torch.randn(1, 4, side, side), torch.full((1, model.grid_size**2), 0.5), torch.tensor([0])
    groups = torch.zeros_like(t, dtype=torch.int64)
    groups[:, 0] = 1
    changed = x.clone()
    changed[:, :, :2, :2] += 1  # the first token, with patches of 2 x 2
    with torch.no_grad():
        separated = [model(each, t, labels, project=False, groups=groups)[0] for each in (x, changed)]
        together = [model(each, t, labels, project=False)[0] for each in (x, changed)]
        per_sample = model(x, t[:, 0], labels, project=False)[0]
    difference = (separated[0] - separated[1]).abs().amax(1)[0]
    assert difference[:2, :2].max() > 0
    difference[:2, :2] = 0
    assert difference.max() == 0
    assert (together[0] - together[1]).abs().amax(1)[0][2:, 2:].max() > 0
    torch.testing.assert_close(together[0], per_sample)  # one time for all tokens, stated per token


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"self_coeff": 0.5}, "--self-blocks is '8,20': expected blocks from 1 to 6"),
        ({"self_coeff": 0.5, "self_blocks": "2"}, "--self-blocks is '2': expected two blocks, such as 8,20"),
        ({"separate_attention": True}, "--separate-attention is True: requires --token-groups"),
        ({"token_groups": 1.0}, "--token-groups is 1.0: expected a fraction between 0 and 1"),
        ({"dispersive_coeff": 0.1, "microbatches": 2}, "--microbatches is 2: must be 1 with --dispersive-coeff"),
        ({"dispersive_coeff": 0.1, "dispersive_block": 9}, "the term of dispersive_loss reads block_9 of the model"),
        (
            {"dispersive_coeff": 0.1, "model": "DiT-DH-T", "proj_coeff": 0.0},
            "reads block_8 of the model, which DiT-DH-T",
        ),
        ({"self_coeff": 0.5, "model": "DiT-DH-T", "proj_coeff": 0.0}, "does not apply to DiT-DH-T: expected a SiT"),
        ({"token_groups": 0.25, "model": "DiT-DH-T", "proj_coeff": 0.0}, "does not apply to DiT-DH-T: expected a SiT"),
        ({"term": ("colors",)}, "--term is .*: expected NAME=WEIGHT, found colors"),
        ({"term": ("colors=1",)}, "--term colors: .*entry points of the group repa_pipe.terms"),
    ],
)
def test_what_cannot_work_is_refused_by_name(config_of, options, message):
    with pytest.raises(ConfigError, match=message):
        train.run(config_of(max_train_steps=1, **options))


def test_the_documented_term_is_named_on_the_command_line(config_of, weights_of, assert_same_weights, monkeypatch):
    page = (Path(__file__).parents[4] / "docs" / "methods.md").read_text()
    (example,) = (code for code in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "(Term)" in code)
    module = {"__name__": "my_terms"}
    exec(compile(example, "docs/methods.md", "exec"), module)
    assert len(example.splitlines()) <= 30
    point = importlib.metadata.EntryPoint("mean", "my_terms:MeanLatent", registry.GROUP)
    monkeypatch.setattr(type(point), "load", lambda self: module["MeanLatent"])
    monkeypatch.setattr(registry, "entry_points", lambda group: [point] if group == registry.GROUP else [])
    options = {"term": ("mean=0.5",), "learning_rate": 1e-2}
    whole = train.run(config_of(exp_name="whole", max_train_steps=4, log_steps=1, **options))
    for row in read_metrics(RunFolder(Path(whole.run))):
        total = row["denoising_loss"] + 0.5 * row["alignment_loss"] + 0.5 * row["mean_latent_loss"]
        assert row["loss"] == pytest.approx(total, rel=1e-4)
    train.run(config_of(max_train_steps=2, **options))
    assert_same_weights(weights_of(whole), weights_of(train.run(config_of(max_train_steps=4, **options))))
    weights = weights_of(whole)
    assert (weights["model.mean_head.weight"] != weights["ema.mean_head.weight"]).any()
    load_model(Path(whole.checkpoint), ema=True)  # without the head


def test_published_heads_have_their_names():
    assert [*SelfAlignmentHead(8).state_dict()] == ["linear1.weight", "linear1.bias", "linear2.weight", "linear2.bias"]
    assert TrainConfig(store="s", self_blocks="3,8").self_aligned_blocks == (3, 8)
