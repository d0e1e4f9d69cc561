"""Models in repositories of the Hugging Face Hub: `hf://USER/NAME[@REVISION]`.

A revision is a branch, a tag or the SHA of a commit; without one, the branch `main`. What is read is pinned to the SHA,
which results record. Files are kept in the cache of huggingface_hub, and are found there without a network. HF_ENDPOINT
and HF_TOKEN apply as in huggingface_hub.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from ...config import SampleConfig, TrainConfig
from ...errors import CheckpointError, first_line
from ...stores.hub import SCHEME, FileDigests, Repository, files_of, is_hub
from .exported import SUFFIX
from .run_folder import RunFolder

logger = logging.getLogger(__name__)

WEIGHTS = f"model{SUFFIX}"
CARD = "README.md"
_BLOCK = 16 << 20
Model = TypeVar("Model", SampleConfig, TrainConfig)


@dataclass(frozen=True, slots=True)
class HubModel(Repository):
    """A model repository."""

    kind = "model"
    prefix = SCHEME
    pattern = re.compile(r"hf://((?!datasets/)[\w.-]+/[\w.-]+)(?:@([^@\s]+))?")
    expected = "hf://USER/NAME, or hf://USER/NAME@REVISION, of a model"


def local_file(path: str) -> Path:
    """Return the path of a file of weights, downloaded if it is on the Hub.

    Raises:
        ConfigError: it is no name of a model on the Hub.
        CheckpointError: it cannot be downloaded, and is not in the cache.
    """
    if not is_hub(path):
        return Path(path)
    from huggingface_hub import hf_hub_download

    model = HubModel.parse(path)
    try:
        return Path(hf_hub_download(model.repo, WEIGHTS, revision=model.revision))
    # Each HTTP library that huggingface_hub has used fails with errors of its own. All of them become one message.
    except Exception as error:
        raise CheckpointError(f"{model} could not be downloaded ({reason_of(error)})") from error


def pinned(path: str) -> str:
    """Return the name of a model on the Hub with the SHA of its commit, downloaded now; other paths as given."""
    if not is_hub(path):
        return path
    found = local_file(path).parent.name  # the cache has a folder per commit
    model = replace(HubModel.parse(path), revision=found)
    if not model.is_pinned:
        raise CheckpointError(f"{path} has been cached as {found!r}, expected the SHA of a commit: clear the cache")
    return str(model)


def with_pinned_checkpoints(config: SampleConfig) -> SampleConfig:
    """Return the config with the SHAs of models on the Hub."""
    weaker = config.guidance_checkpoint
    return replace(config, checkpoint=pinned(config.checkpoint), guidance_checkpoint=weaker and pinned(weaker))


def with_recorded_weights(config: TrainConfig, run: RunFolder) -> TrainConfig:
    """Return the config with the commit from which a run has started, unless another commit is requested."""
    if not is_hub(config.init_from) or not run.checkpoints():
        return config
    wanted, recorded = HubModel.parse(str(config.init_from)), run.read_config().init_from
    if wanted.is_pinned or not is_hub(recorded) or HubModel.parse(str(recorded)).repo != wanted.repo:
        return config  # the comparison with the recorded settings names the difference
    return replace(config, init_from=recorded)


def with_pinned_weights(config: TrainConfig, run: RunFolder) -> TrainConfig:
    """Return the config with the commit of `--init-from`: that of the run, else that of the Hub."""
    config = with_recorded_weights(config, run)
    if not is_hub(config.init_from) or run.checkpoints():
        return config
    return replace(config, init_from=pinned(str(config.init_from)))


def upload(folder: Path, repo: str, private: bool) -> str:
    """Upload a folder to a model repository, created if there is none; return the SHA of the commit.

    Files that are there with the same content are not transferred. A card that differs from the folder's stays, since
    people edit it on the Hub. Every other file is compared with the Hub's digest after the upload.

    Raises:
        CheckpointError: the Hub refuses, cannot be reached, or holds other files after the upload.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    try:
        api.create_repo(repo, private=private, exist_ok=True)
        before = files_of(api, HubModel(repo, "main"))
        keeps_card = CARD in before and not _digests_of(folder / CARD).are_of(before[CARD])
        api.upload_folder(
            repo_id=repo,
            folder_path=folder,
            commit_message="Upload by repa-pipe export",
            ignore_patterns=[CARD] if keeps_card else None,
        )
        sha = str(api.model_info(repo).sha)
        found = files_of(api, HubModel(repo, sha))
    except Exception as error:  # as in `local_file`
        raise CheckpointError(
            f"{folder} could not be uploaded to {repo} ({reason_of(error)}); re-run the same command to resume"
        ) from error
    if keeps_card:
        logger.warning("%s of %s was changed on the Hub and is kept: delete it there to upload the new one", CARD, repo)
    for path in _files(folder):
        name = path.relative_to(folder).as_posix()
        if not (name == CARD and keeps_card) and not _digests_of(path).are_of(found.get(name)):
            raise CheckpointError(f"{name} on the Hub differs from {path} after the upload: re-run the same command")
    return sha


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file())


def _digests_of(path: Path) -> FileDigests:
    digests = FileDigests(path.stat().st_size)
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digests.update(block)
    return digests


def reason_of(error: Exception) -> str:
    """Return what has failed and what to do, in a few words."""
    from huggingface_hub import errors

    while isinstance(error, RuntimeError) and isinstance(error.__cause__, Exception):  # of an upload of one file
        error = error.__cause__
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, errors.LocalEntryNotFoundError | errors.OfflineModeIsEnabled):
        return "it is not in the cache, and the Hub cannot be reached: connect, or pass a file"
    if isinstance(error, errors.RevisionNotFoundError):
        return "the repository has no such revision"
    if isinstance(error, errors.EntryNotFoundError):
        return f"the repository has no {WEIGHTS}, which 'repa-pipe export … --to hub' uploads"
    if isinstance(error, errors.RepositoryNotFoundError) or status in {401, 403, 404}:
        return f"HTTP {status}: there is no such repository, or the token ($HF_TOKEN) has no access to it"
    if status == 429:
        return "HTTP 429: too many requests, wait some minutes"
    return f"HTTP {status}: the Hub has failed" if status else first_line(error)
