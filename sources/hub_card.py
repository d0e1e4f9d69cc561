"""The dataset card of the Hugging Face Hub: a README.md whose front matter states the files of each split."""

import glob
from pathlib import Path, PurePath
from typing import Any

from ..converter import shown
from ..errors import SourceError, first_line

CARD_FILE = "README.md"


def has_card(folder: str) -> bool:
    """Return whether a folder contains a README with front matter."""
    try:
        with Path(folder, CARD_FILE).open("rb") as file:
            return file.read(4).strip() == b"---"
    except OSError:
        return False


def states_files(folder: str, suffix: str) -> bool:
    """Return whether the datasets of the card consist of files with this suffix."""
    try:
        configs = _configs(folder) if has_card(folder) else []
        patterns = [pattern for config in configs for found in _patterns(folder, config).values() for pattern in found]
    except SourceError:
        return False
    return bool(_matches(folder, patterns, suffix))


def files_by_split(folder: str, suffix: str) -> dict[str | None, list[str]]:
    """Return the sorted files of each split that the card states; empty if there is no card, or it states none.

    Raises:
        SourceError: the card is invalid, states several configurations, or states files that do not exist.
    """
    configs = _configs(folder) if has_card(folder) else []
    if not configs:
        return {}
    if len(configs) > 1:
        names = shown(", ".join(str(config.get("config_name")) for config in configs), 200)[1:-1]
        each = (pattern for found in _patterns(folder, configs[0]).values() for pattern in found)
        example = shown(next(each, "*").removesuffix(suffix) + suffix, 200)[1:-1]
        raise SourceError(
            f"{folder} contains several datasets ({names}; configs in {CARD_FILE}): specify the files of one with a "
            f"glob, such as '{folder}/{example}'"
        )
    patterns = _patterns(folder, configs[0])
    files = {split: _matches(folder, found, suffix) for split, found in patterns.items()}
    if not any(files.values()):
        stated = ", ".join(pattern for found in patterns.values() for pattern in found)
        raise SourceError(
            f"{folder} contains no {suffix} files that its {CARD_FILE} states ({shown(stated, 200)[1:-1]}): download "
            f"them, or specify files with a glob, such as '{folder}/*{suffix}'"
        )
    return {split: found for split, found in files.items() if found}  # others have not been downloaded


def _configs(folder: str) -> list[Any]:
    """Return the configurations with data files."""
    from huggingface_hub import metadata_load

    path = Path(folder, CARD_FILE)
    try:
        configs = (metadata_load(path) or {}).get("configs") or []
        return [config for config in configs if config.get("data_files")]
    except Exception as error:  # also those of the YAML parser
        raise SourceError(f"{path} has invalid front matter ({first_line(error)}): fix or remove it") from None


def _patterns(folder: str, config: Any) -> dict[str | None, list[str]]:
    """Return the patterns of each split, in any of the three forms that the Hub accepts."""
    data_files = config["data_files"]
    if isinstance(data_files, dict):
        data_files = [{"split": split, "path": path} for split, path in data_files.items()]
    entries = data_files if isinstance(data_files, list) else [data_files]
    patterns: dict[str | None, list[str]] = {}
    for entry in entries:
        stated = entry if isinstance(entry, dict) else {"split": "train", "path": entry}
        path: Any = stated.get("path")
        split = str(stated.get("split", "train"))
        patterns.setdefault(split, []).extend(path if isinstance(path, list) else [path])
    if not all(_is_inside(pattern) for found in patterns.values() for pattern in found):
        raise SourceError(f"{folder}/{CARD_FILE} has invalid data_files ({shown(data_files)}): fix or remove it")
    return patterns


def _is_inside(pattern: object) -> bool:
    return isinstance(pattern, str) and not PurePath(pattern).is_absolute() and ".." not in PurePath(pattern).parts


def _matches(folder: str, patterns: list[str], suffix: str) -> list[str]:
    found = {name for pattern in patterns for name in glob.glob(pattern, root_dir=folder, recursive=True)}  # noqa: PTH207
    return sorted(name for name in found if name.endswith(suffix))
