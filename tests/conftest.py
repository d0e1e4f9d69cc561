"""Small stores, written by the real writer, a bucket, and the command line."""

import copy
import dataclasses
import functools
import importlib.util
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from repa_pipe.sources import index_digest
from repa_pipe.stores.digests import GROUP_DIGEST, ROOT_DIGEST
from repa_pipe.stores.layout import ArraySpec, GroupSpec, num_shards
from repa_pipe.stores.manifest import Manifest, Quarantined
from repa_pipe.stores.metadata_writer import consolidate
from repa_pipe.stores.writer import ShardWriter, create_group, create_store

Contents = dict[str, np.ndarray[Any, Any]]

# As in a terminal, for this process and its children: `nohup`, and shells that start a background job, ignore these.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

LATENTS = GroupSpec(
    path="latents/tiny",
    arrays=(ArraySpec(name="moments", sample_shape=(8, 8, 8), dtype="float32"),),
    attributes={"vae": "tiny-kl-f8", "fingerprint": {"name": "tiny"}, "scale": [1.0] * 4, "bias": [0.0] * 4},
)
FEATURES = GroupSpec(
    path="features/enc",
    arrays=(
        ArraySpec(name="tokens", sample_shape=(16, 24), dtype="float16"),
        ArraySpec(name="cls_token", sample_shape=(24,), dtype="float16"),
    ),
    attributes={
        "encoder": "enc",
        "fingerprint": {"name": "enc"},
        "num_tokens": 16,
        "width": 24,
        "codec": {"name": "float16", "width": 24},
    },
)


def manifest_of(num_samples: int, shard_size: int) -> Manifest:
    return Manifest(
        num_samples=num_samples,
        resolution=32,
        crop="center",
        shard_size=shard_size,
        index_digest="0" * 64,
        class_names=("cat", "dog", "owl"),
        source={"kind": "folder", "path": "images"},
    )


def random_arrays(spec: GroupSpec, num_samples: int) -> dict[str, np.ndarray[Any, Any]]:
    rng = np.random.default_rng(len(spec.path))
    return {
        array.name: rng.standard_normal((num_samples, *array.sample_shape)).astype(array.dtype) for array in spec.arrays
    }


def write_group(
    path: Path,
    manifest: Manifest,
    spec: GroupSpec,
    shards: list[int] | None = None,
    quarantined: tuple[Quarantined, ...] = (),
) -> dict[str, np.ndarray[Any, Any]]:
    arrays = random_arrays(spec, manifest.num_samples)
    create_group(path, manifest, spec)
    for shard in range(num_shards(manifest.num_samples, manifest.shard_size)) if shards is None else shards:
        with ShardWriter(path, manifest, spec, shard) as writer:
            rows = writer.samples
            for start in range(rows.start, rows.stop, 5):
                block = slice(start, min(start + 5, rows.stop))
                writer.append({name: array[block] for name, array in arrays.items()})
            bad = tuple(entry for entry in quarantined if entry.index in rows)
            writer.commit(np.arange(rows.start, rows.stop, dtype=np.uint32), bad)
    return arrays


def new_store(path: Path, num_samples: int = 50, shard_size: int = 16) -> Manifest:
    samples = samples_of(num_samples)
    manifest = dataclasses.replace(manifest_of(num_samples, shard_size), index_digest=index_digest(samples))
    create_store(path, manifest, samples)
    return manifest


def without_digests(path: Path) -> Path:
    """Remove the checksums of metadata, which stores of version 0.1.0 do not have."""
    for file in path.rglob("zarr.json"):
        meta = json.loads(file.read_text())
        for name in (ROOT_DIGEST, GROUP_DIGEST):
            meta.get("attributes", {}).pop(name, None)
        file.write_text(json.dumps(meta))
    consolidate(path)
    return path


def samples_of(num_samples: int) -> pa.Table:
    return pa.table(
        {
            "key": [f"{i:04d}.png" for i in range(num_samples)],
            "label": pa.array([i % 3 for i in range(num_samples)], pa.int32()),
            "num_bytes": pa.array([100 + i for i in range(num_samples)], pa.int64()),
            "where": [f"{i:04d}.png" for i in range(num_samples)],
        }
    )


def unpack_old_artifacts(folder: Path) -> None:
    """Unpack the artifacts of version 0.1.0 as if they had been written in a folder, metrics a minute after images."""
    with tarfile.open(Path(__file__).parent / "data/made-by-0.1.0.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    written = 1_700_000_000
    for path in folder.rglob("*"):
        os.utime(path, (written, written + 60 * path.name.endswith(".metrics.json")))
    for path in folder.rglob("samples/*[0-9].json"):
        values = json.loads(path.read_text())
        checkpoint = path.parents[1] / "checkpoints" / f"{values['step']:07d}.pt"
        values["settings"]["checkpoint"] |= {"path": str(checkpoint), "written": checkpoint.stat().st_mtime_ns}
        path.write_text(json.dumps(values))
    run = folder / "exps/run"
    probes = json.loads((run / "probe.json").read_text())
    for row in probes["rows"]:
        name = row["checkpoint"].split()[0]
        row["checkpoint"] = f"{name} {(run / 'checkpoints' / name).stat().st_mtime_ns}"
    (run / "probe.json").write_text(json.dumps(probes))


def end_workers(raised: pytest.ExceptionInfo[BaseException]) -> None:
    """Release the iterator of a DataLoader to which an error refers, which ends its workers.

    Otherwise Python's garbage collector finds it in a circle, and closes the queues to the workers before the iterator
    has told them to stop. torch then waits 5 s for each of them.
    """
    traceback.clear_frames(raised.tb)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Iterator[None]:
    report = yield
    # names that are not UTF-8 stand in captured logs; the processes of pytest-xdist cannot send them to each other
    report.sections = [(title, text.encode(errors="backslashreplace").decode()) for title, text in report.sections]
    return report


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Use an empty cache folder instead of the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REPA_PIPE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def helpers() -> Any:
    """The functions and templates of this file, for tests that create a store step by step."""
    return sys.modules[__name__]


@pytest.fixture(scope="session")
def written_stores(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., tuple[Path, Contents]]:
    """Write a store at most once; to be copied, since what takes the time is that the writer waits for the disk."""

    @functools.cache
    def write(*key: Any) -> tuple[Path, Contents]:
        num_samples, shard_size, quarantined = key
        path = tmp_path_factory.mktemp("written") / "store"
        manifest = new_store(path, num_samples, shard_size)
        contents = {}
        for spec in (LATENTS, FEATURES):
            arrays = write_group(path, manifest, spec, quarantined=quarantined)
            contents |= {f"{spec.path}/{name}": array for name, array in arrays.items()}
        return path, contents

    return write


@pytest.fixture
def make_store(tmp_path: Path, written_stores: Callable[..., tuple[Path, Contents]]) -> Callable[..., Any]:
    """Make a store of 50 samples in shards of 16; return its path and `{array path: contents}`."""

    def make(
        num_samples: int = 50, shard_size: int = 16, quarantined: tuple[Quarantined, ...] = ()
    ) -> tuple[Path, Contents]:
        written, contents = written_stores(num_samples, shard_size, quarantined)
        return shutil.copytree(written, tmp_path / "store"), copy.deepcopy(contents)

    return make


@pytest.fixture
def random_vgg16(monkeypatch: pytest.MonkeyPatch) -> None:
    """VGG16 with random weights in place of torchvision's; only its convolutions."""
    pytest.importorskip("torchmetrics")
    import torch
    import torchvision
    from torchvision.models import vgg

    torch.manual_seed(0)
    features = vgg.make_layers(vgg.cfgs["D"])
    monkeypatch.setattr(torchvision.models, "vgg16", lambda **_: SimpleNamespace(features=features))


def use_endpoint(monkeypatch: pytest.MonkeyPatch, endpoint: str) -> None:
    """Make an S3 server on this machine that of all s3:// URLs."""
    for name, value in {
        "AWS_ENDPOINT": endpoint,
        "AWS_ALLOW_HTTP": "true",
        "AWS_ACCESS_KEY_ID": "id",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def install_plug_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Install a module with source plug-ins, `NAME="CALLABLE"`, for this process and its child processes."""
    folder = tmp_path / "site"

    def install(code: str, **callables: str) -> None:
        info = folder / "plug_in_module-1.0.dist-info"
        info.mkdir(parents=True)
        (folder / "plug_in_module.py").write_text(code)
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: plug-in-module\nVersion: 1.0\n")
        lines = [f"{name} = plug_in_module:{value}" for name, value in callables.items()]
        (info / "entry_points.txt").write_text("\n".join(["[repa_pipe.sources]", *lines]))
        monkeypatch.syspath_prepend(str(folder))
        monkeypatch.setenv("PYTHONPATH", str(folder))

    yield install
    sys.modules.pop("plug_in_module", None)


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """The URL of a local S3 server."""
    pytest.importorskip("boto3")
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """An empty bucket s3://stores on a local S3 server, for this process and its child processes."""
    import boto3

    use_endpoint(monkeypatch, s3_server)
    resource = boto3.resource("s3", endpoint_url=s3_server, region_name="us-east-1")
    stores = resource.create_bucket(Bucket="stores")
    yield stores
    stores.objects.delete()  # the server keeps them in the memory of this process
    stores.delete()


@pytest.fixture
def faulty_bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A `FaultyBucket`, empty and without faults; s3://stores is its URL in this process and its child processes."""
    module = _load("faulty_bucket")
    with module.FaultyBucket().serve() as bucket:
        use_endpoint(monkeypatch, bucket.url)
        yield bucket


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    """A `HubServer` with the token of a user, for this process and its child processes."""
    from huggingface_hub import constants, file_download
    from huggingface_hub.utils import disable_progress_bars

    server_module = _load("hub_server")
    disable_progress_bars()
    with server_module.HubServer().serve() as server:
        home = str(tmp_path / "hf-home")
        variables = {
            "HF_ENDPOINT": server.url,
            "HF_TOKEN": server_module.TOKEN,
            "HF_HUB_DISABLE_XET": "1",
            "HF_HOME": home,
        }
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(constants, "ENDPOINT", server.url)  # constants are read from the environment on import
        for module in (constants, file_download):  # early versions copy the constant
            template = f"{server.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
            monkeypatch.setattr(module, "HUGGINGFACE_CO_URL_TEMPLATE", template, raising=False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", f"{home}/hub")
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", f"{home}/token")
        yield server


def _load(name: str) -> Any:
    """Import a module next to this file."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def short_limits(monkeypatch: pytest.MonkeyPatch) -> float:
    """Divide all limits of requests to servers by 60, which is returned: a second stands for a minute."""
    from repa_pipe.stores import remote, retries

    scale = 60.0
    for module, names in (
        (remote, ("READ_S", "WRITE_S", "BURST_S", "LONGEST_PAUSE_S", "REOPEN_S")),
        (retries, ("RETRY_S", "FIRST_ANSWER_S", "FIRST_PAUSE_S", "LONGEST_PAUSE_S", "LOG_AFTER_S", "LOG_EVERY_S")),
    ):
        for name in names:
            monkeypatch.setattr(module, name, getattr(module, name) / scale)
    return scale


@pytest.fixture
def run_cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Any]:
    """Run a command in this process; return its exit code, output and errors."""

    from repa_pipe import cli

    def run(*words: Any) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["repa-pipe", *map(str, words)])
        capsys.readouterr()  # of what ran before
        code = 0
        try:
            cli.main()
        except SystemExit as exit_:
            code = int(exit_.code or 0)
        out, errors = capsys.readouterr()
        return code, out, errors

    logger = logging.getLogger("repa_pipe")
    before = logger.handlers[:], logger.level
    yield run
    logger.handlers[:], logger.level = before


@pytest.fixture(scope="session")
def mutations() -> Any:
    """The module tests/mutations.py."""
    spec = importlib.util.spec_from_file_location("mutations", Path(__file__).with_name("mutations.py"))
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def host_waits() -> Any:
    """The class HostWaits of tests/host_waits.py."""
    spec = importlib.util.spec_from_file_location("host_waits", Path(__file__).with_name("host_waits.py"))
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module.HostWaits


# --- pages -------------------------------------------------------------------------------------------------------

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
SWITCHES = """--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking
    --disable-component-update --disable-sync --enable-logging=stderr --v=0"""


@dataclasses.dataclass(frozen=True)
class Page:
    """What a browser printed: the document, with `--dump-dom`, and messages on its console."""

    document: str
    console: list[str]


@pytest.fixture
def browser(tmp_path: Path) -> Callable[..., Page]:
    """Open a file in Chromium with additional switches; without `real_time`, 5 seconds of its scripts pass at once."""
    if CHROMIUM is None:
        pytest.skip("Chromium is not installed")

    def browse(path: Path, *switches: str, real_time: bool = False) -> Page:
        budget = () if real_time else ("--virtual-time-budget=5000",)
        command = [CHROMIUM, *SWITCHES.split(), f"--user-data-dir={tmp_path / 'profile'}", *budget, *switches]
        done = subprocess.run([*command, path.as_uri()], capture_output=True, text=True, timeout=300, check=True)
        lines = done.stderr.splitlines()
        return Page(done.stdout, [line for line in lines if "CONSOLE" in line and "setting log level" not in line])

    return browse
