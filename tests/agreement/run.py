"""Compare what repa-pipe computes with every recorded output of published programs.

    python tests/agreement/run.py FIGURES.npz [...]

The settings are read from each file: other seeds, shapes, depths and coefficients must agree as well. Prints the
relative error (L2) of every recorded output; that of a move is without the few numbers that rounding decides, which
differ between CPUs. The exit code is 1 if one is above its tolerance or was not computed.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import cfm
import dispersive
import fdr_mind
import haste
import irepa_jit
import irepa_ldm
import lightningdit
import numpy.typing as npt
import rae_ditdh
import rae_stage1
import raev2_ditig
import raev2_layers
import reg
import repae_sit
import sra
import sra_dts_as
import srdit
import torch
from case import MOVES, VALUES, Case, relative_error, relative_error_by_column, relative_error_of_move

METHODS: tuple[ModuleType, ...] = (
    cfm,
    dispersive,
    fdr_mind,
    haste,
    irepa_jit,
    irepa_ldm,
    lightningdit,
    rae_ditdh,
    rae_stage1,
    raev2_ditig,
    raev2_layers,
    reg,
    repae_sit,
    sra,
    sra_dts_as,
    srdit,
)
TABLE = re.compile(r".*gradnorm")  # recorded tables with a column per loss
MOVE = re.compile(r"(.*_)?move\d*(_of_\w+)?\..*")  # changes of a parameter


def method_of(case: Case) -> ModuleType:
    """Return the module of the method that a file's setting belongs to."""
    for method in METHODS:
        if method.recognizes(case):
            return method
    raise SystemExit(f"{case.path}: its config belongs to none of {', '.join(each.__name__ for each in METHODS)}")


def tolerance_of(method: ModuleType, name: str) -> float:
    """Return the tolerance of an output: the method's own, or that of moves and gradients, or of values."""
    for pattern, tolerance in getattr(method, "TOLERANCES", {}).items():
        if re.fullmatch(pattern, name):
            return float(tolerance)
    return MOVES if MOVE.fullmatch(name) else VALUES


def error_of(name: str, found: Any, expected: npt.NDArray[Any]) -> float:
    """Return the relative error of an output, by the measure for what it is."""
    if MOVE.fullmatch(name):
        return relative_error_of_move(found, expected)
    if TABLE.fullmatch(name) and expected.ndim == 2:
        return relative_error_by_column(found, expected)
    return relative_error(found, expected)


def compare(path: Path) -> list[str]:
    """Print the error of every output of a file; return what disagrees."""
    case = Case.read(path)
    method = method_of(case)
    figures = method.compute(case)
    wrong = []
    print(f"{path} ({method.__name__})")
    for name, expected in case.arrays.items():
        if method.is_input(case, name):
            continue
        if name not in figures:
            wrong.append(f"{name} was not computed")
            print(f"  {'missing':>10}  {name}")
            continue
        error, tolerance = error_of(name, figures[name], expected), tolerance_of(method, name)
        print(f"  {error:10.1e}  {name}{'' if error <= tolerance else f'  above {tolerance:.0e}'}")
        if not error <= tolerance:
            wrong.append(f"{name} differs by {error:.1e}, expected at most {tolerance:.0e}")
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("figures", nargs="+", type=Path, help="files of recorded figures")
    files = parser.parse_args().figures
    torch.set_num_threads(1)
    wrong = [f"{path}: {problem}" for path in files for problem in compare(path)]
    for problem in wrong:
        print(problem, file=sys.stderr)
    print(f"{len(wrong)} outputs disagree" if wrong else "all recorded outputs agree")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
