"""Source plug-ins: entry points of installed packages, in the group `repa_pipe.sources`.

A plug-in is code, so it runs only when the user names it. Nothing that is read from a store names code.
"""

from importlib.metadata import entry_points

from ..errors import SourceError
from .source import Source

GROUP = "repa_pipe.sources"


def plug_in_names() -> list[str]:
    """Return the names of the installed plug-ins. Imports none of them."""
    return sorted({point.name for point in entry_points(group=GROUP)})


def open_plug_in(name: str, path: str) -> Source:
    """Call the plug-in `name` with `path`.

    Args:
        name: one of `plug_in_names()`.
        path: any text that the plug-in accepts.

    Raises:
        SourceError: the plug-in cannot be imported, or does not return a Source.
    """
    point = next(iter(entry_points(group=GROUP, name=name)))
    called = f"the source plug-in {name} ({point.value})"
    try:
        make = point.load()
    except (ImportError, AttributeError) as error:
        raise SourceError(f"{called} cannot be loaded: {error}") from error
    if not callable(make):
        raise SourceError(f"{called} is {make!r}: expected a class or function that returns a Source")
    source = make(path)
    if not isinstance(source, Source):
        raise SourceError(f"{called} returned {type(source).__name__}: expected a repa_pipe.sources.Source")
    source.kind = name
    return source
