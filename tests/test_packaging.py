"""The wheel, the lock file and the layout: what pyproject.toml, constraints.txt and LAYOUT's rules promise."""

import ast
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
NOT_PACKAGED = {"benchmarks", "build", "dist", "docs", "runs", "tests"}
MAX_ENTRIES_IN_PIPELINE = 27  # files and folders
HEAVY = ("torch", "ray", "diffusers", "zarr", "timm", "torchvision", "scipy", "bokeh")
EAGER = {"metrics"}  # functions of tensors, re-exported without detours: who imports them has imported torch


def package_folders() -> list[Path]:
    """Every package on disk, at any depth, as a path below the root; hidden folders such as .venv are no packages."""
    tops = [
        path
        for path in ROOT.iterdir()
        if path.is_dir() and not path.name.startswith(".") and path.name not in NOT_PACKAGED
    ]
    return sorted(path.parent.relative_to(ROOT) for top in tops for path in top.rglob("__init__.py"))


PACKAGES = package_folders()


def test_every_package_on_disk_is_listed():
    listed = PROJECT["tool"]["setuptools"]["packages"]
    assert len(listed) == len(set(listed))
    assert set(listed) == {"repa_pipe", *(".".join(["repa_pipe", *folder.parts]) for folder in PACKAGES)}


def test_every_module_is_in_a_package():
    modules = {path.parent.relative_to(ROOT) for folder in PACKAGES for path in (ROOT / folder).rglob("*.py")}
    assert modules - set(PACKAGES) == set()


@pytest.mark.parametrize("folder", [Path(), *PACKAGES], ids=str)
def test_every_package_says_what_it_holds(folder):
    docstring = ast.get_docstring(ast.parse((ROOT / folder / "__init__.py").read_text(encoding="utf-8"))) or ""
    assert len(docstring.split()) >= 4
    assert docstring.rstrip().endswith((".", "`", ")"))


def test_pipeline_stays_a_list_of_stages():
    entries = [
        path.name for path in (ROOT / "pipeline").iterdir() if path.name != "__pycache__" and path.name[0] not in "._"
    ]
    assert len(entries) <= MAX_ENTRIES_IN_PIPELINE, sorted(entries)


def heavy_modules_after(code: str) -> list[str]:
    """Which of the heavy libraries a fresh interpreter has imported after running `code`."""
    code = f"import sys; {code}; print(*sorted(set({HEAVY!r}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.split()


def test_the_command_line_starts_without_heavy_libraries():
    assert heavy_modules_after("import repa_pipe.cli") == []


def test_the_help_of_every_command_needs_no_heavy_library():
    code = """from contextlib import redirect_stdout; import io, click; from repa_pipe.cli import cli
def show(group):
    for command in group.commands.values():
        with redirect_stdout(io.StringIO()) as out: command.main(["--help"], standalone_mode=False)
        assert "Usage:" in out.getvalue()
        if isinstance(command, click.Group): show(command)
show(cli)
"""
    assert heavy_modules_after(f"exec({code!r})") == []


def test_packages_import_no_heavy_library_by_themselves():
    names = [".".join(["repa_pipe", *folder.parts]) for folder in PACKAGES if folder.parts[0] not in EAGER]
    assert heavy_modules_after(f"import {', '.join(names)}") == []


@pytest.mark.slow
def test_the_wheel_holds_the_package_its_data_and_nothing_else(tmp_path):
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(tmp_path), str(ROOT)]
    subprocess.run(command, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {"repa_pipe"}
    assert not [name for name in names if name.split("/")[1] in NOT_PACKAGED]
    data = [
        *(ROOT / "models/weights").iterdir(),
        *(ROOT / "pipeline/reporting/assets").iterdir(),
        *(ROOT / "config/recipes").glob("*.toml"),
        ROOT / "py.typed",
    ]
    modules = [path for folder in [Path(), *PACKAGES] for path in (ROOT / folder).glob("*.py")]
    assert {f"repa_pipe/{path.relative_to(ROOT)}" for path in [*data, *modules]} <= names


def test_the_data_that_the_wheel_must_hold_is_declared():
    """A quick form of the test above: each pattern matches files, and each data file is matched."""
    declared = PROJECT["tool"]["setuptools"]["package-data"]
    matched = set()
    for package, patterns in declared.items():
        folder = ROOT.joinpath(*package.split(".")[1:])
        for pattern in patterns:
            found = set(folder.glob(pattern))
            assert found, (package, pattern)
            matched |= found
    wanted = {path for folder in PACKAGES for path in (ROOT / folder).rglob("*") if path.is_file()}
    wanted = {path for path in wanted if path.suffix != ".py" and "__pycache__" not in path.parts}
    assert wanted <= matched


def test_the_lock_file_pins_every_dependency_to_a_version_that_is_allowed():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = {
        canonicalize_name(name): version for name, version in (line.split("==") for line in lines if line[0] != "#")
    }
    extras = PROJECT["project"]["optional-dependencies"]
    wanted = [Requirement(line) for line in [*PROJECT["project"]["dependencies"], *extras["dev"], *extras["demo"]]]
    assert [one.name for one in wanted if canonicalize_name(one.name) not in pinned] == []
    assert [str(one) for one in wanted if not one.specifier.contains(pinned[canonicalize_name(one.name)])] == []


def test_hooks_run_what_make_lint_runs():
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    recipe = (ROOT / "Makefile").read_text().split("\nlint:")[1].split("\n\n")[0].replace("$(BIN)", ".venv/bin")
    assert {hook["language"] for hook in hooks} == {"system"}
    assert [hook["entry"] for hook in hooks if hook["entry"] not in recipe] == []


def test_ci_runs_make_targets_that_exist():
    targets = {line.split(":")[0] for line in (ROOT / "Makefile").read_text().splitlines() if ":" in line}
    jobs = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())["jobs"]
    commands = [step["run"] for job in jobs.values() for step in job["steps"] if "run" in step]
    called = [command.split()[1] for command in commands if command.startswith("make ")]
    assert {"test", "test-slow"} <= set(called) <= targets


@pytest.mark.parametrize("document", ["CONTRIBUTING.md", "docs/architecture.md"])
def test_the_code_that_developer_docs_refer_to_exists(document):
    """`pipeline/train.py` is a file, `benchmarks/` a folder, `stores/store.py::Store.read` is defined in its file."""
    text = (ROOT / document).read_text(encoding="utf-8")
    spans = set(re.findall(r"`([a-z_.]+(?:/[\w.*]+)*/?(?:::[\w.]+)?)`", text))
    tops = {folder.parts[0] for folder in PACKAGES} | NOT_PACKAGED | {path.name for path in ROOT.glob("*.*")}
    missing = []
    paths = {span for span in spans if span.split("/")[0] in tops and ("/" in span or "." in span)}
    for span in sorted(span for span in paths if "NAME" not in span):
        path, _, name = span.partition("::")
        found = list(ROOT.glob(path.rstrip("/")))
        defined = not name or (found and name in definitions(found[0]))
        if not found or not defined:
            missing.append(span)
    assert len(spans) > 10
    assert missing == []


def definitions(path: Path) -> set[str]:
    """Functions and classes of a module, and methods as `Class.method`."""
    kinds = (ast.FunctionDef, ast.ClassDef)
    found = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, kinds):
            found.add(node.name)
            found |= {f"{node.name}.{inner.name}" for inner in ast.iter_child_nodes(node) if isinstance(inner, kinds)}
    return found


def test_the_citation_has_the_version_of_the_package():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == PROJECT["project"]["version"]
