"""The preview of a command: its resolved settings as TOML, below comments about what it would read and write."""

from __future__ import annotations

from dataclasses import dataclass

from ...config import Config
from ...converter import to_toml


@dataclass(frozen=True, slots=True)
class Preview:
    """What a command would do."""

    configs: tuple[Config, ...]  # resolved
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    runs: tuple[str, ...] = ()  # commands
    omitted: tuple[str, ...] = ()  # fields of the configs that are not options of the command

    def describe(self) -> str:
        """Return a TOML file that `--config` takes back."""
        lines = ["# dry run: nothing was written"]
        lines += [f"# reads:  {line}" for line in self.reads]
        lines += [f"# runs:   {line}" for line in self.runs]
        lines += [f"# writes: {line}" for line in self.writes or ("nothing",)]
        values = {name: value for config in self.configs for name, value in config.as_json().items()}
        values = {name: value for name, value in values.items() if name not in self.omitted}
        return "\n".join([*lines, "", to_toml(values)])
