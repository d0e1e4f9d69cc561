"""Command lines of other programs: which of their flags are not ours, and what to use instead."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

from .foreign_flags import FOREIGN_FLAGS, ForeignFlag

PAGE = "docs/coming-from-repa.md"


@dataclass(slots=True)
class Translation:
    """A command line, split into our arguments and flags of other programs.

    Attributes:
        args: our arguments, with dashes in place of underscores in the names of flags.
        words: those of them that are given by position.
        foreign: the other flags as they were typed, with their values.
    """

    args: list[str] = field(default_factory=list)
    words: list[str] = field(default_factory=list)
    foreign: list[tuple[ForeignFlag, str, str]] = field(default_factory=list)  # entry, typed, value

    def describe(self, command: str, required: Sequence[str]) -> str:
        """Return one line per foreign flag, and the equivalent command if there is one.

        Args:
            command: the name of the command.
            required: flags that the command requires.
        """
        lines = [f"  {typed}: {answer(entry, value)}" for entry, typed, value in self.foreign]
        if all(entry.use is not None for entry, _, _ in self.foreign):
            lines.append(f"Use: {shlex.join(['repa-pipe', command, *self._equivalent(command, required)])}")
        return "\n".join([f"flags of other programs ({PAGE}):", *lines])

    def _equivalent(self, command: str, required: Sequence[str]) -> list[str]:
        """Return our arguments: those typed, then replacements in the order of the table, then what is missing."""
        order = FOREIGN_FLAGS[command]
        found: dict[str, list[str]] = {}
        for entry, _, value in sorted(self.foreign, key=lambda each: order.index(each[0])):
            for word in shlex.split(entry.use or ""):
                if word.startswith("--"):
                    current = found[word] = [word]
                else:
                    current.append(word.format(value=value))
        given = {word.partition("=")[0] for word in self.args}
        by_position = [flag for flag in required if flag not in given][: len(self.words)]
        for flag in required:
            placeholder = [flag, flag.removeprefix("--").upper()]
            if flag in by_position and found.get(flag) == placeholder:
                del found[flag]
            elif flag not in by_position and flag not in given:
                found.setdefault(flag, placeholder)
        return [*self.args, *(word for group in found.values() for word in group)]


def answer(entry: ForeignFlag, value: str) -> str:
    """Return what to do about a foreign flag, in a few words."""
    reason = entry.reason.format(value=value)
    if entry.use is None:
        return f"not available: {reason}"
    if not entry.use:
        return f"{reason}; remove it"
    return f"use {entry.use.format(value=value)}" + (f" ({reason})" if reason else "")


def translate(command: str, args: Sequence[str], own: Mapping[str, bool]) -> Translation:
    """Split a command line into our arguments and flags of other programs.

    Args:
        command: the name of the command.
        args: its arguments.
        own: the command's flags, and whether each takes a value.
    """
    result, rest = Translation(), list(args)
    while rest:
        word = rest.pop(0)
        if word == "--":
            result.args += [word, *rest]
            break
        name, equals, value = word.partition("=")
        follows = not equals and bool(rest) and not rest[0].startswith("--")
        entry = _find(command, name, rest[0] if follows else value)
        if entry is not None:
            takes_next = follows and entry.takes_value and name.startswith("--")
            value = rest.pop(0) if takes_next else value
            result.foreign.append((entry, f"{name} {value}" if takes_next else word, value))
            continue
        dashed = name.replace("_", "-")
        result.words += [] if word.startswith("-") else [word]
        result.args.append(word if name in own or dashed not in own else dashed + equals + value)
        if own.get(dashed) and not equals and rest:
            result.args.append(rest.pop(0))
    return result


def _find(command: str, name: str, value: str) -> ForeignFlag | None:
    """Return the entry for a flag with a value, or for a word that is not a file."""
    if not name.startswith("--") and Path(name).exists():
        return None
    entries = [entry for entry in FOREIGN_FLAGS.get(command, ()) if _is_named(entry, name)]
    fits = [entry for entry in entries if not entry.values or any(fnmatchcase(value, each) for each in entry.values)]
    return fits[0] if fits else None


def _is_named(entry: ForeignFlag, name: str) -> bool:
    if name.startswith("--"):
        names = {name, name.replace("_", "-")}
        negated = not entry.takes_value and entry.flag == "--" + name.replace("_", "-").removeprefix("--no-")
        return entry.flag in names or negated
    return entry.flag == name
