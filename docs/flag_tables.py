"""Print the tables of docs/coming-from-repa.md: `python docs/flag_tables.py`."""

import dataclasses
import re

from repa_pipe.config import Config, SampleConfig, TrainConfig, flag
from repa_pipe.config.foreign_flags import FOREIGN_FLAGS, REPA_DEFAULTS, ForeignFlag
from repa_pipe.config.translation import answer

_CONFIGS = {config.kind: config for config in (TrainConfig, SampleConfig)}


def foreign_table(command: str) -> str:
    """Return a Markdown table of the flags of other programs and of what replaces them."""
    rows = [f"| {_typed(entry)} | {', '.join(entry.programs)} | {_here(entry)} |" for entry in FOREIGN_FLAGS[command]]
    return "\n".join(["| flag | program | here |", "|---|---|---|", *rows])


def _typed(entry: ForeignFlag) -> str:
    value = "" if not entry.takes_value or not entry.flag.startswith("--") else " VALUE"
    return ", ".join(f"`{entry.flag} {each}`" for each in entry.values) or f"`{entry.flag}{value}`"


def _here(entry: ForeignFlag) -> str:
    text = answer(entry, "VALUE")
    return text.replace(f"use {used}", f"`{used}`") if (used := (entry.use or "").format(value="VALUE")) else text


def defaults_table(command: str) -> str:
    """Return a Markdown table of the flags with REPA's name whose default differs from REPA's."""
    rows = [
        f"| `{name}` | {_text(theirs)} | {here} |"
        for name, theirs in REPA_DEFAULTS[command].items()
        if (here := _default(_CONFIGS[command], name)) != _text(theirs)
    ]
    return "\n".join(["| flag | default of REPA | default here |", "|---|---|---|", *rows])


def same_flags(command: str) -> str:
    """Return the flags with REPA's name and default, as a list in one paragraph."""
    same = [
        name for name, theirs in REPA_DEFAULTS[command].items() if _default(_CONFIGS[command], name) == _text(theirs)
    ]
    return ", ".join(f"`{name}`" for name in same)


def _default(config: type[Config], name: str) -> str:
    (field,) = (each for each in dataclasses.fields(config) if flag(each.name) == name)
    stated = re.search(r"Default: (.+?)\.?$", field.metadata["help"])
    return stated[1] if stated else _text(field.default)


def _text(value: object) -> str:
    if value is None:
        return "none; it is required"
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else str(value)


if __name__ == "__main__":
    for command in FOREIGN_FLAGS:
        print(f"\n## {command}\n")
        if command in REPA_DEFAULTS:
            print(same_flags(command), defaults_table(command), sep="\n\n", end="\n\n")
        print(foreign_table(command))
