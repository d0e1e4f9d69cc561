"""Stores on the Hugging Face Hub: push, pull and reading in place, with a server that stands in for the Hub."""

import errno
import json
import re
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest

from repa_pipe.config import EncodeConfig
from repa_pipe.errors import ConfigError, RemoteError, RepaPipeError, StoreError
from repa_pipe.pipeline.store_tools import hub_pull, hub_push
from repa_pipe.pipeline.store_tools.hub_pull import PullOptions, pull
from repa_pipe.pipeline.store_tools.hub_push import PushOptions, push
from repa_pipe.stores import open_store, retries
from repa_pipe.stores.metadata_writer import record_digests, set_attributes
from repa_pipe.stores.verify import verify_store

REPO = "alice/small"
TARGET = f"hf://datasets/{REPO}"
GROUPS = ["latents/tiny", "features/enc"]
ROWS = [49, 0, 3, 3, 17]
MIT = PushOptions(license="mit")


@pytest.fixture(autouse=True)
def _short(monkeypatch):
    for name in ("RETRY_S", "FIRST_PAUSE_S", "LONGEST_PAUSE_S"):
        monkeypatch.setattr(retries, name, getattr(retries, name) / 60)


def contents(folder):
    """The files of a store, without those that describe the copy."""
    files = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    return {name: data for name, data in files.items() if name != "pulled.json" and ".cache" not in name}


def test_a_pushed_store_is_pulled_with_the_same_bytes_and_nothing_is_transferred_twice(hub, make_store, tmp_path):
    path, _ = make_store()
    text = push(str(path), TARGET, MIT)
    assert re.search(r"8 shards of .*, all \d+ files match", text)
    uploaded = hub.files("dataset", REPO)
    assert {name: uploaded[name] for name in contents(path)} == contents(path)
    pull(TARGET, str(tmp_path / "copy"), PullOptions())
    assert contents(tmp_path / "copy") == contents(path)
    assert verify_store(tmp_path / "copy").ok

    hub.log.clear()
    assert "nothing to upload" in push(str(path), TARGET, PushOptions())
    assert not hub.requests("^PUT|/commit/")
    hub.log.clear()
    assert "0 shards downloaded, 8 already there" in pull(TARGET, str(tmp_path / "copy"), PullOptions())
    assert not hub.requests(r"^GET /.*/0/0")


def test_labels_alone_are_pulled_and_groups_added_later(hub, make_store, tmp_path):
    path, _ = make_store()
    push(str(path), TARGET, MIT)
    copy = tmp_path / "copy"
    assert "no group from" in pull(TARGET, str(copy), PullOptions(labels_only=True))
    assert not [name for name in contents(copy) if "/c/" in name and not name.startswith("label/")]
    with open_store(copy) as store, open_store(path) as local:
        assert store.group_names() == []
        np.testing.assert_array_equal(store.labels_at(np.arange(len(store))), local.labels_at(np.arange(len(local))))
    with pytest.raises(ConfigError, match="--labels-only downloads no groups: remove --group"):
        pull(TARGET, str(copy), PullOptions(labels_only=True, groups=("features/enc",)))
    pull(TARGET, str(copy), PullOptions())
    assert contents(copy) == contents(path)


def test_a_store_is_read_in_place_at_one_commit(hub, make_store, tmp_path):
    path, _ = make_store()
    push(str(path), TARGET, MIT)
    with open_store(TARGET, cache=tmp_path / "cache") as store, open_store(path) as local:
        sha = hub.repositories["dataset", REPO].branches["main"]
        assert store.location == f"{TARGET}@{sha}"
        hub.repositories["dataset", REPO].commit("main", {}, "all files deleted")
        for name, array in local.read(GROUPS, ROWS).items():
            np.testing.assert_array_equal(store.read(GROUPS, ROWS)[name], array)
        assert store.labels.tolist() == local.labels.tolist()
    assert verify_store(f"{TARGET}@{sha}").ok
    with pytest.raises(StoreError, match=r"zarr\.json does not exist"):
        open_store(TARGET)


@pytest.mark.slow
def test_private_repositories_are_read_with_the_token_which_the_host_of_large_files_never_sees(
    hub, make_store, monkeypatch
):
    """The stand-in of that host refuses requests with a token."""
    path, _ = make_store()
    push(str(path), TARGET, PushOptions(license="mit", private=True))
    with open_store(TARGET) as store:
        location = store.location
        assert len(store.read(GROUPS, ROWS)) == 3
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    for place in (TARGET, location):
        with pytest.raises(RemoteError, match="401") as raised:
            open_store(place)
        assert "hf_wrong" not in str(raised.value)


@pytest.mark.slow
def test_a_push_that_ends_early_is_refused_by_name_and_resumed(hub, make_store, tmp_path, monkeypatch):
    path, _ = make_store()
    monkeypatch.setattr(hub_push, "BATCH_FILES", 4)
    hub.fail_times(10**6, "^POST .*/commit/", lambda request: request.refuse(403), after=2)
    with pytest.raises(RemoteError, match=r"403.*: the token may not do this: create a token at"):
        push(str(path), TARGET, MIT)
    hub.fault = lambda request: False
    there = set(hub.files("dataset", REPO))
    assert any(name.startswith("commits/") for name in there)
    for name in there:  # no record without its files
        if found := re.fullmatch(r"commits/(.+)/0*(\d+)\.json", name):
            assert f"{found[1]}/crc32c/c/{found[2]}/0" in there
    for refused in (lambda: open_store(TARGET), lambda: pull(TARGET, str(tmp_path / "copy"), PullOptions())):
        with pytest.raises(StoreError, match="a push to it has not finished: re-run 'repa-pipe store push'"):
            refused()
    assert not (tmp_path / "copy").exists()
    before = len(hub.objects)
    hub.log.clear()
    push(str(path), TARGET, MIT)
    assert len(hub.requests("^PUT")) == len(hub.objects) - before
    with open_store(TARGET) as store:
        assert store.group("features/enc").completeness == "complete"


@pytest.mark.slow
def test_parts_of_a_store_are_pushed_and_pulled_and_name_what_they_lack(hub, make_store, tmp_path):
    path, _ = make_store()
    push(str(path), TARGET, PushOptions(license="mit", groups=("latents/tiny",), shards="0:2"))
    with open_store(TARGET) as store:
        assert store.group_names() == ["latents/tiny"]
        assert store["latents/tiny"].completeness == "2 of 4 shards"
    push(str(path), TARGET, PushOptions(groups=("features/enc",)))
    with open_store(TARGET) as store:
        assert store.group_names() == GROUPS
        assert [store[name].completeness for name in GROUPS] == ["2 of 4 shards", "complete"]
    push(str(path), TARGET, PushOptions())
    copy = tmp_path / "copy"
    text = pull(TARGET, str(copy), PullOptions(groups=("features/enc",), shards="1:3"))
    assert "left out: latents/tiny" in text
    with open_store(copy) as store, open_store(path) as whole:
        assert store.group_names() == ["features/enc"]
        name = "features/enc/tokens"
        np.testing.assert_array_equal(store.read(name, [17])[name], whole.read(name, [17])[name])
        command = f"'repa-pipe store pull {TARGET} {copy}'"
        with pytest.raises(StoreError, match=f"has 2 of 4 shards: re-run {command} to complete it"):
            store.valid_indices("features/enc")
        with pytest.raises(StoreError, match=f"has no 'latents/tiny' .*{command[:-1]} --group latents/tiny' first"):
            store.group("latents/tiny")
    assert verify_store(copy).ok
    pull(TARGET, str(copy), PullOptions())
    assert contents(copy) == contents(path)


@pytest.mark.slow
def test_an_interrupted_or_failing_pull_is_a_smaller_store_and_resumes(hub, make_store, tmp_path):
    path, _ = make_store()
    push(str(path), TARGET, MIT)
    copy = tmp_path / "copy"
    hub.fail_times(10**6, "^GET /[0-9a-f]{64}", lambda request: request.refuse(403), after=8)
    with pytest.raises(RemoteError, match=r"403"):
        pull(TARGET, str(copy), PullOptions())
    hub.fault = lambda request: False
    report = verify_store(copy)
    assert report.ok
    assert report.incomplete
    pull(TARGET, str(copy), PullOptions())
    assert contents(copy) == contents(path)


@pytest.mark.slow
@pytest.mark.parametrize("number", [1, 4])
def test_the_same_command_completes_a_transfer_that_was_killed(hub, make_store, tmp_path, number):
    path, _ = make_store()
    copy = tmp_path / "copy"

    def start(*words):
        return subprocess.Popen([sys.executable, "-m", "repa_pipe.cli", "store", *map(str, words)])

    def kill_at(pattern, *words):
        """Kill a command when it makes its request of this number."""
        hub.fail_times(10**6, pattern, lambda request: process.kill(), after=number - 1)
        process = start(*words)
        assert process.wait(120) == -signal.SIGKILL
        hub.fault = lambda request: False

    push_command = "push", path, TARGET, "--license", "mit"
    kill_at("^PUT |/commit/", *push_command)
    with pytest.raises(RepaPipeError):  # nothing that looks complete
        pull(TARGET, str(copy), PullOptions())
    assert start(*push_command).wait(120) == 0
    uploaded = hub.files("dataset", REPO)
    assert {name: uploaded[name] for name in contents(path)} == contents(path)

    kill_at("^GET /[0-9a-f]{64}", "pull", TARGET, copy)
    assert not (copy / "zarr.json").exists() or verify_store(copy).ok
    assert start("pull", TARGET, copy).wait(120) == 0
    assert contents(copy) == contents(path)


@pytest.mark.slow
def test_a_busy_server_and_broken_connections_are_ridden_out(hub, make_store, tmp_path):
    path, _ = make_store()
    faults = [
        ("^POST .*/preupload/", lambda request: request.refuse(429, retry_after=0)),
        ("^POST .*/commit/", lambda request: request.refuse(503)),
        ("^POST .*/commit/", lambda request: request.cut()),
        ("^GET .*/tree/", lambda request: request.cut()),
    ]
    for number, (pattern, act) in enumerate(faults):
        hub.fail_times(1, pattern, act)
        push(str(path), f"{TARGET}{number}", MIT)
    hub.fail_times(1, "^GET /[0-9a-f]{64}", lambda request: request.answer_half())
    pull(f"{TARGET}0", str(tmp_path / "copy"), PullOptions())
    assert contents(tmp_path / "copy") == contents(path)


@pytest.mark.slow
def test_a_commit_whose_answer_is_lost_is_not_an_error(hub, make_store):
    path, _ = make_store()

    def answer_then_cut(request):
        request.user = "alice"
        request.answer, request.answer_json = (lambda *args, **names: True), (lambda *args, **names: True)
        request._dispatch()
        return request.cut()

    hub.fail_times(1, "^POST .*/commit/", answer_then_cut)
    assert "files match" in push(str(path), TARGET, MIT)
    assert len(hub.repositories["dataset", REPO].history) == 3


@pytest.mark.slow
def test_a_server_that_stays_down_is_reported_in_one_line(hub, make_store):
    path, _ = make_store()
    hub.fault = lambda request: request.cut()
    with pytest.raises(RemoteError, match=r"retried for \d s\): check the network and HF_ENDPOINT") as raised:
        push(str(path), TARGET, MIT)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("target", "options", "message"),
    [
        ("hf://alice/small", MIT, "expected hf://datasets/USER/NAME"),
        (f"{TARGET}@{'0' * 40}", MIT, "is a commit: expected a branch"),
        (TARGET, PushOptions(), "has no license yet: pass --license"),
        (TARGET, PushOptions(license="my own"), "expected an identifier of the Hub"),
        (TARGET, PushOptions(license="mit", groups=("features/no",)), "has no group 'features/no': expected one of"),
        (TARGET, PushOptions(license="mit", shards="7:9"), "expected FIRST:STOP within 0:4"),
        ("hf://datasets/bob/small", MIT, "403 .*: the token may not do this"),
    ],
)
@pytest.mark.slow
def test_a_push_that_cannot_work_uploads_nothing(hub, make_store, target, options, message):
    path, _ = make_store()
    with pytest.raises((ConfigError, StoreError), match=message):
        push(str(path), target, options)
    assert not hub.repositories


@pytest.mark.slow
def test_what_does_not_exist_is_refused_by_name(hub, make_store, tmp_path):
    path, _ = make_store()
    with pytest.raises(RemoteError, match="datasets/alice/small does not exist, or is private"):
        pull(TARGET, str(tmp_path / "copy"), PullOptions())
    push(str(path), TARGET, MIT)
    with pytest.raises(RemoteError, match="datasets/alice/small has no such branch, tag or commit"):
        open_store(f"{TARGET}@next")
    other = tmp_path / "other"
    other.mkdir()
    (other / "file").write_text("text")
    with pytest.raises(StoreError, match="holds other files, such as file"):
        pull(TARGET, str(other), PullOptions())


@pytest.mark.slow
def test_damage_is_neither_pushed_nor_pulled(hub, make_store, tmp_path):
    path, _ = make_store()
    damaged = path / "latents/tiny/moments/c/1/0/0/0"
    data = damaged.read_bytes()
    damaged.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(StoreError, match=r"moments/c/1/0/0/0 fails its checksum: damaged shards are not uploaded"):
        push(str(path), TARGET, MIT)
    damaged.write_bytes(data)
    push(str(path), TARGET, MIT)
    files = hub.repositories["dataset", REPO].commits[hub.repositories["dataset", REPO].branches["main"]]
    files["latents/tiny/moments/c/1/0/0/0"] = files["latents/tiny/moments/c/2/0/0/0"]
    copy = tmp_path / "copy"
    with pytest.raises(StoreError, match=r"moments/c/1/0/0/0 fails its checksum \(commit record\)"):
        pull(TARGET, str(copy), PullOptions())
    assert not (copy / "commits/latents/tiny/00001.json").exists()
    assert verify_store(copy).ok


@pytest.mark.slow
def test_a_file_that_the_server_stores_with_other_bytes_is_named(hub, make_store):
    path, _ = make_store()
    hub.repositories["dataset", REPO] = repository = hub_repository(hub)
    commit = repository.commit
    repository.commit = lambda branch, files, message: commit(branch, files | {"samples.parquet": b"other"}, message)
    with pytest.raises(StoreError, match=r"1 file differs from the store, first samples\.parquet: re-run"):
        push(str(path), TARGET, MIT)


def hub_repository(hub):
    """An empty repository of the user, as the server makes it."""
    hub_push.client().create_repo(REPO, repo_type="dataset")
    return hub.repositories["dataset", REPO]


@pytest.mark.slow
def test_a_repository_of_other_images_or_weights_is_not_overwritten(hub, make_store, tmp_path):
    path, _ = make_store()
    push(str(path), TARGET, MIT)
    other = store_of_other_images(path, tmp_path / "other")
    with pytest.raises(StoreError, match="holds a store of other images: choose another"):
        push(str(other), TARGET, MIT)
    set_attributes(path, "features/enc", {"fingerprint": {"name": "another"}})
    with pytest.raises(StoreError, match="features/enc was encoded with something else"):
        push(str(path), TARGET, MIT)


def store_of_other_images(path, copy):
    shutil.copytree(path, copy)
    meta = json.loads((copy / "zarr.json").read_text())
    meta["attributes"]["repa_pipe"]["index_digest"] = "1" * 64
    (copy / "zarr.json").write_text(json.dumps(meta))
    record_digests(copy)
    return copy


def test_writing_in_place_is_refused_by_name(hub, make_store):
    path, _ = make_store()
    push(str(path), TARGET, MIT)
    with pytest.raises(ConfigError, match=r"--store.*read-only: encode into a folder, then run"):
        EncodeConfig(source="images", store=TARGET)
    with open_store(TARGET) as store, pytest.raises(StoreError, match="read-only"):
        store.upload_file("zarr.json")


@pytest.mark.slow
def test_the_card_describes_the_store_and_keeps_what_its_author_has_written(hub, make_store, tmp_path, monkeypatch):
    path, _ = make_store()
    push(str(path), TARGET, PushOptions(license="mit", citation="Pictures of owls, 2026."))
    card = hub.files("dataset", REPO)["README.md"].decode()
    for text in (
        "license: mit",
        "- n<1K",
        "50 of 3 classes",
        "Pictures of owls, 2026.",
        "`features/enc` | enc",
        "| 4 |",
    ):
        assert text in card
    repository = hub.repositories["dataset", REPO]
    edited = card.replace("license: mit", "license: cc0-1.0\npretty_name: Owls").replace(
        "# store", "# Owls\n\nMy text."
    )
    files = repository.commits[repository.branches["main"]]
    repository.commit("main", files | {"README.md": edited.replace("Pictures of owls", "x").encode()}, "edit")
    push(str(path), TARGET, PushOptions(citation="Pictures of owls, 2026."))
    assert hub.files("dataset", REPO)["README.md"].decode() == edited
    own = b"---\nlicense: other\n---\nAll my own.\n"
    repository.commit("main", files | {"README.md": own}, "replaced")
    push(str(path), TARGET, PushOptions())
    assert hub.files("dataset", REPO)["README.md"] == own


@pytest.mark.slow
def test_the_code_in_the_card_runs(hub, make_store, tmp_path, monkeypatch, capsys):
    path, _ = make_store()
    push(str(path), TARGET, MIT)
    card = hub.files("dataset", REPO)["README.md"].decode()
    (words,) = re.findall(r"^    repa-pipe store pull (\S+) (\S+)$", card, re.MULTILINE)
    monkeypatch.chdir(tmp_path)
    pull(*words, PullOptions())
    for block in re.findall(r"```python\n(.*?)```", card, re.DOTALL):
        exec(block, {})
    assert "torch.Size([32])" in capsys.readouterr().out


@pytest.mark.slow
def test_a_full_disk_ends_a_pull_in_one_line_and_leaves_a_valid_store(hub, make_store, tmp_path, monkeypatch):
    path, _ = make_store()
    push(str(path), TARGET, MIT)
    copy = tmp_path / "copy"
    with monkeypatch.context() as patch:
        patch.setattr(hub_pull, "free_bytes", lambda folder: 1000)
        with pytest.raises(StoreError, match=r"needs 147 KB, and 1\.0 KB are free: free some space"):
            pull(TARGET, str(copy), PullOptions())
    assert not copy.exists()
    move, moved = hub_pull._move, []

    def move_until_full(staged, place):
        moved.append(place)
        if len(moved) > 20:
            raise OSError(errno.ENOSPC, "No space left on device")
        move(staged, place)

    monkeypatch.setattr(hub_pull, "_move", move_until_full)
    with pytest.raises(StoreError, match=f"^the disk of {copy} is full: free some space, then re-run") as raised:
        pull(TARGET, str(copy), PullOptions())
    assert "\n" not in str(raised.value)
    assert verify_store(copy).ok


@pytest.mark.slow
def test_the_commands_push_pull_and_show_a_store_without_a_traceback(hub, make_store, tmp_path, run_cli):
    path, _ = make_store()
    code, out, err = run_cli("store", "push", path, TARGET, "--license", "mit", "--group", "latents/tiny")
    assert (code, "latents/tiny" in out, "features/enc" in out) == (0, True, False), err
    assert run_cli("store", "pull", TARGET, tmp_path / "copy", "--shards", "0:2")[0] == 0
    code, out, _ = run_cli("store", "info", TARGET)
    assert (code, "latents/tiny: 4 of 4 shards" in out) == (0, True)
    assert run_cli("store", "verify", TARGET)[0] == 0
    assert "0003.png" in run_cli("store", "ls", TARGET)[1]
    for words in (("push", path, "hf://alice/x"), ("pull", TARGET + "x", tmp_path / "x"), ("info", TARGET + "x")):
        code, out, err = run_cli("store", *words)
        assert (code, err.count("\n")) == (2, 1), err
