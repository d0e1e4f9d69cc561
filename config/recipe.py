"""Recipes: a published method as a TOML file of settings of `repa-pipe train`.

A method is data, not a branch in the training loop. `recipes/NAME.toml` ships with the package; the path of any other
TOML file works, too. Flags and `--config` override a recipe.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from ..converter import read_toml, structure
from ..errors import ConfigError
from .settings_file import check_settings
from .train import TrainConfig

SUFFIX = ".toml"


@dataclass(frozen=True, slots=True)
class About:
    """The table `[about]` of a recipe.

    Attributes:
        summary: the method in one line.
        source: the paper.
        published: the result that the authors published, or that they published none.
    """

    summary: str
    source: str
    published: str


@dataclass(frozen=True, slots=True)
class Recipe:
    """A recipe: the values of some fields of TrainConfig; `about` is None if a user's recipe does not have it."""

    settings: dict[str, Any]
    about: About | None


def recipe_names() -> list[str]:
    """Return the names of the recipes that ship with the package."""
    return sorted(item.name.removesuffix(SUFFIX) for item in _folder().iterdir() if item.name.endswith(SUFFIX))


def read_recipe(name: str) -> Recipe:
    """Read a recipe.

    Args:
        name: a name among `recipe_names()`, or the path of a TOML file.

    Raises:
        ConfigError: there is no such recipe, it is not valid TOML, or a key or value is not one of `train`'s.
    """
    path = Path(name)
    packaged = _folder() / f"{name}{SUFFIX}"
    if path.suffix != SUFFIX and not packaged.is_file():
        raise ConfigError(f"--recipe is {name!r}: expected one of {', '.join(recipe_names())}, or a .toml file")
    values = read_toml(path if path.suffix == SUFFIX else packaged, f"--recipe {name}")
    about = values.pop("about", None)
    return Recipe(
        check_settings(values, (TrainConfig,), f"recipe {name}"),
        None if about is None else structure(about, About, f"recipe {name}: about"),
    )


def _folder() -> Any:
    return files(__package__) / "recipes"
