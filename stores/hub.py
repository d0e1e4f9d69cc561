"""Repositories of the Hugging Face Hub, and stores in those of datasets: `hf://datasets/USER/NAME[@REVISION]`.

A revision is a branch, a tag or the SHA of a commit; without one, the branch `main`. A store is read at one commit: its
location is pinned to the SHA before anything is read. HF_ENDPOINT and HF_TOKEN apply as in huggingface_hub.
"""

from __future__ import annotations

import hashlib
import logging
import os
import random
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Self, TypeVar

from ..converter import read_json
from ..errors import ConfigError, RemoteError, RepaPipeError, StoreError, first_line
from . import retries

if TYPE_CHECKING:
    from huggingface_hub import HfApi

SCHEME = "hf://"
DATASET = "dataset"
PULLED_FILE = "pulled.json"  # in a folder that `store pull` has written: where from
READ_ONLY = "stores on the Hugging Face Hub are read-only: write to a folder, then run 'repa-pipe store push'"
_SHA = re.compile(r"[0-9a-f]{40}")
_TRANSIENT = (408, 429, 500, 502, 503, 504)
_NETWORK = ("requests", "urllib3", "httpx", "httpx2", "httpcore", "httpcore2")  # packages of errors of connections

logger = logging.getLogger(__name__)
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Repository:
    """A repository `USER/NAME` of one kind, and a revision of it; None for the branch `main`."""

    kind: ClassVar[str]
    prefix: ClassVar[str]  # of its name as a location
    pattern: ClassVar[re.Pattern[str]]  # of a location: the repository, and the revision or None
    expected: ClassVar[str]

    repo: str
    revision: str | None = None

    @classmethod
    def parse(cls, text: str) -> Self:
        """Raise ConfigError unless `text` is a location of this kind, `<prefix>USER/NAME[@REVISION]`."""
        found = cls.pattern.fullmatch(text)
        if found is None:
            raise ConfigError(f"{text}: expected {cls.expected}")
        return cls(found[1], found[2])

    def __str__(self) -> str:
        return f"{self.prefix}{self.repo}" + (f"@{self.revision}" if self.revision else "")

    @property
    def is_pinned(self) -> bool:
        """Whether the revision is the SHA of a commit."""
        return bool(self.revision and _SHA.fullmatch(self.revision))


@dataclass(frozen=True, slots=True)
class HubLocation(Repository):
    """A dataset repository that holds a store."""

    kind = DATASET
    prefix = f"{SCHEME}datasets/"
    pattern = re.compile(r"hf://datasets/([\w.-]+/[\w.-]+)(?:@([^@\s]+))?/?")
    expected = "hf://datasets/USER/NAME, or hf://datasets/USER/NAME@REVISION"

    @property
    def page(self) -> str:
        """Address of the repository for a browser."""
        return f"{endpoint()}/datasets/{self.repo}"


class HubFile(NamedTuple):
    """A file in a repository."""

    size: int
    sha256: str | None  # of LFS files; None for those in git itself
    blob: str  # git's SHA-1 of the file, or of the pointer to it


class FileDigests:
    """The digests that the Hub may have of a file, of which `update` is passed the content in parts.

    Args:
        size: bytes of the file.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._sha256, self._sha1 = hashlib.sha256(), hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)

    def update(self, part: bytes) -> None:
        """Add the next part."""
        self._sha256.update(part)
        self._sha1.update(part)

    def are_of(self, found: HubFile | None) -> bool:
        """Return whether this file in a repository has the content."""
        if found is None or found.size != self.size:
            return False
        if found.sha256:
            return found.sha256 == self._sha256.hexdigest()
        return found.blob == self._sha1.hexdigest()


def is_hub(path: str | Path | None) -> bool:
    """Return whether a store or a checkpoint is specified by a location on the Hugging Face Hub."""
    return str(path).startswith(SCHEME)


def endpoint() -> str:
    """Return the address of the Hub."""
    return (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")


def client() -> HfApi:
    """Return the client of the Hub, which takes the token from HF_TOKEN or from `hf auth login`."""
    from huggingface_hub import HfApi
    from huggingface_hub.utils import disable_progress_bars  # type: ignore[attr-defined]

    disable_progress_bars()  # they would be one per file
    return HfApi(endpoint=endpoint())


def pinned(path: str) -> str:
    """Return the location of a store with the SHA of its revision, which is asked for unless it is given.

    Raises:
        ConfigError: `path` has another form.
        RemoteError: there is no such repository or revision, or the Hub cannot be reached.
    """
    location = HubLocation.parse(path)
    if location.is_pinned:
        return str(location)
    info = attempt(
        str(location),
        lambda: client().repo_info(location.repo, repo_type=DATASET, revision=location.revision),
    )
    return str(HubLocation(location.repo, info.sha))


def download_address(path: str) -> str:
    """Return the URL below which the files of a pinned store are."""
    location = HubLocation.parse(path)
    if not location.is_pinned:
        raise StoreError(f"{path} is not a commit: expected hf://datasets/{location.repo}@SHA")
    return f"{location.page}/resolve/{location.revision}"


def authorization() -> dict[str, str]:
    """Return the headers that carry the user's token, if there is one."""
    from huggingface_hub import get_token

    token = get_token()
    return {"authorization": f"Bearer {token}"} if token else {}


def list_files(location: Repository) -> dict[str, HubFile]:
    """Return all files of a revision by path; RemoteError as `attempt`."""
    return attempt(str(location), lambda: files_of(client(), location))


def files_of(api: HfApi, location: Repository) -> dict[str, HubFile]:
    """Return all files of a revision by path, with the errors of huggingface_hub."""
    from huggingface_hub.hf_api import RepoFile

    tree = api.list_repo_tree(location.repo, recursive=True, revision=location.revision, repo_type=location.kind)
    return {
        entry.path: HubFile(entry.size, entry.lfs.sha256 if entry.lfs else None, entry.blob_id)
        for entry in tree
        if isinstance(entry, RepoFile)
    }


def missing_store_hint(path: str) -> str:
    """Return why a repository has no zarr.json, if it holds other files of a store."""
    if not is_hub(path):
        return ""
    location = HubLocation.parse(path)
    tree = attempt(
        path, lambda: list(client().list_repo_tree(location.repo, revision=location.revision, repo_type=DATASET))
    )
    if {entry.path for entry in tree} & {"commits", "latents", "features"}:
        return "; a push to it has not finished: re-run 'repa-pipe store push'"
    return ""


def pull_hint(store: Path) -> str:
    """Return the command that fetches what `store pull` has left out, empty for a folder that it has not written."""
    if not (store / PULLED_FILE).is_file():
        return ""
    origin = read_json(store / PULLED_FILE, StoreError).get("origin")
    return f"repa-pipe store pull {origin} {store}"


def attempt(location: str, call: Callable[[], Result]) -> Result:
    """Return the result of calls of huggingface_hub, repeated while that may help.

    Raises:
        RemoteError: the Hub refuses, or does not answer for `retries.RETRY_S` seconds.
        OSError: the disk is full, or a local file cannot be read.
    """
    start, pause = time.monotonic(), retries.FIRST_PAUSE_S
    while True:
        try:
            return call()
        except RepaPipeError:
            raise
        except Exception as error:
            found = next((each for each in _chain(error) if _status(each) or _is_of_network(each)), None)
            if found is None and not _is_of_hub(error):
                raise
            status, elapsed = _status(found), time.monotonic() - start
            may_help = found is not None and (status is None or status in _TRANSIENT)
            wait = max(pause * random.uniform(0.5, 1), _retry_after(found))
            if not may_help or elapsed + wait > retries.RETRY_S:
                raise RemoteError(_message(location, found or error, status, elapsed)) from error
            logger.warning("%s: %s; retrying in %.1f s", location, _reason(found or error, status), wait)
        time.sleep(wait)
        pause = min(2 * pause, retries.LONGEST_PAUSE_S)


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and those that it was raised from."""
    found: BaseException | None = error
    while found is not None:
        yield found
        found = found.__cause__ or found.__context__


def _status(error: BaseException | None) -> int | None:
    status = getattr(getattr(error, "response", None), "status_code", None)
    return status if isinstance(status, int) else None


def _is_of_network(error: BaseException) -> bool:
    return type(error).__module__.split(".")[0] in _NETWORK


def _is_of_hub(error: BaseException) -> bool:
    return type(error).__module__.startswith("huggingface_hub")


def _retry_after(error: BaseException | None) -> float:
    """Return the seconds after which the server asks to repeat a request, 0 if it does not."""
    response: Any = getattr(error, "response", None)
    text = "" if response is None else str(response.headers.get("Retry-After", ""))
    return float(text) if text.isdigit() else 0.0


def _reason(error: BaseException, status: int | None) -> str:
    """Return an error in a few words."""
    if status is None:
        return first_line(error) or type(error).__name__
    said = getattr(error, "response").headers.get("X-Error-Message")  # noqa: B009 - it has a status
    return f"{status} {said}" if said else str(status)


def _message(location: str, error: BaseException, status: int | None, elapsed: float) -> str:
    retried = f", retried for {elapsed:.0f} s" if elapsed >= 1 else ""
    return f"{location} ({_reason(error, status)}{retried}): {_remedy(location, type(error).__name__, status)}"


def _remedy(location: str, kind: str, status: int | None) -> str:
    repo = location.removeprefix(SCHEME).partition("@")[0]
    token = f"create a token at {endpoint()}/settings/tokens, then set HF_TOKEN or run 'hf auth login'"
    by_kind = {
        "RevisionNotFoundError": f"{repo} has no such branch, tag or commit",
        "GatedRepoError": f"accept the conditions of {endpoint()}/{repo} in a browser first",
        "OfflineModeIsEnabled": "unset HF_HUB_OFFLINE",
    }
    by_status = {
        401: f"the token is missing or wrong, or there is no such repository: {token}",
        403: f"the token may not do this: {token}",
        404: f"{repo} does not exist, or is private and not open to your token: check the name and HF_TOKEN",
        412: "another commit has changed the repository: re-run the same command",
    }
    if kind in by_kind:
        return by_kind[kind]
    if status is None or status in _TRANSIENT:
        return "check the network and HF_ENDPOINT, then re-run the same command to resume"
    return by_status.get(status, "see the answer of the Hub, then re-run the same command")
