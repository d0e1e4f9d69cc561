"""Models on the Hugging Face Hub: uploaded, sampled, trained from, pinned to a commit, and what can fail."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from repa_pipe.config import ExportConfig, ProbeConfig, SampleConfig, TrainConfig
from repa_pipe.errors import CheckpointError, ConfigError
from repa_pipe.models.architectures import make_model, preset_config
from repa_pipe.pipeline import export, probe, sample, train
from repa_pipe.pipeline.artifacts.checkpoints import StoreMetadata, load_initial_weights, save_checkpoint
from repa_pipe.pipeline.artifacts.hub_models import HubModel, pinned, with_recorded_weights
from repa_pipe.pipeline.artifacts.run_folder import RunFolder

REPO = "alice/model"
# huggingface_hub's own, when it uploads a file
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


@pytest.fixture
def checkpoint(tmp_path):
    return checkpoint_of(tmp_path, store="/data/mystore")


def checkpoint_of(tmp_path, **settings):
    config = dataclasses.replace(preset_config("SiT-T/2", input_size=8, in_channels=4), depth=2, encoder_depth=2)
    store = StoreMetadata("tiny-kl-f8", (2.0,) * 4, (0.5,) * 4, (), "0" * 64, {})
    settings = TrainConfig(**{"model": "SiT-T/2"} | settings).as_json()
    path = tmp_path / "run" / "checkpoints" / "0000002.pt"
    state = make_model(config).state_dict()
    values = {"model": state, "ema": state, "opt": {}, "scaler": {}, "steps": 2, "config": settings}
    path.parent.mkdir(parents=True)
    save_checkpoint(path, values | {"sit": config.to_dict(), "store": store.as_json()})
    return str(path)


def uploaded(checkpoint, tmp_path, name="shared", **options):
    needed = {"to": "hub", "repo": REPO, "license": "mit"}
    return export.run(ExportConfig(checkpoint=checkpoint, out=str(tmp_path / name), **needed | options))


def test_the_card_links_the_store_and_the_first_weights_on_the_hub(hub, tmp_path):
    store, model = f"hf://datasets/bob/store@{'1' * 40}", f"hf://bob/first@{'2' * 40}"
    uploaded(checkpoint_of(tmp_path, store=store, init_from=model), tmp_path)
    card = hub.files("model", REPO)["README.md"].decode()
    assert '\nbase_model: "bob/first"\ndatasets: ["bob/store"]\n' in card
    assert f"--store {store}" in card


def images_of(checkpoint, out):
    config = SampleConfig(checkpoint=str(checkpoint), out=str(out), num_fid_samples=2, num_steps=2, device="cpu")
    with np.load(sample.run(config).npz) as archive:
        return archive["arr_0"]


def test_an_uploaded_model_gives_the_same_images_and_its_commit_is_recorded(hub, checkpoint, tmp_path):
    result = uploaded(checkpoint, tmp_path)
    sha = hub.repositories["model", REPO].branches["main"]
    assert result.uploaded == f"hf://{REPO}@{sha}"
    assert set(hub.files("model", REPO)) == {".gitattributes", "README.md", "model.safetensors", "repa_pipe.json"}
    card = hub.files("model", REPO)["README.md"].decode()
    assert f"repa-pipe sample --checkpoint hf://{REPO} --out samples.npz" in card
    found = images_of(f"hf://{REPO}", tmp_path / "a.npz")
    np.testing.assert_array_equal(found, images_of(checkpoint, tmp_path / "b.npz"))
    recorded = json.loads((tmp_path / "a.json").read_text())
    assert recorded["config"]["checkpoint"] == f"hf://{REPO}@{sha}"
    assert load_initial_weights(f"hf://{REPO}", 1000).keys() == load_initial_weights(checkpoint, 1000).keys()
    with pytest.raises(ConfigError, match="--out is None: expected an output file"):
        probe.run(ProbeConfig(checkpoint=f"hf://{REPO}", store="s"))


def test_the_same_upload_transfers_nothing_again_and_keeps_an_edited_card(hub, checkpoint, tmp_path, caplog):
    uploaded(checkpoint, tmp_path)
    before = len(hub.requests("^PUT"))
    repository = hub.repositories["model", REPO]
    files = repository.commits[repository.branches["main"]]
    repository.commit("main", files | {"README.md": b"---\nlicense: mit\n---\nEdited\n"}, "edit")
    uploaded(checkpoint, tmp_path)
    assert len(hub.requests("^PUT")) == before == 1
    assert hub.files("model", REPO)["README.md"].endswith(b"Edited\n")
    assert "was changed on the Hub and is kept" in caplog.text


def test_a_pinned_model_needs_no_network_and_a_moved_branch_does_not_change_it(hub, checkpoint, tmp_path, monkeypatch):
    first = uploaded(checkpoint, tmp_path).uploaded
    assert pinned(f"hf://{REPO}") == first
    repository = hub.repositories["model", REPO]
    moved = repository.commit("main", dict(repository.commits[repository.branches["main"]]), "again")
    assert pinned(first) == first
    assert pinned(f"hf://{REPO}@main") == f"hf://{REPO}@{moved}"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    hub.log.clear()
    assert pinned(first) == first
    assert pinned(f"hf://{REPO}") == f"hf://{REPO}@{moved}"
    assert not hub.log
    with pytest.raises(CheckpointError, match="it is not in the cache, and the Hub cannot be reached"):
        pinned("hf://alice/other")


@pytest.mark.slow
def test_the_files_for_diffusers_are_uploaded_on_request(hub, checkpoint, tmp_path):
    uploaded(checkpoint, tmp_path, with_diffusers=True)
    parts = {"model.safetensors", "model_index.json", "pipeline.py", "transformer/config.json", "vae/config.json"}
    assert parts <= set(hub.files("model", REPO))
    assert f'from_pretrained("{REPO}", trust_remote_code=True)' in hub.files("model", REPO)["README.md"].decode()


@pytest.mark.slow
def test_a_run_records_the_commit_it_started_from_and_resumes_when_the_branch_has_moved(hub, config_of, tmp_path):
    options = {"learning_rate": 1e-3, "checkpointing_steps": 1}
    checkpoint = train.run(config_of(exp_name="first", max_train_steps=1, **options)).checkpoint
    first = uploaded(checkpoint, tmp_path).uploaded
    config = config_of(exp_name="second", init_from=f"hf://{REPO}", max_train_steps=1, **options)
    run = RunFolder(Path(train.run(config).run))
    assert run.read_config().init_from == first
    repository = hub.repositories["model", REPO]
    moved = repository.commit("main", dict(repository.commits[repository.branches["main"]]), "again")
    more = config_of(exp_name="second", init_from=f"hf://{REPO}", max_train_steps=2, **options)
    assert train.run(more).step == 2
    assert with_recorded_weights(more, run).init_from == run.read_config().init_from == first
    with pytest.raises(ConfigError, match="was trained with other settings"):
        train.run(config_of(exp_name="second", init_from=f"hf://{REPO}@{moved}", max_train_steps=3, **options))


def test_faults_of_the_hub_are_one_line(hub, checkpoint, tmp_path, monkeypatch):
    hub.fault = lambda request: request.command == "POST" and request.refuse(429)
    with pytest.raises(CheckpointError, match=r"could not be uploaded .*HTTP 429: too many requests.*to resume$"):
        uploaded(checkpoint, tmp_path)
    hub.fault = lambda request: request.refuse(501)
    with pytest.raises(CheckpointError, match="HTTP 501: the Hub has failed"):
        uploaded(checkpoint, tmp_path)
    hub.fault = lambda request: False
    uploaded(checkpoint, tmp_path)
    for path, reason in (
        (f"hf://{REPO}@none", "has no such revision"),
        ("hf://alice/none", "there is no such repository, or the token"),
    ):
        with pytest.raises(CheckpointError, match=reason):
            pinned(path)
    hub.repositories["model", "alice/empty"] = type(hub.repositories["model", REPO])("model", "alice/empty", False)
    with pytest.raises(CheckpointError, match=r"has no model\.safetensors"):
        pinned("hf://alice/empty")
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(CheckpointError, match=r"HTTP 401: .*\$HF_TOKEN"):
        uploaded(checkpoint, tmp_path)


def test_a_file_that_differs_after_the_upload_is_reported(hub, checkpoint, tmp_path):
    uploaded(checkpoint, tmp_path)
    repository = hub.repositories["model", REPO]
    original = repository.commit

    def losing(branch, files, message):
        return original(branch, files | {"repa_pipe.json": b"{}"}, message)

    repository.commit = losing
    (tmp_path / "shared" / "extra.txt").write_text("new")
    with pytest.raises(CheckpointError, match=r"repa_pipe\.json on the Hub differs"):
        uploaded(checkpoint, tmp_path)


@pytest.mark.parametrize("text", ["hf://alice", "hf://datasets/alice/store", "hf://alice/model@", "hf://a/b/c"])
def test_other_locations_are_refused(text):
    with pytest.raises(ConfigError, match="expected hf://USER/NAME"):
        HubModel.parse(text)
