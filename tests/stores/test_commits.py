"""Exactly-once commits: kills at every line, concurrent writers, full or failing disks, unusual file systems."""

import errno
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from repa_pipe.stores import files, open_store
from repa_pipe.stores.verify import verify_store
from repa_pipe.stores.writer import ShardWriter, create_group

GROUP = "features/enc"


def contents(path):
    """The bytes of every file, without writer, time and checksum of commit records."""
    found = {}
    for file in sorted(path.rglob("*")):
        if file.is_file():
            data = file.read_bytes()
            if "commits" in file.parts:
                record = json.loads(data)
                data = {key: record[key] for key in record.keys() - {"writer", "time", "crc32c"}}
            found[str(file.relative_to(path))] = data
    return found


KILL_AT_LINE = """
import os, pathlib, runpy, signal, sys
helpers = runpy.run_path(sys.argv[1])
root = pathlib.Path(sys.argv[2])
manifest = helpers["manifest_of"](5, 3)

def write(path):
    helpers["create_store"](path, manifest, helpers["samples_of"](5)) if not path.exists() else None
    helpers["write_group"](path, manifest, helpers["FEATURES"])

write(root / "complete")  # also imports everything before the first kill
line = 0
while True:
    line += int(sys.argv[3])
    path = root / f"killed-{line}"
    child = os.fork()
    if child == 0:
        left = line
        def trace(frame, event, argument):
            global left
            if "/stores/" not in frame.f_code.co_filename:
                return None
            left -= event == "line"
            if left <= 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return trace
        sys.settrace(trace)
        write(path)
        os._exit(0)
    if os.waitpid(child, 0)[1] == 0:
        break
print("all lines")
"""


@pytest.mark.parametrize("stride", [29, pytest.param(7, marks=pytest.mark.slow)])
def test_a_kill_at_any_line_leaves_complete_shards_and_can_be_resumed(helpers, tmp_path, stride):
    script = [sys.executable, "-W", "ignore", "-c", KILL_AT_LINE, helpers.__file__, str(tmp_path), str(stride)]
    assert subprocess.run(script, capture_output=True, text=True, check=True).stdout == "all lines\n"
    expected = contents(tmp_path / "complete")
    arrays = helpers.random_arrays(helpers.FEATURES, 5)
    manifest = helpers.manifest_of(5, 3)
    killed = sorted(tmp_path.glob("killed-*"))
    killed = [path for path in killed if files.TEMPORARY not in path.name]
    assert len(killed) > 400 / stride
    for path in killed:
        store = open_store(path)
        if store.group_names():
            missing = set(store.group(GROUP).missing_shards())
            rows = [i for i in range(5) if i // 3 not in missing]
            np.testing.assert_array_equal(store.read([GROUP], rows)[f"{GROUP}/tokens"], arrays["tokens"][rows])
        assert verify_store(path, [GROUP] if store.group_names() else []).ok
        helpers.write_group(path, manifest, helpers.FEATURES)
        files.remove_leftovers(path)
        assert contents(path) == expected


WRITE_ON_SIGNAL = """
import pathlib, runpy, sys
helpers = runpy.run_path(sys.argv[1])
manifest = helpers["manifest_of"](50, 16)
print("ready", flush=True)
sys.stdin.readline()
helpers["write_group"](pathlib.Path(sys.argv[2]), manifest, helpers["FEATURES"])
"""


def test_concurrent_writers_of_the_same_shards_produce_one_store(helpers, tmp_path):
    alone, path = tmp_path / "alone", tmp_path / "store"
    for each in (alone, path):
        manifest = helpers.new_store(each)
    helpers.write_group(alone, manifest, helpers.FEATURES)
    script = [sys.executable, "-c", WRITE_ON_SIGNAL, helpers.__file__, str(path)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    writers = [subprocess.Popen(script, **pipes) for _ in range(3)]
    for writer in writers:
        assert writer.stdout.readline() == "ready\n"
    for writer in writers:
        writer.stdin.write("go\n")
        writer.stdin.flush()
    for writer in writers:
        writer.communicate(timeout=60)
        assert writer.returncode == 0
    assert contents(path) == contents(alone)
    assert verify_store(path).ok


def file_size_limit(limit):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


def test_a_full_disk_leaves_no_commit_and_no_file(helpers, tmp_path):
    path = tmp_path / "store"
    manifest = helpers.new_store(path)
    create_group(path, manifest, helpers.FEATURES)
    before = contents(path)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    soft = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    file_size_limit(4096)  # the kernel then refuses larger files, as on a full disk
    try:
        with pytest.raises(OSError, match="File too large"):
            helpers.write_group(path, manifest, helpers.FEATURES)
    finally:
        file_size_limit(soft)
    assert contents(path) == before
    helpers.write_group(path, manifest, helpers.FEATURES)
    assert verify_store(path).ok


def test_a_deleted_folder_is_an_error_and_not_committed(helpers, tmp_path):
    path = tmp_path / "store"
    manifest = helpers.new_store(path)
    create_group(path, manifest, helpers.FEATURES)
    arrays = helpers.random_arrays(helpers.FEATURES, 16)
    with pytest.raises(FileNotFoundError), ShardWriter(path, manifest, helpers.FEATURES, 0) as writer:
        writer.append(arrays)
        shutil.rmtree(path / GROUP)
        writer.commit(np.zeros(16, np.uint32), ())
    assert not (path / "commits").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder_is_an_error(helpers, tmp_path):
    path = tmp_path / "store"
    manifest = helpers.new_store(path)
    create_group(path, manifest, helpers.FEATURES)
    (path / GROUP / "tokens").chmod(0o500)
    with pytest.raises(PermissionError):
        helpers.write_group(path, manifest, helpers.FEATURES)
    (path / GROUP / "tokens").chmod(0o700)


def test_an_incomplete_file_under_the_final_name_is_rewritten(helpers, tmp_path):
    path = tmp_path / "store"
    manifest = helpers.new_store(path)
    create_group(path, manifest, helpers.FEATURES)
    stale = path / GROUP / "tokens/c/1/0/0"
    stale.parent.mkdir(parents=True)
    stale.write_bytes(b"half")
    assert open_store(path).group(GROUP).missing_shards() == [0, 1, 2, 3]
    helpers.write_group(path, manifest, helpers.FEATURES)
    assert verify_store(path).ok


def test_file_times_are_ignored(helpers, tmp_path):
    path = tmp_path / "store"
    manifest = helpers.new_store(path)
    helpers.write_group(path, manifest, helpers.FEATURES)
    before = contents(path)
    for i, file in enumerate(sorted(path.rglob("*"))):
        os.utime(file, (4e9 * (i % 2), 4e9 * (i % 2)))
    assert open_store(path).group(GROUP).missing_shards() == []
    helpers.write_group(path, manifest, helpers.FEATURES)
    assert contents(path) == before


def test_a_rename_whose_reply_was_lost_succeeds(helpers, tmp_path, monkeypatch):
    replace = Path.replace

    def twice(self, target):
        replace(self, target)
        if files.TEMPORARY in self.name and not target.is_dir():
            replace(self, target)  # as an NFS client does if the first reply was lost

    path = tmp_path / "store"
    manifest = helpers.new_store(path)
    monkeypatch.setattr(Path, "replace", twice)
    helpers.write_group(path, manifest, helpers.FEATURES)
    assert verify_store(path).ok


def test_a_rename_that_did_not_happen_fails(tmp_path, monkeypatch):
    (tmp_path / "final").write_bytes(b"another writer's")
    monkeypatch.setattr(Path, "replace", lambda self, target: self.unlink() or self.stat())
    with pytest.raises(FileNotFoundError):
        files.atomic_write_bytes(tmp_path / "final", b"mine")


@pytest.mark.parametrize(("code", "fails"), [(errno.EINVAL, False), (errno.ENOTSUP, False), (errno.EIO, True)])
def test_only_unsupported_directory_syncs_are_ignored(tmp_path, monkeypatch, code, fails):
    def refuse(fd):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", refuse)
    if fails:
        with pytest.raises(OSError, match="Input/output"):
            files.fsync_directory(tmp_path)
    else:
        files.fsync_directory(tmp_path)
