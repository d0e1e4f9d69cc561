"""Measure what it costs that all ranks agree before every step (`DistributedContext.agree`).

    python benchmarks/agreement.py [--ranks 2] [--steps 400] [--width 512]

Every second step of a data-parallel training on CPUs is taken without the agreement, so that both kinds of steps meet
the same load. Prints the median time of an agreement alone, of the steps, and of their paired difference, and the time
that a tenth of the agreements stays below: on a machine with other work, medians include waiting for a core.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from arguments import at_least
from torch import nn

from repa_pipe.pipeline.runtime.distributed import DistributedContext, init_distributed

WARM_UP = 20  # steps that are not measured


def train_step(model: nn.Module, optimizer: torch.optim.Optimizer, batch: torch.Tensor) -> None:
    model(batch).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()


def measure(ranks: DistributedContext, steps: int, width: int) -> dict[str, float]:
    """Return medians in microseconds."""
    layers = [layer for _ in range(4) for layer in (nn.Linear(width, width), nn.GELU())]
    model = nn.parallel.DistributedDataParallel(nn.Sequential(*layers))
    optimizer, batch = torch.optim.AdamW(model.parameters()), torch.randn(64, width)
    alone, seconds = [], {True: [], False: []}
    for number in range(2 * (WARM_UP + steps)):
        agrees = number % 4 in (0, 3)  # with, without, without, with: neither kind is always the first one
        start = time.perf_counter()
        if agrees:
            ranks.agree(0)
            alone.append(time.perf_counter() - start)
        train_step(model, optimizer, batch)
        seconds[agrees].append(time.perf_counter() - start)
    with_, without = seconds[True][WARM_UP:], seconds[False][WARM_UP:]
    differences = [one - other for one, other in zip(with_, without, strict=True)]
    times = {"agreement": alone[WARM_UP:], "with": with_, "without": without, "difference": differences}
    medians = {name: statistics.median(values) for name, values in times.items()}
    fast = statistics.quantiles(times["agreement"], n=10)[0]
    return {name: round(value * 1e6, 1) for name, value in {"fast agreement": fast, **medians}.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=at_least(2), default=2, help="number of ranks, one thread each")
    parser.add_argument("--steps", type=at_least(10), default=400, help="steps of each kind")
    parser.add_argument("--width", type=at_least(1), default=512, help="width of the model's four layers")
    parser.add_argument("--out", type=Path, default=None, help="JSON file for the results")
    args = parser.parse_args()
    if "RANK" not in os.environ:
        start_ranks(args.ranks)
        return
    torch.set_num_threads(1)
    with init_distributed(torch.device("cpu")) as ranks:
        medians = measure(ranks, args.steps, args.width)
    if ranks.is_first:
        print(", ".join(f"{name} {value:,.1f} us" for name, value in medians.items()))
        if args.out:
            args.out.write_text(
                json.dumps({"ranks": args.ranks, "steps": args.steps, "width": args.width} | medians, indent=1) + "\n"
            )


def start_ranks(count: int) -> None:
    """Start this script again on every rank."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    common = os.environ | {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    started = [subprocess.Popen([sys.executable, *sys.argv], env=common | {"RANK": str(i)}) for i in range(count)]
    sys.exit(max(process.wait() for process in started))


if __name__ == "__main__":
    main()
