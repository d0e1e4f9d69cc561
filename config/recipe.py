"""Recipes: a published method as a TOML file of settings of `repa-pipe train`.

A method is data, not a branch in the training loop. `recipes/NAME.toml` ships with the package; the path of any other
TOML file works, too. Flags on the command line override a recipe.
"""

from __future__ import annotations

import tomllib
from collections.abc import Collection, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from ..converter import structure, unstructure
from ..errors import ConfigError
from .train import TrainConfig

SUFFIX = ".toml"


def recipe_names() -> list[str]:
    """Return the names of the recipes that ship with the package."""
    return sorted(item.name.removesuffix(SUFFIX) for item in _folder().iterdir() if item.name.endswith(SUFFIX))


def read_recipe(name: str) -> dict[str, Any]:
    """Return the settings of a recipe: values of fields of TrainConfig.

    Args:
        name: a name among `recipe_names()`, or the path of a TOML file.

    Raises:
        ConfigError: there is no such recipe, it is not valid TOML, or a key or value is not one of `train`'s.
    """
    path = Path(name)
    packaged = _folder() / f"{name}{SUFFIX}"
    if path.suffix != SUFFIX and not packaged.is_file():
        raise ConfigError(f"--recipe is {name!r}: expected one of {', '.join(recipe_names())}, or a .toml file")
    try:
        text = path.read_text(encoding="utf-8") if path.suffix == SUFFIX else packaged.read_text(encoding="utf-8")
        values = tomllib.loads(text)
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"--recipe {name} cannot be read ({error})") from error
    config = structure({"store": "", **values}, TrainConfig, f"recipe {name}")
    settings = unstructure(config)
    return {key: tuple(settings[key]) if isinstance(settings[key], list) else settings[key] for key in values}


def apply_recipe(name: str, given: Collection[str], options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of `train` with the settings of a recipe in place of defaults.

    Args:
        name: as for `read_recipe`.
        given: names of the options that the user passed; they override the recipe.
        options: the values of all options, including defaults.

    Raises:
        ConfigError: as `read_recipe`.
    """
    settings = {key: value for key, value in read_recipe(name).items() if key not in given}
    return {**options, **settings}


def _folder() -> Any:
    return files(__package__) / "recipes"
