"""`repa-pipe compare`: only differences, and only comparable values in one row."""

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from repa_pipe.config import EvaluateConfig, SampleConfig, TrainConfig
from repa_pipe.errors import ConfigError
from repa_pipe.pipeline.artifacts.metric_files import MetricRecord, write_metrics_file
from repa_pipe.pipeline.artifacts.metrics_log import MetricsLog
from repa_pipe.pipeline.artifacts.run_folder import RunFolder
from repa_pipe.pipeline.artifacts.run_record import RunRecord, Session, time_text, write_run_record
from repa_pipe.pipeline.artifacts.sample_files import SampleFiles, SampleResult
from repa_pipe.pipeline.listings import compare
from repa_pipe.pipeline.reporting.side_by_side import Measured, comparable_rows
from repa_pipe.pipeline.runtime import system_metrics
from repa_pipe.stores.metadata_writer import record_digests

SYSTEM = dict.fromkeys(system_metrics.NAMES, 1.0)
ROW = SYSTEM | {"eval_fid": 9.0} | {"images_per_s": 200.0, "data_wait": 0.25, "seconds": 10.0, "memory_gib": 2.0}
SESSION = {
    "started": time_text(),
    "ended": time_text(),
    "updated": time_text(),
    "state": "finished",
    "error": None,
    "start_step": 0,
    "end_step": 0,
    "host": "one",
    "pid": 1,
    "gpu": None,
    "num_gpus": 0,
    "cpu": "EPYC",
    "cpu_flags": (),
    "versions": {"torch": "2.10", "repa-pipe": "0.1"},
    "git_commit": None,
    "git_dirty": None,
    "command": "",
}


def make_run(path, steps=(100, 200), session=None, seconds=10.0, **settings):
    run = RunFolder(path)
    run.write_config(TrainConfig(**{"store": "s", "vae": "sd", "enc_type": ("a",), **settings}))
    log = MetricsLog(run, 0)
    for step in steps:
        losses = {"loss": 1.0, "denoising_loss": 100 / step, "alignment_loss": -0.5}
        log.add({"step": step, **losses, **ROW, "seconds": seconds})
    log.write()
    if session is not None:
        write_run_record(run, RunRecord(created=time_text(), sessions=(Session(**SESSION | session),)))
    return run


def make_metrics(run, step, num_images=64, reference="r", sampling=(), **metrics):
    config = SampleConfig(checkpoint=str(run.path), num_fid_samples=num_images, **dict(sampling))
    files = SampleFiles(run.samples / f"{step}-{num_images}-{len(list(run.samples.glob('*')))}.npz")
    run.samples.mkdir(exist_ok=True)
    files.write_record(config, {}, SampleResult(str(files.npz), "", num_images, step, 1.0))
    evaluation = EvaluateConfig(samples=str(files.npz), reference=reference)
    write_metrics_file(files.metrics, MetricRecord(metrics, num_images, 8, {}, (), evaluation))


def rows_of(*runs):
    """Return the rows by the beginning of the title of their section."""
    result = compare.run([str(run.path) for run in runs])
    return {each.title.split(" ")[0]: {row.name: row.values for row in each.rows} for each in result.sections}, result


def test_only_settings_that_differ_are_shown_those_that_affect_the_result_apart(tmp_path):
    one = make_run(tmp_path / "one", seed=1, log_steps=100)
    two = make_run(tmp_path / "two", seed=2, log_steps=50, proj_coeff=0.25)
    rows, result = rows_of(one, two)
    assert rows["Settings"] == {"--proj-coeff": (0.5, 0.25), "--seed": (1, 2)}
    assert rows["Other"] == {"--log-steps": (100, 50)}
    assert result.runs == ["one", "two"]
    assert "all runs read s" in result.text
    same, result = rows_of(one, make_run(tmp_path / "three", seed=1))
    assert (same["Settings"], same["Other"]) == ({}, {})


def test_losses_are_those_of_the_last_common_step_and_of_the_end(tmp_path):
    one = make_run(tmp_path / "one", (100, 200))
    two = make_run(tmp_path / "two", (50, 100, 200, 400))
    rows, result = rows_of(one, two)
    assert rows["Losses"]["denoising_loss"] == (0.5, 0.5)
    assert rows["Losses"].keys() == {"loss", "denoising_loss", "alignment_loss"}
    assert rows["End,"]["denoising_loss, step 200"] == (0.5, None)
    assert rows["End,"]["denoising_loss, step 400"] == (None, 0.25)
    assert rows["End,"]["last step"] == (200, 400)
    assert "note: denoising_loss has several rows, which are not comparable: step differ" in result.text
    assert rows["Cost"]["seconds of training to step 200"] == (20.0, 30.0)
    apart, result = rows_of(one, make_run(tmp_path / "three", (150,)))
    assert apart["Losses"] == {}
    assert "the logs have no step in common" in result.text


@pytest.mark.parametrize(
    ("changes", "loss", "aspect"),
    [
        ({"enc_type": ("b",)}, "alignment_loss", "--enc-type"),
        ({"vae": "other"}, "denoising_loss", "--vae"),
        ({"path_type": "cosine"}, "denoising_loss", "--path-type"),
        ({"proj_coeff": 1.0}, "loss", "--proj-coeff"),
        ({"seconds": 50.0}, "loss", "steps per row"),
        ({"classes": ("cat",)}, "alignment_loss", "--classes"),
    ],
)
def test_losses_with_another_meaning_are_not_in_one_row(tmp_path, changes, loss, aspect):
    rows, result = rows_of(make_run(tmp_path / "one"), make_run(tmp_path / "two", **changes))
    found = {name: values for name, values in rows["Losses"].items() if name.startswith(f"{loss}, {aspect} ")}
    assert sorted(values.index(None) for values in found.values()) == [0, 1]
    assert f"note: {loss} has several rows, which are not comparable: {aspect} differ" in result.text


def test_metrics_share_a_row_only_with_the_same_counts_reference_and_sampling(tmp_path):
    one, two = make_run(tmp_path / "one"), make_run(tmp_path / "two")
    make_metrics(one, 200, fid=7.0, kid=0.5)
    make_metrics(two, 200, fid=6.0)
    rows, _ = rows_of(one, two)
    assert rows["Metrics"] == {
        "FID (inception), step 200, 64 images vs. 8 reference images": (7.0, 6.0),
        "KID (inception), step 200, 64 images vs. 8 reference images": (0.5, None),
    }
    make_metrics(two, 200, num_images=32, fid=9.0)
    make_metrics(two, 200, fid=5.0, sampling={"cfg_scale": 1.8})
    make_metrics(two, 200, fid=4.0, reference="elsewhere")
    rows, result = rows_of(one, two)
    fids = {values: name for name, values in rows["Metrics"].items() if name.startswith("FID")}
    assert set(fids) == {(7.0, 6.0), (None, 9.0), (None, 5.0), (None, 4.0)}
    assert "--cfg-scale 1.8" in fids[None, 5.0]
    assert "elsewhere" in fids[None, 4.0]
    assert "32 images vs. 8 reference images" in fids[None, 9.0]
    (note,) = [note for each in result.sections for note in each.notes if note.startswith("FID")]
    assert all(aspect in note for aspect in ("images", "reference", "--cfg-scale"))


def test_machines_and_versions_that_differ_are_shown_and_missing_records_are_noted(tmp_path):
    one = make_run(tmp_path / "one", session={})
    two = make_run(tmp_path / "two", session={"host": "two", "num_gpus": 8, "versions": {"torch": "2.11"}})
    rows, _ = rows_of(one, two)
    assert rows["Machines"] == {
        "host": ("one", "two"),
        "GPUs": (0, 8),
        "torch version": ("2.10", "2.11"),
        "repa-pipe version": ("0.1", None),
    }
    assert {name for name in rows["Cost"] if "memory" in name} == {
        "peak memory in GiB, of process",
        "peak memory in GiB, of GPU",
    }
    _, result = rows_of(one, make_run(tmp_path / "three"))
    assert "1 of 2 runs recorded none" in result.text


def test_stores_are_compared_and_one_that_is_gone_is_noted(tmp_path, make_store):
    paths = [str(make_store(count)[0].rename(tmp_path / str(count))) for count in (50, 40)]
    settings = {"vae": "tiny", "enc_type": ("enc",)}
    one, two = (make_run(tmp_path / f"run{i}", store=path, **settings) for i, path in enumerate(paths))
    rows, result = rows_of(one, two)
    assert "note: losses on different images are not comparable" in result.text
    assert rows["Stores"].keys() == {"store", "images", "sample index"}
    assert (rows["Stores"]["store"], rows["Stores"]["images"]) == (tuple(paths), (50, 40))
    copy = Path(shutil.copytree(paths[0], tmp_path / "copy"))
    assert (
        "these stores hold the same images and models"
        in rows_of(one, make_run(tmp_path / "c", store=str(copy), **settings))[1].text
    )
    changed = Path(paths[1]) / "features/enc/zarr.json"
    changed.write_text(changed.read_text().replace('"name": "enc"', '"name": "enc2"'))
    record_digests(Path(paths[1]))
    assert rows_of(one, two)[0]["Stores"]["features/enc name"] == ("enc", "enc2")
    gone = make_run(tmp_path / "gone", store=str(tmp_path / "nowhere"), **settings)
    rows, result = rows_of(one, gone)
    assert rows["Stores"]["store"] == (paths[0], str(tmp_path / "nowhere"))
    assert "note: the store of gone cannot be read (" in result.text


def test_values_are_in_one_row_only_if_their_keys_are_equal():
    found = [Measured(i, "x", float(i), (("of", i // 2), ("same", 1))) for i in range(3)]
    rows, notes = comparable_rows(found, 3)
    assert [(row.name, row.values) for row in rows] == [("x, of 0", (0.0, 1.0, None)), ("x, of 1", (None, None, 2.0))]
    assert notes == ("x has several rows, which are not comparable: of differ",)
    ((row,), (note,)) = comparable_rows([Measured(0, "x", 1.0), Measured(0, "x", 2.0)], 1)
    assert (row.values, note) == ((2.0,), "x: a run has several values of the same settings; the last one is shown")


def test_the_command_prints_tables_or_json_without_torch(tmp_path, run_cli):
    one, two = make_run(tmp_path / "one", session={}), make_run(tmp_path / "two", seed=3, session={})
    code, out, _ = run_cli("compare", one.path, two.path)
    assert code == 0
    assert [line.split() for line in out.splitlines() if "--seed" in line] == [["--seed", "0", "3"]]
    code, out, _ = run_cli("compare", one.path, two.path, "--json")
    assert json.loads(out) == json.loads(json.dumps(dataclasses.asdict(rows_of(one, two)[1])))
    code, _, errors = run_cli("compare", one.path)
    assert (code, "expected at least two run folders" in errors) == (2, True)
    script = (
        "import sys; from repa_pipe.pipeline.listings import compare; compare.run(sys.argv[1:]).text; "
        "print([name for name in ('torch', 'ray', 'timm', 'scipy', 'bokeh') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, one.path, two.path], capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"


def test_a_folder_that_is_no_run_is_an_error(tmp_path):
    one = make_run(tmp_path / "one")
    for other, message in ((tmp_path, "is not a run folder"), (one.path, "is given twice")):
        with pytest.raises(ConfigError, match=message):
            compare.run([str(one.path), str(other)])
