"""Names and messages in a store or run of another user: no command prints one raw, or puts it raw on a page."""

import dataclasses
import json
import os
import re
import unicodedata

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from repa_pipe.config import TrainConfig
from repa_pipe.sources import index_digest
from repa_pipe.stores.manifest import Quarantined
from repa_pipe.stores.writer import create_store

HOSTILE = "\x1b[2J\r\u202e</script><b onclick=x>'\"{{ 7 * 7 }}\x9b\x07"
IN_A_PATH = HOSTILE.replace("/", "")
MARKUP = re.compile(r"<b onclick", re.I)


def special(text):
    """Return the characters of a text that act on a terminal or hide others, without tabs and line ends."""
    kinds = ("Cc", "Cs", "Zl", "Zp")
    directions = ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")
    found = {c for c in text if unicodedata.category(c) in kinds or unicodedata.bidirectional(c) in directions}
    return found - {"\t", "\n"}


@pytest.fixture
def store(tmp_path, helpers):
    """A complete store in which class names, keys, the source and the reasons of quarantine are hostile."""
    path = tmp_path / f"store{IN_A_PATH}"
    samples = helpers.samples_of(50)
    keys = pa.array([f"{HOSTILE}{number}" for number in range(50)])
    samples = samples.set_column(0, "key", keys).set_column(3, "where", pc.cast(keys, pa.string()))
    manifest = dataclasses.replace(
        helpers.manifest_of(50, 16),
        index_digest=index_digest(samples),
        class_names=tuple(f"{HOSTILE}{label}\udcff" for label in range(3)),
        source={"kind": "folder", "path": HOSTILE},
    )
    create_store(path, manifest, samples)
    for spec in (helpers.LATENTS, helpers.FEATURES):
        helpers.write_group(path, manifest, spec, quarantined=(Quarantined(index=3, key=HOSTILE, reason=HOSTILE),))
    return path


@pytest.fixture
def run_folder(tmp_path, store):
    """The folder of a run with a hostile name and hostile settings."""
    folder = tmp_path / "runs" / f"run{IN_A_PATH}"
    folder.mkdir(parents=True)
    config = TrainConfig(store=str(store), exp_name="run", num_classes=2, enc_type=(), encoder_depth=1)
    values = config.as_json() | {"vae": f"owner/{IN_A_PATH}"}
    (folder / "train.json").write_text(json.dumps(values))
    names = ("step", "loss", "denoising_loss", "alignment_loss", "grad_norm", "images_per_s", "data_wait", "seconds")
    pq.write_table(
        pa.table({name: [1, 2] if name == "step" else [1.0, 2.0] for name in names}), folder / "metrics.parquet"
    )
    (folder / "log.txt").write_bytes(f"{HOSTILE}\n".encode() * 3 + b"\xff\xfe\n")
    return folder


def test_no_command_prints_special_characters_or_a_traceback(store, run_folder, run_cli, tmp_path):
    commands = [
        ("store", "info", store),
        ("store", "ls", store),
        ("store", "ls", store, "--quarantined"),
        ("store", "ls", store, "--class", HOSTILE),
        ("store", "verify", store),
        ("store", "repair", store),
        ("store", "stats", store, "--vae", HOSTILE),
        ("store", "export", store, "--out", tmp_path / "export"),
        ("store", "export", store, "--out", tmp_path / "tensors", "--format", "safetensors"),
        ("rank", store, "--out", tmp_path / "rank.json"),
        ("runs", run_folder.parent),
        ("runs", run_folder.parent, "--json"),
        ("report", run_folder, "--out", tmp_path / "report.html"),
        ("sample", run_folder),
        ("probe", run_folder),
        ("evaluate", run_folder, "--reference", store),
        ("train", store, "--exp-name", HOSTILE, "--dry-run"),
        ("encode", tmp_path, tmp_path / IN_A_PATH, "--vae", HOSTILE),
        ("encode", tmp_path / IN_A_PATH, tmp_path / "new", "--encoder", HOSTILE),
        ("encoders", HOSTILE),
        (HOSTILE,),
        ("report", f"--{HOSTILE}"),
    ]
    printed = ""
    for command in commands:
        code, out, errors = run_cli(*command)
        assert code in (0, 1, 2), command
        assert "Traceback" not in errors, command
        assert not special(out + errors), command
        printed += out + errors
    assert r"\x1b[2J\r\u202e" in printed


def test_names_that_are_not_utf8_are_printed_as_escapes(tmp_path, run_cli):
    folder = os.fsencode(tmp_path) + b"/A\xe9"
    os.mkdir(folder)  # noqa: PTH102 - Path has no bytes
    name = os.fsdecode(folder)
    for command in (("runs", name), ("report", name), ("store", "info", name), ("sample", name), ("encode", name, "s")):
        code, out, errors = run_cli(*command)
        assert code in (0, 2), command
        assert "Traceback" not in errors, command
        (out + errors).encode()
        assert r"A\xe9" in out + errors or command[0] == "runs", command


def test_a_report_has_hostile_text_only_as_text(run_folder, run_cli, tmp_path):
    page = tmp_path / "report.html"
    code, _, errors = run_cli("report", run_folder, "--out", page)
    assert code == 0, errors
    html = page.read_text(encoding="utf-8")
    own = re.sub(r"<script>.*?</script>", "", html, flags=re.DOTALL)  # bokeh's scripts have special characters
    assert not special(own)
    assert not MARKUP.search(own)
    assert "&lt;b onclick" in own
    assert "Content-Security-Policy" in html
    (data,) = re.findall(r'<script type="application/json" id="plot-data">(.*?)</script>', html)
    assert "<" not in data
    assert not special("".join(run["name"] for run in json.loads(data)["runs"]))
