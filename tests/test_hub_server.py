"""The server that stands in for the Hugging Face Hub answers huggingface_hub as the Hub does."""

from pathlib import Path

import pytest
from huggingface_hub import CommitOperationAdd, HfApi, hf_hub_download, snapshot_download
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

BINARY = bytes(range(256)) * 40


@pytest.fixture
def api(hub):
    return HfApi(endpoint=hub.url)


@pytest.mark.parametrize("kind", ["model", "dataset"])
def test_uploaded_files_are_listed_and_downloaded(hub, api, tmp_path, kind):
    assert api.whoami()["name"] == "alice"
    api.create_repo("alice/things", repo_type=kind)
    api.create_repo("alice/things", repo_type=kind, exist_ok=True)
    contents = {"README.md": b"---\nlicense: mit\n---\nText\n", "deep/er/data": BINARY}
    operations = [CommitOperationAdd(path, data) for path, data in contents.items()]
    commit = api.create_commit("alice/things", operations, commit_message="two files", repo_type=kind)
    assert api.repo_info("alice/things", repo_type=kind).sha == commit.oid
    hub.page = 2
    listed = {entry.path: entry for entry in api.list_repo_tree("alice/things", recursive=True, repo_type=kind)}
    assert set(listed) == {*contents, ".gitattributes", "deep", "deep/er"}
    assert listed["README.md"].lfs is None
    assert (listed["deep/er/data"].lfs.size, listed["deep/er/data"].size) == (len(BINARY), len(BINARY))
    assert {entry.path for entry in api.list_repo_tree("alice/things", repo_type=kind)} == {
        "README.md",
        ".gitattributes",
        "deep",
    }
    folder = snapshot_download("alice/things", repo_type=kind, local_dir=tmp_path / "copy", endpoint=hub.url)
    assert {path: (tmp_path / "copy" / path).read_bytes() for path in contents} == contents
    assert folder == str(tmp_path / "copy")
    assert hub.files(kind, "alice/things") == contents | {
        ".gitattributes": hub.files(kind, "alice/things")[".gitattributes"]
    }


def test_a_file_that_was_uploaded_before_is_not_uploaded_again(hub, api):
    api.create_repo("alice/things")
    for path in ("one", "two"):
        api.create_commit("alice/things", [CommitOperationAdd(path, BINARY)], commit_message=path)
    assert len(hub.requests("^PUT")) == 1
    assert hub.files("model", "alice/things")["two"] == BINARY


def test_older_revisions_and_branches_stay_readable(hub, api):
    api.create_repo("alice/things")
    first = api.create_commit("alice/things", [CommitOperationAdd("f", b"1")], commit_message="1").oid
    api.create_branch("alice/things", branch="next")
    api.create_commit("alice/things", [CommitOperationAdd("f", b"2")], commit_message="2", revision="next")
    found = [hub.files("model", "alice/things", revision)["f"] for revision in (first, "main", "next")]
    assert found == [b"1", b"1", b"2"]
    with pytest.raises(HfHubHTTPError, match="412"):
        api.create_commit(
            "alice/things", [CommitOperationAdd("f", b"3")], commit_message="3", parent_commit=first, revision="next"
        )


def test_what_is_missing_or_closed_is_refused_by_kind(hub, api):
    api.create_repo("alice/things", private=True)
    with pytest.raises(RepositoryNotFoundError):
        api.repo_info("alice/others")
    with pytest.raises(RepositoryNotFoundError):
        HfApi(endpoint=hub.url, token=False).repo_info("alice/things")
    with pytest.raises(RevisionNotFoundError):
        api.repo_info("alice/things", revision="next")
    with pytest.raises(EntryNotFoundError):
        hf_hub_download("alice/things", "missing", endpoint=hub.url)
    with pytest.raises(HfHubHTTPError, match=r"401|Invalid user token"):
        HfApi(endpoint=hub.url, token="hf_wrong").whoami()
    with pytest.raises(HfHubHTTPError, match="403"):
        api.create_repo("bob/things")


def test_faults_reach_the_client_and_end(hub, api, tmp_path):
    api.create_repo("alice/things")
    api.create_commit("alice/things", [CommitOperationAdd("f", BINARY)], commit_message="1")
    hub.fail_times(1, "^POST .*/commit/", lambda request: request.refuse(503))
    with pytest.raises(HfHubHTTPError, match="503"):
        api.create_commit("alice/things", [CommitOperationAdd("g", BINARY)], commit_message="2")
    hub.fail_times(1, "^GET /[0-9a-f]{64}", lambda request: request.answer_half())
    with pytest.raises(Exception, match=r"reset by peer|roken"):
        hf_hub_download("alice/things", "f", local_dir=tmp_path, endpoint=hub.url)
    assert Path(hf_hub_download("alice/things", "f", local_dir=tmp_path, endpoint=hub.url)).read_bytes() == BINARY
