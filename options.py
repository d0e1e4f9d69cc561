"""Click commands made from configs: options in sections, positional stores and runs, config files, dry runs.

Every command has the options of `GENERAL`. A command that is made from configs also accepts `--config FILE.toml`, whose
values replace defaults and are overridden by flags, and `--dry-run`.
"""

from __future__ import annotations

import dataclasses
import logging
import re
import typing
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from types import NoneType
from typing import Any, TypeVar

import click
from click.core import ParameterSource

from .config import SECTIONS, Config, flag, no_flag, read_settings
from .config.paths import PathKind, plain
from .config.translation import translate
from .converter import choices_of, hints_of
from .pipeline.runtime.console import LOG_FORMATS, log_to_stderr

C = TypeVar("C", bound=Config)
Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]

GENERAL = "General"
OTHER = ""  # of commands that are not made from a config
_WIDEST = 30  # of the column of flags
_WORDS = "words"  # positional arguments, before they are assigned to options
_REQUIRED = "  [required]"


class HelpFormatter(click.HelpFormatter):
    """Wraps lines without breaking words at hyphens, `[default: …]`, or commands in backticks."""

    def write_text(self, text: str) -> None:
        """Write a paragraph."""
        super().write_text(_joined(text))

    def write_dl(self, rows: Iterable[tuple[str, str]], *args: Any, **kwargs: Any) -> None:
        """Write a list of options or commands."""
        super().write_dl([(name, _joined(text)) for name, text in rows], *args, **kwargs)

    def getvalue(self) -> str:
        """Return the text."""
        return super().getvalue().replace(_HYPHEN, "-").replace(_SPACE, " ")


_HYPHEN, _SPACE = "\u2011", "\u00a0"  # non-breaking; they stand for "-" and " " while click wraps lines


def _joined(text: str) -> str:
    text = re.sub(r"\[[^]]*]|`[^`]*`", lambda match: match[0].replace(" ", _SPACE), text)
    return text.replace("-", _HYPHEN)


class HelpContext(click.Context):
    """The context of all commands."""

    formatter_class = HelpFormatter


class SectionOption(click.Option):
    """An option in a section of the help."""

    def __init__(self, *args: Any, section: str = GENERAL, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.section = section


class Command(click.Command):
    """A command with general options, options in sections, and required options that may be given by position.

    Args:
        positional: names of required options. Words without a flag are assigned to those that have no flag, in order.
    """

    context_class = HelpContext

    def __init__(self, *args: Any, positional: Sequence[str] = (), **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.positional = tuple(positional)
        if positional:
            self.params.append(_Words([_WORDS], nargs=-1))
        self.params += _logging_options()

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the arguments, and assign positional ones."""
        if not ctx.resilient_parsing:
            args = self._translate(ctx, args)
        rest = super().parse_args(ctx, args)
        words = list(ctx.params.pop(_WORDS, ()))
        if not ctx.resilient_parsing:
            self._assign(ctx, words)
        return rest

    def _translate(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Return the arguments with dashes in flags; raise UsageError for flags of other programs."""
        options = [each for each in self.get_params(ctx) if isinstance(each, click.Option)]
        flags = {name: not each.is_flag for each in options for name in (*each.opts, *each.secondary_opts)}
        found = translate(str(self.name), args, flags)
        if found.foreign:
            raise click.UsageError(
                found.describe(str(self.name), [self._parameter(name).opts[0] for name in self.positional]), ctx
            )
        return found.args

    def _assign(self, ctx: click.Context, words: list[str]) -> None:
        """Assign words to the positional options without a flag; raise UsageError for too many or too few."""
        for name in self.positional:
            if words and ctx.get_parameter_source(name) is not ParameterSource.COMMANDLINE:
                parameter = self._parameter(name)
                ctx.params[name] = parameter.type.convert(words.pop(0), parameter, ctx)
            if ctx.params[name] is None:
                raise click.UsageError(
                    f"Missing {_metavar(name)}: pass it as an argument or with {self._parameter(name).opts[0]}."
                )
        if words:
            raise click.UsageError(f"Got unexpected extra argument {words[0]!r}.")

    def _parameter(self, name: str) -> click.Parameter:
        return next(parameter for parameter in self.params if parameter.name == name)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options, section by section."""
        found: dict[str, list[tuple[str, str]]] = {name: [] for name in (*SECTIONS, OTHER, GENERAL)}
        for parameter in self.get_params(ctx):
            record = None if isinstance(parameter, click.Argument) else parameter.get_help_record(ctx)
            if record:
                found[getattr(parameter, "section", _section_of(parameter))].append(record)
        width = min(_WIDEST, max(len(names) for records in found.values() for names, _ in records))
        for name, records in found.items():
            if records:
                with formatter.section(f"{name} options" if name else "Options"):
                    formatter.write_dl([(names.ljust(width), text) for names, text in records], col_max=_WIDEST)


def _section_of(parameter: click.Parameter) -> str:
    return GENERAL if "--help" in parameter.opts else OTHER


class _Words(click.Argument):
    """The positional arguments of a command, as its usage line shows them."""

    def make_metavar(self, ctx: click.Context) -> str:
        return " ".join(f"[{_metavar(name)}]" for name in typing.cast(Command, ctx.command).positional)


def _metavar(name: str) -> str:
    return {"runs": "RUN", "samples": "IMAGES or RUN", "checkpoint": "RUN"}.get(name, name.upper())


def _logging_options() -> list[click.Parameter]:
    """Return the options of all commands about messages on stderr; they take effect together, before the command."""

    def remember(context: click.Context, parameter: click.Parameter, value: Any) -> None:
        if value:
            context.meta[str(parameter.name)] = value
            level = logging.DEBUG if context.meta.get("verbose") else logging.INFO
            log_to_stderr(
                logging.WARNING if context.meta.get("quiet") else level, context.meta.get("log_format", "text")
            )

    shared: dict[str, Any] = {"expose_value": False, "callback": remember, "is_eager": True}
    return [
        SectionOption(["-v", "--verbose"], is_flag=True, help="Also show debug messages.", **shared),
        SectionOption(["-q", "--quiet"], is_flag=True, help="Hide progress; show only warnings and errors.", **shared),
        SectionOption(
            ["--log-format"],
            type=click.Choice(LOG_FORMATS),
            help="Format of messages on stderr: text, or one JSON object per line. Default: text.",
            **shared,
        ),
    ]


class OrderedGroup(click.Group):
    """Lists commands in the order in which they are defined, which is the order in which they are used."""

    context_class = HelpContext
    command_class = Command

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return all names, in order."""
        return list(self.commands)


OrderedGroup.group_class = OrderedGroup


def options_of(
    config: type[Config], without: Collection[str] = (), hidden: bool = False, positional: Collection[str] = ()
) -> Decorator:
    """Add an option for every field of a config: flag, type, default and help come from the field.

    Args:
        config: the class.
        without: names of fields to leave out.
        hidden: whether the help omits the options.
        positional: names of fields that may also be given by position.
    """

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        hints = hints_of(config)
        for field in reversed(dataclasses.fields(config)):
            if field.name not in without:
                command = _option(field, hints[field.name], hidden, field.name in positional)(command)
        return command

    return decorate


class _PathText(click.ParamType):  # type: ignore[type-arg]
    """The path of a file, a folder or a store, in its shortest spelling, as in configs."""

    name = "text"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        return plain(str(value), PathKind.PATH)


PATH_TEXT = _PathText()


def _option(field: dataclasses.Field[Any], hint: Any, hidden: bool, positional: bool) -> Decorator:
    required = field.default is dataclasses.MISSING
    kinds = [kind for kind in typing.get_args(hint) if kind is not NoneType] or [hint]
    choices = choices_of(hint)
    options: dict[str, Any] = {"help": field.metadata["help"], "required": required, "hidden": hidden}
    name = flag(field.name)
    if required and positional:  # checked after positional arguments have been assigned
        options |= {"required": False, "help": options["help"] + _REQUIRED}
    if typing.get_origin(hint) is tuple:
        options |= {"multiple": True, "default": field.default, "type": kinds[0], "show_default": bool(field.default)}
        options |= {"callback": _split} if field.metadata["comma_separated"] else {}
    elif kinds[0] is bool:
        name = f"{name}/{no_flag(field.name)}"
        options |= {"default": field.default, "show_default": field.default is not None}
    else:
        options |= {"type": _Choice(choices, field.metadata["aliases"]) if choices else kinds[0]}
        if not required:
            options |= {"default": field.default, "show_default": field.default is not None}
    return click.option(name, field.name, cls=SectionOption, section=field.metadata["section"], **options)


class _Choice(click.Choice):  # type: ignore[type-arg]  # generic in newer versions only
    """A choice that also accepts other spellings of its values, which the help does not list."""

    def __init__(self, choices: Sequence[Any], aliases: Mapping[str, str]) -> None:
        super().__init__(choices)
        self.aliases = aliases

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the value that was given, or that another spelling stands for."""
        return super().convert(self.aliases.get(value, value), param, ctx)


def _split(context: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> tuple[str, ...]:
    """Split values that are lists with commas."""
    return tuple(part.strip() for value in values for part in value.split(","))


def config_file_options(*configs: type[Config], without: Collection[str] = ()) -> Decorator:
    """Add `--config`, for the fields of `configs` except `without`, and `--dry-run`, passed as `dry_run`."""

    def read(context: click.Context, parameter: click.Parameter, value: str | None) -> None:
        if value is not None:
            defaults_from(context, read_settings(value, configs, without), override=True)

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        command = click.option(
            "--dry-run",
            is_flag=True,
            cls=SectionOption,
            help="Print the resolved settings as TOML, and what would be read and written; write nothing.",
        )(command)
        return click.option(
            "--config",
            metavar="FILE",
            cls=SectionOption,
            is_eager=True,
            expose_value=False,
            callback=read,
            help="TOML file with values of options, as printed by --dry-run; flags override it. Default: none.",
        )(command)

    return decorate


def defaults_from(context: click.Context, values: Mapping[str, Any], override: bool) -> None:
    """Use `values` in place of the defaults of options; `override` decides between them and values set before."""
    before = context.default_map or {}
    context.default_map = {**before, **values} if override else {**values, **before}


def config_of(config: type[C], options: Mapping[str, Any]) -> C:
    """Return the config for the options of a parsed command that are fields of it."""
    return config(**{field.name: options[field.name] for field in dataclasses.fields(config) if field.name in options})


def given(context: click.Context, names: Collection[str]) -> list[str]:
    """Return the names of the options that the user passed."""
    return [name for name in names if context.get_parameter_source(name) is not ParameterSource.DEFAULT]
