"""`repa-pipe recipes`: the recipes that ship with the package."""

from __future__ import annotations

from ...config import read_recipe, recipe_names
from ..runtime.tables import text_table


def run() -> str:
    """Return a table of all recipes: name, summary, paper, published result."""
    found = [(name, read_recipe(name).about) for name in recipe_names()]
    rows = [(name, about.summary, about.source, about.published) for name, about in found if about]
    return text_table(("recipe", "method", "source", "published result"), rows)
