"""The plain values in a checkpoint are what they state, or are refused in one line, and fit the weights and the run."""

import json
from functools import partial
from itertools import islice
from pathlib import Path

import pytest
import torch

from repa_pipe.errors import CheckpointError, RepaPipeError
from repa_pipe.models.sit import SIT_PRESETS, SiTConfig
from repa_pipe.pipeline.artifacts import checkpoints
from repa_pipe.pipeline.artifacts.checkpoints import load_initial_weights, load_model
from repa_pipe.pipeline.artifacts.run_folder import RunFolder
from repa_pipe.pipeline.runtime.distributed import ranks_of_environment
from repa_pipe.pipeline.training.setup import resolve
from repa_pipe.pipeline.training.trainer import Trainer
from repa_pipe.stores import open_store

RUN = RunFolder(Path("exps/run"))
PATH = RUN.checkpoint(4)
SHOWN_STATES = 2  # parameters of the optimizer whose state is mutated
# Values that neither weights nor store can contradict. Sampling reports class names, and decodes with the VAE.
FREE_IN_RESUMING = ("store.vae", "store.class_names", "random_streams")


@pytest.fixture
def trainer(tmp_path, monkeypatch, helpers):
    """Change to a folder with artifacts of version 0.1.0, and return the trainer of the run in it."""
    helpers.unpack_old_artifacts(tmp_path)
    monkeypatch.chdir(tmp_path)
    preset = partial(SiTConfig, patch_size=2, hidden_size=8, depth=2, num_heads=2, encoder_depth=1)
    monkeypatch.setitem(SIT_PRESETS, "SiT-test/2", preset)
    RUN.checkpoint(2).unlink()  # a run resumes from it if the last checkpoint is damaged
    with open_store("store") as store:
        config = resolve(RUN.read_config(), store)
        yield Trainer(config, store, torch.device("cpu"), ranks_of_environment(), RUN)


def with_own_containers(values):
    if isinstance(values, dict):
        return {key: with_own_containers(value) for key, value in values.items()}
    return [with_own_containers(value) for value in values] if isinstance(values, list) else values


@pytest.fixture
def read_once(monkeypatch):
    """Read each file once for all three readers, which call one function: unpickling takes most of their time.

    A file is read again when the returned function is called. Readers share tensors, which none of them changes.
    """
    content = {}

    def read(path):
        path = Path(path).resolve()
        if path not in content:
            try:
                content[path] = read_file(path), None
            except RepaPipeError as error:
                content[path] = None, error
        values, error = content[path]
        if error is not None:
            raise error
        return with_own_containers(values)

    read_file = checkpoints.read_weights_file
    monkeypatch.setattr(checkpoints, "read_weights_file", read)
    return content.clear


@pytest.fixture
def values(trainer):
    return torch.load(PATH, weights_only=True)


def header_of(values):
    """Return the mutable part of a checkpoint: everything but the weights, and little of the optimizer."""
    opt = values["opt"]
    state = {number: opt["state"][number] for number in list(opt["state"])[:SHOWN_STATES]}
    header = {name: value for name, value in values.items() if name not in ("model", "ema")}
    return header | {"opt": {"state": state, "param_groups": opt["param_groups"]}}


def with_header(values, header, mutations):
    """Return the checkpoint with a mutated header. Text that stands for JSON is nested as deeply as pickle allows."""

    def plain(value):
        if isinstance(value, mutations.Raw):
            nested = []
            for _ in range(200):
                nested = [nested]
            return nested
        if isinstance(value, dict):
            return {key: plain(inner) for key, inner in value.items()}
        return [plain(inner) for inner in value] if isinstance(value, list) else value

    header = plain(header)
    if not isinstance(header, dict):
        return header
    state = header["opt"].get("state") if isinstance(header.get("opt"), dict) else None
    if isinstance(state, dict):
        unchanged = {number: each for number, each in values["opt"]["state"].items() if number >= SHOWN_STATES}
        header["opt"]["state"] = state | unchanged
    return {"model": values["model"], "ema": values["ema"], **header}


def text_of(values):
    """Return values as text, in which NaN equals itself and integers are floats."""
    return repr(json.loads(json.dumps(values), parse_int=float))


def state_of(trainer):
    """Return what a resumed run continues from."""
    weights = [tensor.clone() for model in (trainer.model, trainer.ema.model) for tensor in model.state_dict().values()]
    optimizer = trainer.optimizers["adamw"].state_dict()
    moments = [each[name].clone() for _, each in sorted(optimizer["state"].items()) for name in sorted(each)]
    # every step sets lr, and torch ignores what it does not know
    known = sorted(trainer.optimizers["adamw"].defaults.keys() - {"lr"})
    groups = [[group["params"], *map(group.get, known)] for group in optimizer["param_groups"]]
    return trainer.step, groups, weights + moments, trainer.scaler.state_dict()


def require_same(first, second):
    assert (first[0], repr(first[1]), repr(first[3])) == (second[0], repr(second[1]), repr(second[3]))
    assert all(map(torch.equal, first[2], second[2]))


def check(trainer, values, mutations, count, seed, *, on_change=lambda: None):
    trainer.resume()
    expected, header = state_of(trainer), header_of(values)
    refused = 0
    for name, changed in islice(mutations.tree_mutations(header, seed), count):
        torch.save(with_header(values, changed, mutations), PATH)
        on_change()
        try:
            trained, not_loaded = mutations.survives(lambda: load_model(PATH, ema=True))
            _, not_resumed = mutations.survives(trainer.resume)
            mutations.survives(lambda: load_initial_weights(str(PATH), 12))
            refused += not_resumed is not None
            if not_loaded is None and changed.keys() & {"sit", "store"}:  # else it is a file of weights alone
                assert trained.step == changed["steps"]
                recorded = trained.store.as_json()
                assert text_of({key: recorded[key] for key in changed["store"]}) == text_of(changed["store"])
            if not_resumed is None and not any(free in name for free in FREE_IN_RESUMING):
                require_same(state_of(trainer), expected)
        except BaseException as error:
            error.add_note(f"mutation: {name}")
            raise
    return refused


def test_a_mutated_header_is_used_as_it_states_or_refused(trainer, values, mutations):
    assert check(trainer, values, mutations, 15, seed=0)


@pytest.mark.slow
def test_hundreds_of_mutated_headers_are_used_as_they_state_or_refused(trainer, values, mutations, read_once):
    assert check(trainer, values, mutations, 200, seed=1, on_change=read_once) > 100


def change(values, place, value):
    *parents, last = place.split(".")
    for name in parents:
        values = values[int(name)] if isinstance(values, list) else values[name]
    values[last] = value


@pytest.mark.slow
@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        ("steps", 2, "holds step 2: name it 0000002.pt, or restore it from a copy"),
        ("steps", -1, "expected int >= 0, found -1"),
        ("steps", True, "steps: expected int, found bool"),
        ("random_streams", 99, "random_streams: expected int <= "),
        ("config.cfg_prob", 0.2, r"trained with other settings than the run \(--cfg-prob: recorded 0.2, requested 0.1"),
        ("config.cfg_prob", torch.tensor(0.1), "config.cfg_prob: found a Tensor, expected text, a number"),
        ("sit.num_heads", 1, "num_heads: 2 in the weights, 1 recorded"),
        ("sit.depth", 10**9, "depth: 2 in the weights, 1000000000 recorded"),
        ("sit.num_classes", 11, "num_classes: 12 in the weights, 11 recorded"),
        ("store.latents_scale", [1.0], r"expected a finite scale and bias of each of 4 channels .*, found \(1.0,\)"),
        ("store.latents_bias", [float("nan")] * 4, "expected a finite scale and bias of each of 4 channels"),
        ("opt.param_groups.0.betas", (0.5, 0.9), "opt: its betas differs from that of this run"),
        ("opt.param_groups", [], "opt: expected a list of 1 parameter groups"),
        ("opt.state", [], "opt: expected the state of parameters 0 to 36"),
        ("opt", None, "opt: expected the entries state and param_groups"),
        ("scaler", {"scale": 2.0}, "scaler: found {'scale': 2.0}, expected none without --mixed-precision fp16"),
        ("ema", "text", "holds no named tensors under 'ema'"),
    ],
)
def test_headers_that_contradict_the_weights_or_the_run_are_not_resumed(trainer, values, place, value, message):
    change(values, place, value)
    torch.save(values, PATH)
    with pytest.raises(RepaPipeError, match=message) as raised:
        trainer.resume()
    assert str(PATH) in str(raised.value)
    assert trainer.step == 0


@pytest.mark.parametrize("name", ["exp_avg", "exp_avg_sq", "step"])
def test_the_state_of_the_optimizer_fits_its_parameters(trainer, values, name):
    values["opt"]["state"][3][name] = torch.tensor([5.0] * 7 if name != "step" else 5.0)  # beyond step 4
    torch.save(values, PATH)
    with pytest.raises(CheckpointError, match=r"opt: parameter 3: expected .*: restore the checkpoint from a copy"):
        trainer.resume()


def test_the_state_of_an_enabled_gradient_scaler_is_checked(trainer, values):
    trainer.scaler = torch.amp.GradScaler("cpu", enabled=True)
    state = trainer.scaler.state_dict() | {"scale": 1024.0}
    for wrong in ({}, state | {"scale": -1.0}, state | {"scale": float("inf")}, state | {"growth_interval": 1.5}):
        torch.save(values | {"scaler": wrong}, PATH)
        with pytest.raises(CheckpointError, match=r"0000004\.pt: scaler: "):
            trainer.resume()
    torch.save(values | {"scaler": state}, PATH)
    trainer.resume()
    assert trainer.scaler.get_scale() == 1024.0
