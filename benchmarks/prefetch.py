"""Measure how long a training loop with steps of 40 ms waits for its batches.

    python benchmarks/prefetch.py [--samples 4096] [--step-ms 40] [--steps 100] [--rounds 5] [--folder DIR]

The store holds DINOv2-B tokens in float16 and SD-VAE moments; batches of 256 (109 MB) are prefetched from a warm page
cache. The step either sleeps, like a loop that waits for its GPU, or keeps Python busy all the time, like a loop that
launches many small kernels. Readers: threads of this process (the default) and a separate process
(`AlignmentDataset(process=True)`). The result is the fraction of time spent waiting, as the median over the rounds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from arguments import at_least
from synthetic import synthetic_store

from repa_pipe.stores import AlignmentDataset, open_store

WARM_UP = 20  # steps that are not measured: the first batches are never prefetched


def sleep(seconds: float) -> None:
    time.sleep(seconds)


def stay_busy(seconds: float) -> None:
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        sum(range(50))


def waiting_fraction(dataset: AlignmentDataset, step: Callable[[float], None], seconds: float, steps: int) -> float:
    """Return the fraction of a loop's time that it waits for batches."""
    waited = 0.0
    with closing(dataset.batches()) as batches:
        for number in range(WARM_UP + steps):
            if number == WARM_UP:
                waited, loop_start = 0.0, time.perf_counter()
            start = time.perf_counter()
            next(batches)
            waited += time.perf_counter() - start
            step(seconds)
        return waited / (time.perf_counter() - loop_start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=at_least(256), default=4096, help="samples in the store")
    parser.add_argument("--step-ms", type=float, default=40.0, help="duration of a step")
    parser.add_argument("--steps", type=at_least(1), default=100, help="steps per loop, after 20 for warm-up")
    parser.add_argument("--rounds", type=at_least(1), default=5, help="number of rounds")
    parser.add_argument("--folder", default=None, help="folder for the data. Default: the system's temporary folder")
    parser.add_argument("--out", type=Path, default=None, help="JSON file for the results")
    args = parser.parse_args()
    fractions: dict[tuple[str, str], list[float]] = {}
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        synthetic_store(Path(folder) / "store", "dinov2-vit-b", args.samples)
        for _ in range(args.rounds):
            for reader, process in (("threads", False), ("process", True)):
                for name, step in (("sleeps", sleep), ("busy Python", stay_busy)):
                    options = {"latents": "sd", "encoders": ["dinov2-vit-b"], "batch_size": 256, "direct": False}
                    with (
                        open_store(Path(folder) / "store") as store,
                        closing(AlignmentDataset(store, process=process, **options)) as dataset,
                    ):
                        fraction = waiting_fraction(dataset, step, args.step_ms / 1000, args.steps)
                    fractions.setdefault((name, reader), []).append(fraction)
    rows = [{"step": s, "reader": r, "waiting": round(statistics.median(v), 4)} for (s, r), v in fractions.items()]
    for row in rows:
        print(f"step {row['step']:<12} reader {row['reader']:<8} waits {row['waiting']:.1%} of the time")
    if args.out:
        args.out.write_text(json.dumps({"step_ms": args.step_ms, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
