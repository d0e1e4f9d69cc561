"""Every `repa-pipe` command that documentation, reports, help and messages print is parsed by the command line."""

import ast
import itertools
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from repa_pipe import cli

ROOT = Path(__file__).parents[1]
FOLDERS = ("benchmarks", "config", "diffusion", "docs", "metrics", "models", "pipeline", "runs", "sources", "stores")
KINDS = ("*.py", "*.md", "*.html", "*.js", "*.sh", "*.yaml", "*.toml")
COMMAND = r"(?:repa-pipe|torchrun .*?-m repa_pipe\.cli|python -m repa_pipe\.cli) +(?=[a-z])"
VALUE = "\0"  # stands for a value that is formatted into a message


def texts() -> Iterator[tuple[str, str]]:
    """Yield the path and the text of each file; of Python files, one string at a time."""
    found = [path for folder in FOLDERS for kind in KINDS for path in (ROOT / folder).rglob(kind)]
    for path in sorted([*ROOT.glob("*.md"), *ROOT.glob("*.py"), ROOT / "Makefile", *found]):
        name, text = str(path.relative_to(ROOT)), path.read_text()
        if path.suffix == ".py":
            yield from ((name, string) for string in strings(ast.parse(text)))
        else:
            yield name, text


def strings(tree: ast.AST) -> Iterator[str]:
    """Yield the strings of a program, with `VALUE` for what is formatted into them."""
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield "".join(part.value if isinstance(part, ast.Constant) else VALUE for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def printed_commands(text: str) -> Iterator[str]:
    """Yield what follows `repa-pipe` in quotes, in backticks, in <code>, and on lines that are a command."""
    text = re.sub(r"\\\n\s*", "", text)
    for quoted in re.findall(rf"(?:['`]|<code>){COMMAND}([^'`<]*)['`<]", text):
        yield " ".join(quoted.split())
    for line in re.findall(rf"^(?: {{2,}}|\t[^#\n]*?|\$ *){COMMAND}(.*)$", text, re.MULTILINE):
        yield re.split(r" # | {2,}#| && | > | \| ", line)[0].strip()


def parse(command: str) -> None:
    """Parse a command; raise click.UsageError if the command line refuses it.

    A name alone, such as `repa-pipe store verify`, only has to exist. A command with "…" is incomplete: what it has
    must be valid, and the rest may be missing.
    """
    words = [word.removeprefix("[").removesuffix("]") for word in shlex.split(command)]
    group: click.Command = cli.cli
    while isinstance(group, click.Group):
        if not words:
            return
        name = words.pop(0)
        if name not in group.commands:
            raise click.UsageError(f"no command {name!r}")
        group = group.commands[name]
    if not words or "--help" in words:
        return
    try:
        with click.Context(group) as context:
            group.parse_args(context, complete(words))
    except click.UsageError as error:
        if "…" not in words or "Missing" not in error.format_message():
            raise


def complete(words: list[str]) -> list[str]:
    """Replace placeholders: "…" and formatted values are the value of the option before them, or else left out."""
    completed = []
    for previous, word in itertools.pairwise(["", *words]):
        if word not in ("…", VALUE):
            completed.append("8" if word == "N" else word)
        elif previous.startswith("--"):
            completed.append("8")
    return completed


COMMANDS = sorted({(name, command) for name, text in texts() for command in printed_commands(text)})


def test_commands_are_found_where_they_are_printed():
    names = [name for name, _ in COMMANDS]
    assert len(COMMANDS) > 150
    for name in ("README.md", "docs/first-store.md", "runs/README.md", "cli.py", "pipeline/demo.py", "stores/store.py"):
        assert name in names


@pytest.mark.parametrize(("name", "command"), COMMANDS, ids=lambda value: value.replace(VALUE, "VALUE"))
def test_every_printed_command_is_valid(name, command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for file in re.findall(r"--config (\S+)", command):
        Path(file).write_text('store = "mystore"\n')
    parse(command)


@pytest.mark.parametrize(
    "command",
    [
        "samples",
        "sample RUN RUN",
        "train --stor s",
        "train --store s --seed x",
        "encode … --codec x",
        "store verify --repair",
    ],
)
def test_an_invalid_command_is_noticed(command):
    with pytest.raises(click.UsageError):
        parse(command)
