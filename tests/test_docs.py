"""The documentation builds without warnings and matches the code: pages, links, commands, flags, paths and messages."""

import ast
import re
import runpy
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from repa_pipe.cli import cli
from repa_pipe.config import PlanConfig
from repa_pipe.config.foreign_flags import FOREIGN_FLAGS, REPA_DEFAULTS
from repa_pipe.config.recipe import recipe_names
from repa_pipe.pipeline import plan
from repa_pipe.pipeline.artifacts.run_folder import RunFolder

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = {path.name: path.read_text() for path in sorted(DOCS.glob("*.md"))}
TEXTS = PAGES | {name: (ROOT / name).read_text() for name in ("README.md", "runs/README.md")}
PACKAGES = ("config", "diffusion", "metrics", "models", "pipeline", "sources", "stores")


@pytest.mark.slow
def test_the_site_builds(tmp_path):
    pytest.importorskip("material", reason="mkdocs-material is not installed")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "repa-pipe rank" in (tmp_path / "site" / "ablations.html").read_text()
    reference = (tmp_path / "site" / "python-api.html").read_text()
    assert "Global batch size: samples per step over all ranks." in reference  # the help of an option
    assert "option(" not in reference


def test_every_page_is_in_the_navigation():
    settings = (ROOT / "mkdocs.yml").read_text()
    assert [name for name in PAGES if f": {name}\n" not in settings] == []


@pytest.mark.parametrize("name", ["README.md", "runs/README.md"])
def test_links_of_pages_outside_the_site_have_a_target(name):
    links = re.findall(r"\]\((?!https?:)([^)#]+)", TEXTS[name])
    assert links
    assert [link for link in links if not (ROOT / name).parent.joinpath(link).exists()] == []


def commands(group: click.Group = cli, prefix: str = "") -> Iterator[tuple[str, click.Command]]:
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, f"{prefix}{name} ")
        else:
            yield prefix + name, command


COMMANDS = dict(commands())


def test_the_reference_lists_exactly_the_commands_there_are():
    listed = re.findall(r"^\| `repa-pipe ([a-z -]+)` \|", PAGES["cli.md"], re.MULTILINE)
    assert sorted(listed) == sorted(COMMANDS)


def test_the_pairs_that_pay_off_are_those_of_plan():
    rows = re.findall(
        r"^\| (SiT-\S+) \| (\S+) \| (\d+) % \| ([\d.]+) \| ([\d,]+) GB \| (.+) \|$", TEXTS["README.md"], re.MULTILINE
    )
    assert len(rows) > 5
    for model, encoder, faster, hours, size, verdict in rows:
        found = plan.run(PlanConfig(model=model, encoder=(encoder,)))
        assert found.verdict.lower().startswith(verdict)
        assert f"steps are {faster} % faster" in found.verdict
        assert f"80 epochs save {hours} h" in found.describe()
        assert size == f"{found.gigabytes:,.0f}"


def test_every_recipe_is_described():
    assert [name for name in recipe_names() if f"| `{name}` |" not in PAGES["training.md"]] == []


def quoted_commands(text: str) -> Iterator[list[str]]:
    """Yield the words after `repa-pipe` of every command in backticks or on an indented line of its own."""
    command = r"(?:repa-pipe|torchrun .*-m repa_pipe\.cli) +([a-z].*)"
    for line in text.replace("\\\n", " ").splitlines():
        quoted = [re.search(command, span) for span in re.findall(r"`([^`]+)`", line)]
        for found in [re.match(rf" {{4}}{command}", line), *quoted]:
            if found:
                yield re.split(r"#|&&", found[1])[0].split()


@pytest.mark.parametrize("name", TEXTS)
def test_commands_and_flags_in_the_text_exist(name):
    unknown = []
    for words in quoted_commands(TEXTS[name]):
        command = COMMANDS.get(" ".join(words[:2])) or COMMANDS.get(words[0])
        if command is None:
            unknown.append(" ".join(words))
            continue
        known = {flag for option in command.params for flag in [*option.opts, *option.secondary_opts]} | {"--help"}
        flags = [word.strip("[]()").split("=")[0] for word in words if word.startswith(("--", "[--"))]
        unknown += [f"{command.name} {flag}" for flag in flags if flag not in known]
    assert unknown == []


@pytest.mark.parametrize("name", TEXTS)
def test_paths_in_the_text_exist(name):
    folders = "|".join(["benchmarks", "docs", "runs", "tests", *PACKAGES])
    paths = re.findall(rf"(?:^|[\s`])((?:{folders})/[\w./-]+\.(?:py|sh|md|yaml|toml|json))\b", TEXTS[name])
    known_elsewhere = {"models/sit.py", "metrics/spatial_metrics.py"}  # of the published programs
    assert [path for path in paths if path not in known_elsewhere and not (ROOT / path).exists()] == []


def test_every_file_of_a_run_is_described():
    run = RunFolder(Path())
    names = [value.name for name in dir(RunFolder) if isinstance(value := getattr(run, name), Path) and value.name]
    names += [call(50_000).name for call in (run.checkpoint, run.nonfinite_checkpoint, run.nonfinite_report)]
    names.append(run.profile(100, 105).name)
    assert len(names) > 10
    assert [name for name in names if name not in PAGES["run-files.md"]] == []


def message_templates() -> list[str]:
    """Return the strings in the package's code; NUL stands for each value that is formatted into one."""

    def template(node: ast.AST) -> str:
        if isinstance(node, ast.JoinedStr):
            return "".join(map(template, node.values))
        return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else "\0"

    files = [*ROOT.glob("*.py"), *(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))]
    trees = [ast.parse(path.read_text()) for path in files]
    return [
        template(node) for tree in trees for node in ast.walk(tree) if isinstance(node, ast.JoinedStr | ast.Constant)
    ]


def test_messages_in_troubleshooting_exist():
    templates = message_templates()
    rows = re.findall(r"^\| (`.+?) \|", PAGES["troubleshooting.md"], re.MULTILINE)
    quotes = [quote for row in rows for quote in re.findall(r"`([^`]+)`", row)]
    assert len(quotes) > 30
    patterns = {
        quote: re.compile(".*".join(re.escape(part.strip()) for part in quote.split("…") if part.strip()), re.DOTALL)
        for quote in quotes
    }
    assert [quote for quote, pattern in patterns.items() if not any(map(pattern.search, templates))] == []


def test_flags_of_other_programs_are_listed_as_they_are_answered():
    tables = runpy.run_path(str(DOCS / "flag_tables.py"))
    page = PAGES["coming-from-repa.md"]
    for command in FOREIGN_FLAGS:
        assert tables["foreign_table"](command) in page
    for command in REPA_DEFAULTS:
        assert tables["defaults_table"](command) in page
        assert f"{tables['same_flags'](command)}." in page
