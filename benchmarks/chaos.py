"""Break every command at random for some minutes, and count what survived.

    python benchmarks/chaos.py [--minutes 30] [--seed 0] [--only "kill train"] [--json chaos.json]

A trial breaks one thing: it kills or stops a command at a random moment, flips a bit, mutates a file, fills the disk,
limits descriptors, starts a second writer, or opens the store of a stranger. Then it runs the command again as a user
would, and compares every result with the undisturbed one, bit by bit. The table counts, for each kind of trial:

    tried       trials
    survived    the result is the undisturbed one, or the command refused in one line
    lost        work is gone, a command does not resume or hangs, or a stranger's store has done harm
    silent      a result differs, and no command said so
    tracebacks  commands that printed a traceback

Trials are drawn from --seed in rounds of all kinds. The exit code is 1 if anything was lost, silent, or a traceback.
Linux; `pip install 'repa-pipe[demo]'`; filling a disk requires root,
and a bucket the extra `dev`.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from chaos_trials import KINDS, LOST, NotTriedError, Trial, Verdict
from chaos_world import World

COLUMNS = ("tried", "survived", "lost", "silent", "tracebacks")


def verdict_of(trial: Trial, world: World) -> tuple[Verdict, int]:
    """Run a trial; return what is wrong, and the number of commands with a traceback."""
    world.ended.clear()
    verdict = trial(world)
    hung = next((ended for ended in world.ended if ended.hung), None)
    if verdict is None and hung:
        verdict = LOST, f"'{hung.command}' did not end within {hung.seconds:.0f} s: {hung.last_line}"
    return verdict, sum(ended.traceback for ended in world.ended)


def run_trials(folder: Path, minutes: float, seed: int, kinds: list[str]) -> dict[str, Counter[str]]:
    """Run trials of these kinds in turn until the time is over, each kind at least once; return the counts."""
    world = World(folder, random.Random(seed))
    counts: dict[str, Counter[str]] = {kind: Counter() for kind in kinds}
    end = time.monotonic() + 60 * minutes
    number = 0
    while number < len(kinds) or time.monotonic() < end:
        kind = kinds[number % len(kinds)]
        number += 1
        world.rng.seed(f"{seed}-{kind}-{number}")
        try:
            verdict, tracebacks = verdict_of(KINDS[kind], world)
        except NotTriedError as error:
            print(f"{kind}: not tried ({error})", file=sys.stderr)
            continue
        counts[kind].update({"tried": 1, verdict[0] if verdict else "survived": 1, "tracebacks": tracebacks})
        if verdict or tracebacks:
            lines = [f"  {ended.command}: exit code {ended.code}, {ended.last_line}" for ended in world.ended]
            print(f"{kind}, trial {number}: {verdict or 'traceback'}", *lines, sep="\n", file=sys.stderr)
        for path in folder.glob("trial-*"):
            shutil.rmtree(path, ignore_errors=True)
        for path in folder.glob("log-*"):
            path.unlink()
    return counts


def table(counts: dict[str, Counter[str]]) -> str:
    """Return the counts as the rows of a Markdown table."""
    total: Counter[str] = sum(counts.values(), Counter())
    rows = [
        f"| {kind} | " + " | ".join(str(count[column]) for column in COLUMNS) + " |" for kind, count in counts.items()
    ]
    rows.append("| all | " + " | ".join(str(total[column]) for column in COLUMNS) + " |")
    return "\n".join([f"| kind | {' | '.join(COLUMNS)} |", "|---|" + "---:|" * len(COLUMNS), *rows])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--minutes", type=float, default=30, help="time for trials, after about a minute of preparation"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of everything that is random")
    parser.add_argument("--only", action="append", choices=list(KINDS), help="kind of trial; repeatable. Default: all")
    parser.add_argument("--json", type=Path, help="write the counts to this file")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="chaos-") as folder:
        counts = run_trials(Path(folder), args.minutes, args.seed, args.only or list(KINDS))
    print(table(counts))
    if args.json:
        args.json.write_text(
            json.dumps({"minutes": args.minutes, "seed": args.seed, "counts": counts}, indent=1) + "\n"
        )
    sys.exit(any(count[column] for count in counts.values() for column in COLUMNS[2:]))


if __name__ == "__main__":
    main()
