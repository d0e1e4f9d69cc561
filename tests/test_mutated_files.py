"""Damaged and hand-edited files of runs, sweeps and models: read as they state, or refused in one line.

Every file of a run folder that version 0.1.0 wrote, or that this version writes, is mutated and read by the commands
that read it. What is accepted must be what the file states: no value is replaced, and none is missing but those that an
earlier version did not write. A file that states another legal value has another result; that is all a reader can know.
"""

import json
import math
import os
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from repa_pipe.config import EvaluateConfig, SampleConfig, TrainConfig, paths
from repa_pipe.config.recipe import read_recipe
from repa_pipe.config.settings_file import read_settings
from repa_pipe.converter import read_json, to_toml, unstructure
from repa_pipe.errors import ConfigError
from repa_pipe.models.sit import SIT_PRESETS, SiTConfig
from repa_pipe.models.vae_files import describe_vae, latents_scale_and_bias, overflows_in_float16
from repa_pipe.pipeline import probe, rank
from repa_pipe.pipeline.ablation.results import read_finished
from repa_pipe.pipeline.ablation.sweep import read_sweep
from repa_pipe.pipeline.artifacts.machine_file import read_machine
from repa_pipe.pipeline.artifacts.metric_files import finished_metrics, read_curve, read_metrics_file
from repa_pipe.pipeline.artifacts.metrics_log import read_metrics
from repa_pipe.pipeline.artifacts.probe_files import probe_file, read_probes
from repa_pipe.pipeline.artifacts.run_folder import RunFolder
from repa_pipe.pipeline.artifacts.run_record import read_run_record, time_text
from repa_pipe.pipeline.artifacts.sample_files import SampleFiles, finished_samples
from repa_pipe.pipeline.listings import runs
from repa_pipe.pipeline.reporting.page import page_values, render
from repa_pipe.pipeline.reporting.runs import read_runs
from repa_pipe.sources import open_source
from repa_pipe.sources.saved_dataset import find_saved_files

RUN = RunFolder(Path("exps/run"))
FILES = SampleFiles(RUN.samples / "0000002-ode2-cfg1.5-seed0-4.npz")
SWEEP = """
[train]
model = "SiT-B/2"
max_train_steps = 4
learning_rate = 1e-4
[grid]
proj_coeff = [0.0, 0.5]
[[runs]]
enc_type = "efficientnet-lite0"
[[runs]]
exp_name = "none"
cfg_prob = 0.2
[sample]
num_fid_samples = 4
cfg_scale = 1.5
[evaluate]
detector = ["efficientnet-lite0"]
every_checkpoint = true
[resources]
processes = 1
gpus = 0.5
"""
RECIPE = 'model = "SiT-B/2"\nproj_coeff = 0.5\n[about]\nsummary = "a"\nsource = "b"\npublished = "c"\n'
SESSION = {
    "started": time_text(0),
    "ended": None,
    "updated": time_text(1),
    "state": "running",
    "error": None,
    "start_step": 0,
    "end_step": 1,
    "host": "elsewhere",
    "pid": 1,
    "gpu": None,
    "num_gpus": 0,
    "cpu": "cpu",
    "cpu_flags": ["avx2"],
    "versions": {"torch": "2"},
    "git_commit": None,
    "git_dirty": None,
    "command": "repa-pipe train",
}


@dataclass(frozen=True)
class Kind:
    """A file, what its reader returns as plain values, and the commands that read it.

    `optional`: keys that a file may lack. `unread`: keys whose values no command reads.
    """

    path: Path
    read: object = None
    commands: tuple = ()
    optional: frozenset = frozenset()
    unread: frozenset = frozenset()
    content: str | None = None  # of files that version 0.1.0 did not write


def show_runs():
    found = runs.run([str(RUN.path)])
    if found.broken:
        raise ConfigError(" ".join(found.broken))
    return found.table


def show_report():
    found = read_runs([str(RUN.path)])
    return render(page_values(found, None, None, [], [], None, download=False) | {"sections": []})


def resume_training():
    read_run_record(RUN)
    RUN.require_same_settings(RUN.read_config())


def sample():
    return finished_samples(SampleConfig(checkpoint=str(RUN.checkpoint(2)), num_fid_samples=4, num_steps=2))


def evaluate():
    config = EvaluateConfig(samples=str(FILES.npz), reference="store", detector=("efficientnet-lite0",))
    found = finished_metrics(config)
    return found and found.reference_text()


def probe_run():
    out = probe_file(None, {"store": "store"}, RUN.checkpoints())
    found = probe._finished(RUN.probes, read_probes(RUN.probes).settings)
    return out, found.table, found.rows and probe.figures(found, "title")


def show_rank():
    recorded = rank.read_record(Path("rank.json"), rank.RankRecord, "delete it")
    return rank.RankResult(recorded.rows, recorded.num_samples, "a", "b").table


def show_results():
    folders = [RunFolder(path) for path in sorted(Path("sweep").glob("proj_coeff*"))]
    found = read_finished(Path("sweep"), folders)
    assert found is None or repr(unstructure(found)) == repr(read_json(Path("sweep/results.json")))


def settings_of(config):
    values = read_settings("a.toml", (config,))
    return config(**{"store": "s"} | values) if config is TrainConfig else config(**{"checkpoint": "c"} | values)


def vae():
    return describe_vae("vae"), latents_scale_and_bias("vae"), overflows_in_float16("vae")


def hub_card():
    return open_source("card").index()


REQUIRED = frozenset(TrainConfig.result_fields()) - TrainConfig.added_later | {"store"}
OPTIONAL_OF_SAMPLES = frozenset(SampleConfig(checkpoint="c").as_json()) - {"checkpoint"}
OPTIONAL_OF_EVALUATION = frozenset(EvaluateConfig(samples="s", reference="r").as_json()) - {"samples", "reference"}
JSON_KINDS = {
    "train.json": Kind(
        RUN.config_file,
        lambda: RUN.read_config().as_json(),
        (show_runs, show_report, resume_training),
        optional=frozenset(TrainConfig(store="s").as_json()) - REQUIRED,
    ),
    "run.json": Kind(
        RUN.record_file,
        lambda: unstructure(read_run_record(RUN)),
        (show_runs, resume_training),
        optional=frozenset({"notes", "tags", "sessions", "images", "bytes_per_image"}),
        content=json.dumps({"created": time_text(0), "notes": "n", "tags": ["a"], "sessions": [SESSION]}),
    ),
    "machine.json": Kind(
        RUN.machine_file, lambda: {"gpus": read_machine(RUN).gpus}, (show_report,), content='{"gpus": 1.0}'
    ),
    "samples": Kind(
        FILES.record,
        lambda: unstructure(FILES.read_record()),
        (show_runs, show_report, sample),
        optional=OPTIONAL_OF_SAMPLES | {"seconds"},
        unread=frozenset({"settings", "npz", "grid"}),
    ),
    "metrics": Kind(
        FILES.metrics,
        lambda: unstructure(read_metrics_file(FILES.metrics)),
        (show_runs, show_report, evaluate),
        optional=OPTIONAL_OF_EVALUATION | {"seconds", "inputs", "margins"},
    ),
    "by-step": Kind(
        RUN.curves / "ode2-cfg1.5-seed0-4.json",
        lambda: unstructure(read_curve(RUN.curves / "ode2-cfg1.5-seed0-4.json")),
        optional=OPTIONAL_OF_SAMPLES | OPTIONAL_OF_EVALUATION | {"reference"},
    ),
    "probe.json": Kind(
        RUN.probes,
        lambda: unstructure(read_probes(RUN.probes)),
        (probe_run,),
        optional=frozenset({"settings", "cknna_topk"}),
    ),
    "rank.json": Kind(
        Path("rank.json"),
        lambda: unstructure(rank.read_record(Path("rank.json"), rank.RankRecord, "delete it")),
        (show_rank,),
        optional=frozenset({"num_samples", "seed", "batch_size", "out", "settings"}),
    ),
    "results.json": Kind(Path("sweep/results.json"), None, (show_results,)),
    "VAE config": Kind(Path("vae/config.json"), None, (vae,), content="shipped"),
    "saved dataset": Kind(Path("hf/state.json"), None, (lambda: find_saved_files("hf", None),), content="shipped"),
}
OTHER_KINDS = {
    "sweep": Kind(Path("a.toml"), None, (lambda: read_sweep(Path("a.toml"), "store", Path("out")),), content=SWEEP),
    "recipe": Kind(Path("a.toml"), None, (lambda: read_recipe("a.toml"),), content=RECIPE),
    "train --config": Kind(
        Path("a.toml"),
        None,
        (lambda: settings_of(TrainConfig),),
        content=to_toml(TrainConfig(store="s", notes="n", tag=("a",)).as_json()),
    ),
    "sample --config": Kind(
        Path("a.toml"),
        None,
        (lambda: settings_of(SampleConfig),),
        content=to_toml(SampleConfig(checkpoint="c").as_json()),
    ),
    "metrics.parquet": Kind(RUN.metrics_log, None, (show_runs, show_report)),
}
KINDS = JSON_KINDS | OTHER_KINDS


@pytest.fixture
def work(tmp_path, monkeypatch, helpers):
    """Change to a folder with the files."""
    helpers.unpack_old_artifacts(tmp_path)
    monkeypatch.chdir(tmp_path)
    preset = partial(SiTConfig, patch_size=2, hidden_size=8, depth=2, num_heads=2, encoder_depth=1)
    monkeypatch.setitem(SIT_PRESETS, "SiT-test/2", preset)
    shipped = Path(__file__).parents[1] / "models/weights/tiny-kl-f8.json"
    values = {"latents_mean": [0.0] * 4, "latents_std": [1.0] * 4, "shift_factor": 0.1, "force_upcast": True}
    Path("vae").mkdir()
    Path("vae/config.json").write_text(json.dumps(json.loads(shipped.read_text()) | values))
    Path("hf").symlink_to(Path(__file__).parent / "data/hf_arrow/two_labels")
    (tmp_path / "copy").mkdir()
    for file in Path("hf").iterdir():
        (tmp_path / "copy" / file.name).write_bytes(file.read_bytes())
    Path("hf").unlink()
    Path("copy").rename("hf")


def require_stated(stated, read, kind, place=""):
    """Every value that was read is the one that the file states; a key may be missing only if it is optional."""
    if isinstance(read, dict) and isinstance(stated, dict):
        lacking = read.keys() - stated.keys() - kind.optional
        assert not lacking, f"{place}: {lacking} are not in the file, and were replaced"
        ignored = stated.keys() - read.keys() - kind.unread
        assert not ignored, f"{place}: {ignored} are in the file, and were ignored"
        for key in read.keys() & stated.keys():
            require_stated(stated[key], read[key], kind, f"{place}.{key}")
    elif isinstance(read, list) and isinstance(stated, list):
        assert len(read) == len(stated), place
        for index, (mine, theirs) in enumerate(zip(stated, read, strict=True)):
            require_stated(mine, theirs, kind, f"{place}[{index}]")
    elif isinstance(read, str) and isinstance(stated, str):
        assert read in (stated, paths.plain(stated, paths.PathKind.PATH), stated.rstrip("/")), place
    else:
        is_integer_as_float = isinstance(read, float) and type(stated) is int
        assert type(read) is type(stated) or is_integer_as_float, place
        assert read == stated or (math.isnan(read) and math.isnan(stated)), place


def check(kind, count, mutations, seed=0):
    if kind.content not in (None, "shipped"):
        kind.path.write_text(kind.content)
    original = kind.path.read_bytes()
    readers = ((kind.read,) if kind.read else ()) + kind.commands
    for reader in readers:
        assert mutations.survives(reader)[1] is None, "the file itself cannot be read"
    stamp = kind.path.stat()
    refused = 0
    for name, data in mutations.mutations_of(kind.path, count, seed):
        kind.path.write_bytes(data)
        os.utime(kind.path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
        try:
            found = [mutations.survives(reader) for reader in readers]
            refused += any(error is not None for _, error in found)
            if kind.read and found[0][1] is None:
                require_stated(json.loads(data.decode("utf-8-sig")), found[0][0], kind)
        except BaseException as error:
            error.add_note(f"mutation: {name}")
            raise
        kind.path.write_bytes(original)
    return refused


@pytest.mark.parametrize("name", KINDS)
def test_a_mutated_file_is_read_as_it_states_or_refused(name, work, mutations):
    refused = check(KINDS[name], 20, mutations)
    assert refused or name == "results.json"


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_a_hundred_mutations_are_read_as_they_state_or_refused(name, work, mutations):
    """A hundred of each kind of file, and more of sweeps, which people write."""
    count = 1_000 if name == "sweep" else 100
    refused = check(KINDS[name], count, mutations, seed=1)
    assert refused > count / 4 or name == "results.json"


CARD = {"configs": [{"config_name": "default", "data_files": [{"split": "train", "path": "*.parquet"}]}]}


@pytest.mark.parametrize("count", [20, pytest.param(100, marks=pytest.mark.slow)])
def test_mutated_cards_of_data_sets_and_metadata_of_parquet_files_are_read_or_refused(count, work, mutations):
    import pyarrow as pa

    image = next(Path("images").rglob("imagenet*.jpg")).read_bytes()
    table = pa.table({"image": [{"bytes": image, "path": "a"}] * 3, "label": [0, 1, 0]})
    folder, card = Path("card"), Path("card/README.md")
    folder.mkdir()
    pq.write_table(table, folder / "train.parquet")
    for (name, data), _ in zip(mutations.json_mutations(json.dumps(CARD).encode()), range(count), strict=False):
        card.write_bytes(b"---\n" + data + b"\n---\n")
        try:
            mutations.survives(hub_card)
        except BaseException as error:
            error.add_note(f"mutation: {name}")
            raise
    card.unlink()
    features = {"image": {"_type": "Image"}, "label": {"names": ["a", "b"], "_type": "ClassLabel"}}
    text = json.dumps({"info": {"features": features}}).encode()
    for (name, data), _ in zip(mutations.json_mutations(text), range(count), strict=False):
        pq.write_table(table.replace_schema_metadata({b"huggingface": data}), folder / "train.parquet")
        try:
            found, refused = mutations.survives(hub_card)
        except BaseException as error:
            error.add_note(f"mutation: {name}")
            raise
        assert refused or found["label"].to_pylist() == [0, 1, 0]


def test_a_log_states_what_is_shown(work):
    """Columns that are missing, or out of order, are not shown as something else."""
    table = pq.read_table(RUN.metrics_log)
    assert [row["step"] for row in read_metrics(RUN)] == table["step"].to_pylist()
    pq.write_table(table.take(list(range(len(table)))[::-1]), RUN.metrics_log)
    with pytest.raises(ConfigError, match="column step does not increase from row to row; restore it from a copy"):
        read_metrics(RUN)


def test_a_run_whose_settings_lack_one_is_not_read_with_its_default(work):
    values = json.loads(RUN.config_file.read_text())
    for name in REQUIRED:
        RUN.config_file.write_text(json.dumps({key: value for key, value in values.items() if key != name}))
        with pytest.raises(ConfigError, match=rf"train\.json: required key '{name}' is missing"):
            RUN.read_config()


def test_settings_that_affect_a_run_were_in_version_0_1_0_or_are_marked_as_added_later(work):
    recorded = json.loads(RUN.config_file.read_text()).keys()
    assert recorded >= REQUIRED
    assert not recorded & TrainConfig.added_later
