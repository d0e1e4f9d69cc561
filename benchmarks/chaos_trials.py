"""Part of chaos.py: the kinds of trials. Each breaks something once, at a random moment or place.

A trial returns what is wrong with the result, or None. What its commands printed, and whether one of them hung, is
judged by chaos.py.
"""

from __future__ import annotations

import json
import logging
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from chaos_world import COMMANDS, SAVED, STEPS, TRAIN, World

STOPPED = 130  # exit code of a command that a signal has stopped (docs/cli.md)
SIGNALS = ("SIGTERM", "SIGINT", "SIGUSR1", "SIGUSR2", "SIGHUP", "SIGXCPU")
STOP_S = 10.0  # a training on one rank saves and ends within this time
FEW_STEPS = 3
LOST = "lost"
SILENT = "silent"


class NotTriedError(Exception):
    """What a trial needs is not available here."""


Verdict = tuple[str, str] | None  # `lost` or `silent`, and what is wrong; None: survived
Trial = Callable[[World], Verdict]


def _resumed(world: World, name: str, folder: Path, kind: str = LOST) -> Verdict:
    """Run the command again, and compare its result with the undisturbed one."""
    ended = world.run(name, folder)
    if ended.code:
        return LOST, f"'{name}' does not resume: exit code {ended.code}, {ended.last_line}"
    return None if world.same(name, folder) else (kind, f"the result of '{name}' differs from the undisturbed one")


def killed(name: str, world: World) -> Verdict:
    """SIGKILL at a random moment, then the same command again."""
    folder = world.copy(*world.needs(name))
    running = world.start(name, folder)
    running.wait_or(world.rng.uniform(0, world.seconds[name]))
    running.send(signal.SIGKILL)
    running.wait()
    return _resumed(world, name, folder)


def killed_upload(world: World) -> Verdict:
    """SIGKILL while encoding into a bucket: no commit record precedes its files, and the same command finishes."""
    folder = world.copy()
    words = ["s3://stores/store" if word == "store" else word for word in COMMANDS["encode"]]
    with _bucket() as (environment, bucket):
        running = world.start("encode", folder, words=words, environment=environment)
        running.wait_or(world.rng.uniform(0.3, 1.5) * world.seconds["encode"])
        running.send(signal.SIGKILL)
        running.wait()
        committed = {each.key for each in bucket.objects.all()}
        early = [key for key in committed if "/commits/" in key and not _files_of_commit(bucket, key) <= committed]
        if early:
            return LOST, f"{early[0]} is in the bucket before its files"
        ended = world.run("encode into a bucket", folder, words=words, environment=environment)
        for each in bucket.objects.all():
            (folder / each.key).parent.mkdir(parents=True, exist_ok=True)
            bucket.download_file(each.key, str(folder / each.key))
    if ended.code:
        return LOST, f"encoding into a bucket does not resume: exit code {ended.code}, {ended.last_line}"
    return None if world.same("encode", folder) else (LOST, "the store in the bucket differs from the undisturbed one")


def _files_of_commit(bucket: Any, key: str) -> set[str]:
    record = json.loads(bucket.Object(key).get()["Body"].read())
    return {f"store/{record['group']}/{name}" for name in record["files"]}


@contextmanager
def _bucket() -> Iterator[tuple[dict[str, str], Any]]:
    """Yield the environment of an empty bucket `stores` on a local server, and the bucket."""
    try:
        import boto3
        from moto.server import ThreadedMotoServer
    except ImportError as error:
        raise NotTriedError(f"{error.name} is not installed: pip install 'repa-pipe[dev]'") from error
    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # one line per request
    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    keys = {"AWS_ACCESS_KEY_ID": "id", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_REGION": "us-east-1"}
    try:
        resource_of = boto3.resource(
            "s3",
            endpoint_url=f"http://{host}:{port}",
            region_name="us-east-1",
            aws_access_key_id="id",
            aws_secret_access_key="secret",
        )
        bucket = resource_of.create_bucket(Bucket="stores")
        yield {"AWS_ENDPOINT": f"http://{host}:{port}", "AWS_ALLOW_HTTP": "true", **keys}, bucket
        bucket.objects.delete()
        bucket.delete()
    finally:
        server.stop()


def stopped(world: World) -> Verdict:
    """A signal at a random moment: a documented exit code in time, and nothing lost."""
    name, number = world.rng.choice(["encode", "train", "sample"]), signal.Signals[world.rng.choice(SIGNALS)]
    folder = world.copy(*world.needs(name))
    running = world.start(name, folder)
    # Before a command has installed its handlers, a signal ends it as any program.
    running.wait_or(world.rng.uniform(0.5, 1) * world.seconds[name])
    running.send(number)
    ended = world.finish(running, STOP_S)
    if ended.hung:
        return LOST, f"'{name}' did not end within {STOP_S:g} s of {number.name}"
    if ended.code not in (0, STOPPED):
        return LOST, f"'{name}' ended with exit code {ended.code} after {number.name}: {ended.last_line}"
    return _resumed(world, name, folder)


def flipped_store(world: World) -> Verdict:
    """One bit of a store: training from it notices, or nothing depends on it."""
    folder = world.copy("store")
    path = _flip(world, [path for path in (folder / "store").rglob("*") if path.is_file()])
    ended = world.run("train", folder)
    if ended.code == 0 and not world.same("train", folder):
        return SILENT, f"'train' used {path} with a flipped bit"
    return None


def flipped_run(world: World) -> Verdict:
    """One bit of a file of an unfinished run: the same command again gives the undisturbed result, or says why not."""
    folder = world.copy("store", "run")
    (folder / f"run/checkpoints/{STEPS:07d}.pt").unlink()
    files = [folder / f"run/checkpoints/{STEPS - SAVED:07d}.pt", folder / "run/train.json", folder / "run/run.json"]
    path = _flip(world, [*files, folder / "run/metrics.parquet"])
    ended = world.run("train", folder)
    if ended.code == 0 and not world.same("train", folder):
        return SILENT, f"'train' resumed from {path} with a flipped bit"
    return None


def flipped_blocks(world: World) -> Verdict:
    """One bit of a finished block of images: it is generated again, or refused."""
    folder = world.copy(*world.needs("sample"))
    running = world.start("sample", folder)
    blocks = folder / "run/samples/set.partial"
    running.wait_until(lambda: len(list(blocks.glob("0*"))) >= 2)
    running.send(signal.SIGKILL)
    running.wait()
    finished = [path for path in blocks.glob("0*") if ".tmp-" not in path.name] if blocks.exists() else []
    if finished:
        _flip(world, finished)
    return _resumed(world, "sample", folder, SILENT)


def flipped_checkpoint(world: World) -> Verdict:
    """One bit of the checkpoint that images are sampled from."""
    folder = world.copy(*world.needs("sample"))
    path = _flip(world, [folder / f"run/checkpoints/{STEPS:07d}.pt"])
    ended = world.run("sample", folder)
    if ended.code == 0 and not world.same("sample", folder):
        return SILENT, f"'sample' used {path} with a flipped bit"
    return None


def _flip(world: World, files: list[Path]) -> Path:
    """Flip one random bit of one of the files, larger ones no more often than small ones."""
    path = world.rng.choice(sorted(path for path in files if path.stat().st_size))
    position, bit = world.rng.randrange(path.stat().st_size), world.rng.randrange(8)
    with path.open("r+b") as file:
        file.seek(position)
        (value,) = file.read(1)
        file.seek(position)
        file.write(bytes([value ^ 1 << bit]))
    return path


def disk_full(world: World) -> Verdict:
    """A file system that becomes full: one line, and after more space the same command finishes."""
    name = world.rng.choice(["encode", "train", "sample"])
    source = world.copy(*world.needs(name))
    folder = world.folder / "small"
    size = sum(path.stat().st_size for path in source.rglob("*") if path.is_file())
    more = {"encode": 6, "train": 120, "sample": 3}[name] * 2**20
    with _small_file_system(folder, size + world.rng.randrange(2**18, more)) as grow:
        shutil.copytree(source, folder, dirs_exist_ok=True)
        ended = world.run(name, folder)
        if ended.code not in (0, 1, 2):
            return LOST, f"'{name}' ended with exit code {ended.code} on a full disk: {ended.last_line}"
        grow()
        return _resumed(world, name, folder)


@contextmanager
def _small_file_system(folder: Path, size: int) -> Iterator[Callable[[], object]]:
    """Mount a file system of `size` bytes, and yield what makes it large. NotTriedError without the right to."""
    folder.mkdir(exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "tmpfs", str(folder), "-o"]
    if subprocess.run([*mount, f"size={size}"], check=False, capture_output=True).returncode:
        raise NotTriedError("a file system cannot be mounted here: run as root")
    try:
        yield lambda: subprocess.run([*mount, "remount,size=2g"], check=True, capture_output=True)
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def few_descriptors(world: World) -> Verdict:
    """A random, small `ulimit -n`."""
    name = world.rng.choice(["encode", "train", "sample"])
    folder = world.copy(*world.needs(name))
    count = world.rng.randrange(64, 401)
    ended = world.run(name, folder, limits={resource.RLIMIT_NOFILE: count})
    if ended.code == 0:
        return None if world.same(name, folder) else (SILENT, f"'{name}' with {count} descriptors has another result")
    return None if ended.code == 2 else (LOST, f"'{name}' with {count} descriptors: exit code {ended.code}")


def two_writers(world: World) -> Verdict:
    """The same command twice at once: one is refused or has nothing to do, and the result is the undisturbed one."""
    name = world.rng.choice(["encode", "train", "sample", "ablate"])
    folder = world.copy(*world.needs(name))
    first = world.start(name, folder)
    first.wait_or(world.rng.uniform(0, 1) * world.seconds[name])
    second = world.start(name, folder)
    codes = sorted(world.finish(each).code for each in (first, second))
    if codes not in ([0, 0], [0, 2]):
        return LOST, f"two of '{name}' ended with exit codes {codes}"
    return None if world.same(name, folder) else (SILENT, f"two of '{name}' gave another result")


def mutated(world: World) -> Verdict:
    """A field of a JSON or TOML file of a store, run or sweep is dropped, retyped, nested, enlarged or truncated."""
    sys.path.append(str(Path(__file__).parents[1] / "tests"))
    from mutations import mutations_of

    folder = world.copy("store", "run", "sweep")
    (folder / f"run/checkpoints/{STEPS:07d}.pt").unlink()
    kind, name = world.rng.choice([("run", "train"), ("store", "train"), ("sweep", "ablate"), ("sweep.toml", "ablate")])
    files = [folder / kind] if kind.endswith(".toml") else list((folder / kind).rglob("*.json"))
    path = world.rng.choice(sorted(files))
    what, data = mutations_of(path, 1, world.rng.getrandbits(32))[0]
    path.write_bytes(data)
    ended = world.run(name, folder)
    if ended.code == 0 and name == "train" and not world.same("train", folder):
        return SILENT, f"'train' used {path} after a mutation ({what})"
    world.run("runs", folder, words=["runs", "run"])
    return None


def strangers_store(world: World) -> Verdict:
    """A store that names code, files outside of it and terminal escapes, from a folder and over HTTP."""
    folder = world.copy("store", "run")
    marker = folder / "outside"
    _make_hostile(folder / "store", world, marker)
    with _served(folder / "store") as url:
        location = world.rng.choice(["store", url])
        few = ["--max-train-steps", str(FEW_STEPS), "--exp-name", "from-stranger", "--store-cache", "cache"]
        chosen = world.rng.choice(
            [
                ["report", "run", "--store", location, "--out", "report.html"],
                ["store", "info", location],
                ["store", "ls", location],
                ["store", "verify", location],
                ["store", "export", location, "--out", "exported", "--format", "repa"],
                ["train", *TRAIN, "--store", location, *(few if location == url else few[:4])],
                ["evaluate", "--samples", "run/samples/set.npz", "--reference", location, "--device", "cpu"],
            ]
        )
        ended = world.run(" ".join(chosen[:2]), folder, words=chosen)
    written = [path for path in folder.parent.rglob("escaped*") if path.exists()]
    if marker.exists() or written:
        return LOST, f"'{ended.command}' of a stranger's store wrote {marker if marker.exists() else written[0]}"
    if "\x1b[2J" in ended.output:
        return LOST, f"'{ended.command}' of a stranger's store printed an escape sequence"
    page = folder / "report.html"
    if page.exists() and "<img src=x" in page.read_text(errors="replace"):
        return LOST, "the report of a stranger's store has its markup"
    return None


def _make_hostile(store: Path, world: World, marker: Path) -> None:
    """Change the root attributes, or the consolidated metadata, of a store as an attacker would."""
    path = store / "zarr.json"
    meta: dict[str, Any] = json.loads(path.read_text())
    root = meta["attributes"]["repa_pipe"]
    what = world.rng.choice(["code", "names", "escapes"])
    if what == "code":
        root["source"] |= {"kind": "os:system", "path": f"touch {marker}"}
    elif what == "names":
        inner = meta["consolidated_metadata"]["metadata"]
        name = world.rng.choice(["../../escaped", "features/../../../escaped", str(marker), "features/escaped\x00"])
        inner[name] = inner[world.rng.choice(sorted(inner))]
    else:
        root["class_names"] = ["\x1b[2J\x1b]0;owned\x07<img src=x onerror=alert(1)>" for _ in root["class_names"]]
    path.write_text(json.dumps(meta))


@contextmanager
def _served(folder: Path) -> Iterator[str]:
    """Serve a folder over HTTP on the loopback interface."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=os.fspath(folder))) as server:
        server.block_on_close = False  # connections that clients keep open
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()


KINDS: dict[str, Trial] = {f"kill {name}": partial(killed, name) for name in COMMANDS} | {
    "kill encode into a bucket": killed_upload,
    "stop by signal": stopped,
    "bit of a store": flipped_store,
    "bit of a run": flipped_run,
    "bit of a checkpoint": flipped_checkpoint,
    "bit of sample blocks": flipped_blocks,
    "mutated file": mutated,
    "full disk": disk_full,
    "few descriptors": few_descriptors,
    "two writers": two_writers,
    "stranger's store": strangers_store,
}
