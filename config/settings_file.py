"""Settings in TOML files: the files of `--config`, and the recipes of `train --recipe`."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..converter import read_toml, require_known_keys, structure, unstructure
from ..errors import ConfigError
from .base import Config
from .source import names_plug_in


def read_settings(path: str, configs: Sequence[type[Config]], without: Collection[str] = ()) -> dict[str, Any]:
    """Return the settings in the file of `--config`: values of fields of `configs`, except `without`.

    Raises:
        ConfigError: the file cannot be read, is not valid TOML, or holds an unknown key or a wrong value, or names a
            source plug-in.
    """
    where = f"--config {path}"
    settings = check_settings(read_toml(Path(path), where), configs, where, without)
    if "source_kind" in settings and names_plug_in(settings["source_kind"]):
        raise ConfigError(
            f"{where}: source_kind {settings['source_kind']!r} is a plug-in, which no file can start: remove it, and "
            "pass --source-kind on the command line"
        )
    return settings


def check_settings(
    values: Mapping[str, Any], configs: Sequence[type[Config]], where: str, without: Collection[str] = ()
) -> dict[str, Any]:
    """Return settings with lists as tuples, if they are valid on their own; errors name `where`.

    Raises:
        ConfigError: a key is no field of `configs` or among `without`, or a value has a wrong type or is not allowed.
    """
    names = dict.fromkeys(field.name for config in configs for field in dataclasses.fields(config))
    require_known_keys(values, [name for name in names if name not in without], where)
    checked: dict[str, Any] = {}
    for config in configs:
        own = [field for field in dataclasses.fields(config) if field.name in values]
        # Fields that must be given, on the command line or in the file, are all text.
        required = {field.name: "" for field in dataclasses.fields(config) if field.default is dataclasses.MISSING}
        settings = unstructure(
            structure({**required, **{field.name: values[field.name] for field in own}}, config, where)
        )
        checked |= {field.name: settings[field.name] for field in own}
    return {name: tuple(value) if isinstance(value, list) else value for name, value in checked.items()}
