"""The base class of all configs: validation, JSON, command-line flags, and the settings that affect a result.

The help text of a field is in its metadata, so that a flag, its default and its meaning are in one place. Fields with
`affects_result=False` may change when a run is resumed, and are ignored when results are compared. Fields with
`chosen=True` are None until the work starts, chooses a value and records it: None equals any recorded value.
"""

from __future__ import annotations

import math
import os
import shlex
import typing
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, replace
from typing import Any, ClassVar, Literal, Self, TypeAlias

from ..converter import choices_of, hints_of, is_text, shown, structure, unstructure
from ..errors import ConfigError
from . import paths
from .paths import PathKind

TOKEN_PIXELS = 16  # side of the square of image pixels that one token covers: 8x downsampling, then 2x2 patches

# Sections of the help of every command, in this order.
SECTIONS = (
    DATA := "Data",
    MODEL := "Model",
    OBJECTIVE := "Objective",
    OPTIMIZATION := "Optimization",
    SAMPLING := "Sampling",
    STORAGE := "Storage",
    OUTPUT := "Output",
    HARDWARE := "Hardware",
)

Codec: TypeAlias = Literal["float16", "int8", "int4"]
Precision: TypeAlias = Literal["fp32", "fp16", "bf16"]

# Help texts that several commands share.
DEVICE_HELP = "Torch device of the models, such as cuda:1. Default: cuda if available, else cpu."
RAY_HELP = "Run on Ray: on this machine, or on the cluster given by --ray-address."
RAY_ADDRESS_HELP = (
    "Address of a Ray cluster, such as auto or ray://HOST:10001; implies --ray. "
    "Default: $RAY_ADDRESS, else this machine."
)
RESOLUTION_HELP = "Side of the square crops in pixels, a multiple of 16 (published: 256 and 512)."
ACTORS_HELP = "Number of Ray actors. Default: one per GPU in the cluster, else one per 2 CPUs."
MODEL_PRECISION_HELP = "Autocast precision of the model."
PATH_TYPE_HELP = (
    "Interpolant that the model was trained with. Default: as recorded in the checkpoint; if it records none, linear, "
    "with a warning."
)
LATENTS_STATS_HELP = (
    "File of latents_scale and latents_bias with which the latents of a checkpoint of iREPA are normalized. "
    "Default: those in the checkpoint, or REPA's."
)


def option(
    section: str,
    text: str,
    default: Any = MISSING,
    *,
    affects_result: bool = True,
    chosen: bool = False,
    path: PathKind | None = None,
    aliases: Mapping[str, str] | None = None,
    comma_separated: bool = False,
    may_be_infinite: bool = False,
) -> Any:
    """Declare a config field with its section of the help and its help text; without a default it is required.

    On the command line, `aliases` are other spellings of choices, and the values of a repeatable option that is
    `comma_separated` may also be given at once. Numbers must be finite unless they `may_be_infinite`.
    """
    metadata = {"section": section, "help": text, "affects_result": affects_result, "chosen": chosen, "path": path}
    metadata |= {"aliases": aliases or {}, "comma_separated": comma_separated, "may_be_infinite": may_be_infinite}
    return field(metadata=metadata) if default is MISSING else field(default=default, metadata=metadata)


def flag(name: str) -> str:
    """`batch_size` → `--batch-size`."""
    return "--" + name.replace("_", "-")


def no_flag(name: str) -> str:
    """`legacy` → `--no-legacy`."""
    return f"--no-{flag(name)[2:]}"


@dataclass(frozen=True, kw_only=True)
class Config:
    """Base class of all configs.

    Raises:
        ConfigError: a value is not among the choices of its `Literal` type, or `validate` refuses it.
    """

    kind: ClassVar[str]  # the command
    added_later: ClassVar[frozenset[str] | None] = None  # not in files of version 0.1.0; None: no field has to be

    def __post_init__(self) -> None:
        for name in self.repeatable_fields():  # a string would be a sequence of letters
            object.__setattr__(self, name, tuple(_as_list(getattr(self, name))))
        self._rewrite_paths(paths.plain)
        hints = hints_of(type(self))
        for item in fields(self):
            choices, value = choices_of(hints[item.name]), getattr(self, item.name)
            if choices and value is not None and value not in choices:
                raise ConfigError(f"{flag(item.name)} is {shown(value)}: expected one of {', '.join(choices)}")
            for each in value if isinstance(value, tuple) else (value,):
                problem = _why_unusable(each, item.metadata)
                self.require(problem is None, item.name, str(problem))
        self.validate()

    def _rewrite_paths(self, rewrite: Callable[[str, PathKind], str]) -> None:
        for item in fields(self):
            kind, value = item.metadata["path"], getattr(self, item.name)
            if kind is not None and isinstance(value, str):
                object.__setattr__(self, item.name, rewrite(value, kind))
            elif kind is not None and isinstance(value, tuple):
                object.__setattr__(self, item.name, tuple(rewrite(each, kind) for each in value))

    def absolute(self) -> Self:
        """Return the config with absolute paths, for processes whose current folder may be another one."""
        config = replace(self)
        config._rewrite_paths(paths.absolute)
        return config

    def validate(self) -> None:
        """Raise ConfigError, naming the flag, for values that cannot work."""

    def require(self, holds: bool, name: str, expected: str) -> None:
        """Raise ConfigError about the field `name` unless `holds`."""
        if not holds:
            raise ConfigError(f"{flag(name)} is {shown(getattr(self, name))}: {expected}")

    def require_at_least_1(self, *names: str) -> None:
        """Raise ConfigError for a field that is set and below 1."""
        for name in names:
            value = getattr(self, name)
            self.require(value is None or value >= 1, name, "must be at least 1")

    def require_seed(self, name: str) -> None:
        """Raise ConfigError unless the field is a seed."""
        self.require(0 <= getattr(self, name) < 1 << 63, name, "expected 0 to 2^63 - 1")

    def require_resolution(self, name: str) -> None:
        """Raise ConfigError for a side of images that is no positive multiple of a token's."""
        value = getattr(self, name)
        below = max(TOKEN_PIXELS, value // TOKEN_PIXELS * TOKEN_PIXELS)
        expected = f"expected a multiple of {TOKEN_PIXELS}, such as {below} or {below + TOKEN_PIXELS}"
        self.require(value >= TOKEN_PIXELS and value % TOKEN_PIXELS == 0, name, expected)

    def require_no_repeats(self, name: str) -> None:
        """Raise ConfigError when a repeatable flag has the same value twice."""
        values = getattr(self, name)
        self.require(len(set(values)) == len(values), name, "each value may be given only once")

    def as_json(self) -> dict[str, Any]:
        """Return plain JSON values: tuples become lists."""
        return unstructure(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any], where: str = "config") -> Self:
        """Build a config from the values of `as_json`; raise ConfigError, naming `where`, for anything else.

        Of the fields that affect the result, a file may lack only `added_later`: with a default for another one, the
        result would differ.
        """
        config = structure(values, cls, where)
        required = () if cls.added_later is None else cls.result_fields()
        missing = [name for name in required if name not in values and name not in (cls.added_later or ())]
        if missing:
            raise ConfigError(f"{where}: required key {missing[0]!r} is missing")
        return config

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any], where: str) -> Self:
        """Build a config from settings as people write them, where a single value may stand for a list of one.

        Raises:
            ConfigError: a key is unknown or missing, or a value has another type than its field. The message names
                `where`.
        """
        lists = {name: _as_list(settings[name]) for name in cls.repeatable_fields() if name in settings}
        return structure({**settings, **lists}, cls, where)

    @classmethod
    def result_fields(cls) -> tuple[str, ...]:
        """Return the names of the fields that affect the result."""
        return tuple(item.name for item in fields(cls) if item.metadata["affects_result"])

    @classmethod
    def repeatable_fields(cls) -> tuple[str, ...]:
        """Return the names of the fields that hold several values, passed by repeating their flag."""
        hints = hints_of(cls)
        return tuple(item.name for item in fields(cls) if typing.get_origin(hints[item.name]) is tuple)

    @classmethod
    def with_defaults(cls, recorded: Mapping[str, Any]) -> dict[str, Any]:
        """Return recorded `result_settings` with the defaults of fields that an earlier version did not have."""
        optional = [item for item in fields(cls) if item.metadata["affects_result"] and item.default is not MISSING]
        defaults = {
            item.name: list(item.default) if isinstance(item.default, tuple) else item.default for item in optional
        }
        return defaults | dict(recorded)

    def result_settings(self) -> dict[str, Any]:
        """Return the fields that affect the result, as plain JSON values."""
        values = self.as_json()
        return {name: values[name] for name in self.result_fields()}

    def same_result_as(self, other: Self) -> bool:
        """Return whether both configs give the same result."""
        return not self.differences(other)

    def differences(self, other: Self) -> list[str]:
        """Return the differences that affect the result, such as `--seed: recorded 0, requested 1`.

        `self` is the recorded config, `other` the requested one.
        """
        compared = [item for item in fields(self) if item.metadata["affects_result"]]
        pairs = [(item, getattr(self, item.name), getattr(other, item.name)) for item in compared]
        return [
            f"{flag(item.name)}: recorded {shown(mine)}, requested {shown(theirs)}"
            for item, mine, theirs in pairs
            if not _same(item.metadata["path"], mine, theirs) and not (item.metadata["chosen"] and theirs is None)
        ]

    def command(self) -> str:
        """Return the command line for this config, without flags that have their default value."""
        return shlex.join(["repa-pipe", self.kind, *self.flags()])

    def flags(self, without: Collection[str] = ()) -> list[str]:
        """Return the arguments for fields that differ from their defaults, except the fields `without`."""
        return [word for group in self.flag_groups(without) for word in group]

    def flag_groups(self, without: Collection[str] = ()) -> list[list[str]]:
        """Return the arguments of `flags`, one list per flag."""
        groups: list[list[str]] = []
        for item in fields(self):
            value = getattr(self, item.name)
            if value == item.default or item.name in without:
                continue
            for each in value if isinstance(value, tuple) else (value,):
                if isinstance(each, bool):
                    groups.append([flag(item.name) if each else no_flag(item.name)])
                else:
                    groups.append([flag(item.name), str(each)])
        return groups


def _same(kind: PathKind | None, mine: Any, theirs: Any) -> bool:
    if kind is None or mine == theirs:
        return bool(mine == theirs)
    if isinstance(mine, tuple) and isinstance(theirs, tuple):
        return len(mine) == len(theirs) and all(map(paths.same, mine, theirs, [kind] * len(mine)))
    return paths.same(mine, theirs, kind)


def _why_unusable(value: object, metadata: Mapping[str, Any]) -> str | None:
    """Return what is expected instead of a value that no field can have; None if it may be one."""
    if isinstance(value, str) and ("\0" in value or not is_text(value)):
        return "expected text without NUL characters and halves of characters"
    if isinstance(value, str) and metadata["path"] and max(len(os.fsencode(part)) for part in value.split("/")) > 255:
        return "expected a path, whose parts have at most 255 bytes"
    if isinstance(value, float) and (math.isnan(value) or (math.isinf(value) and not metadata["may_be_infinite"])):
        return "expected a finite number"
    if isinstance(value, int) and abs(value) >= 1 << 63:
        return "expected an integer of at most 64 bits"
    return None


def is_count(text: str) -> bool:
    """Return whether text is a decimal number of at most 64 bits, without a sign."""
    return text.isdecimal() and len(text) < 19


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str | int | float) else value


def uses_ray(ray: bool | None, ray_address: str | None) -> bool:
    """Return whether a command runs on Ray: an address alone is enough."""
    return bool(ray) or ray_address is not None


def weights_by_name(entries: Sequence[str], names: Collection[str]) -> dict[str, str]:
    """Parse `--encoder-weights NAME=PATH …`; raise ConfigError for another form or a NAME that is not in `names`."""
    found = {}
    for entry in entries:
        name, separator, path = paths.split_named(entry)
        if not separator or name not in names:
            known = ", ".join(names) or "(none given)"
            raise ConfigError(f"--encoder-weights is {shown(entry)}: expected NAME=PATH with NAME one of {known}")
        found[name] = path
    return found
