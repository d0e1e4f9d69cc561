"""Measure how far the weights of one run differ when only ranks, memory savings or precision differ.

    python benchmarks/rounding.py [--model SiT-T/2] [--batch-size 16] [--steps 20] [--folder DIR]

The same run is trained with one rank in fp32, then with each of the options below, from a store of random numbers with
the shapes of SD-VAE and DINOv2-B. Prints the largest difference of any weight after the last step, absolute and
relative to the largest change that training made to a weight.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from arguments import at_least
from synthetic import synthetic_store

from repa_pipe.config import TrainConfig
from repa_pipe.pipeline.artifacts.checkpoints import load_checkpoint
from repa_pipe.pipeline.artifacts.run_folder import RunFolder

VARIANTS: dict[str, tuple[int, dict[str, object]]] = {  # name → ranks and settings
    "one rank": (1, {}),
    "one rank again": (1, {}),
    "--microbatches 4": (1, {"microbatches": 4}),
    "--checkpoint-blocks": (1, {"checkpoint_blocks": True}),
    "two ranks": (2, {}),
    "two ranks, --fsdp": (2, {"fsdp": True}),
    "--mixed-precision bf16": (1, {"mixed_precision": "bf16"}),
    "two ranks, bf16": (2, {"mixed_precision": "bf16"}),
}


def weights_after(config: TrainConfig, ranks: int) -> dict[str, torch.Tensor]:
    """Train a run and return its weights."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)] if ranks > 1 else []
    words = [sys.executable, *launcher, "-m", "repa_pipe.cli", "train", *config.flags(), "-q"]
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL, env=os.environ | {"OMP_NUM_THREADS": "1"})
    run = RunFolder(Path(config.output_dir) / str(config.exp_name))
    weights: dict[str, torch.Tensor] = load_checkpoint(run.last_checkpoint())["model"]
    return weights


def largest_difference(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    return max(float((value - other[name]).abs().max()) for name, value in one.items())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="SiT-T/2", help="model")
    parser.add_argument("--batch-size", type=at_least(4), default=16, help="global batch size")
    parser.add_argument("--steps", type=at_least(1), default=20, help="training steps")
    parser.add_argument("--folder", default=None, help="folder for the data. Default: the system's temporary folder")
    parser.add_argument("--out", type=Path, default=None, help="JSON file for the results")
    args = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        synthetic_store(Path(folder) / "store", "dinov2-vit-b", 4 * args.batch_size)
        settings = {"store": f"{folder}/store", "output_dir": f"{folder}/runs", "model": args.model, "device": "cpu"}
        settings |= {"batch_size": args.batch_size, "report_to": "none", "mixed_precision": "fp32"}
        initial = weights_after(TrainConfig(**settings, exp_name="initial", max_train_steps=1, learning_rate=1e-30), 1)
        base: dict[str, torch.Tensor] = {}
        for number, (name, (ranks, options)) in enumerate(VARIANTS.items()):
            config = TrainConfig(**settings | options, exp_name=str(number), max_train_steps=args.steps)
            weights = weights_after(config, ranks)
            base = base or weights
            change, difference = largest_difference(base, initial), largest_difference(base, weights)
            rows.append({"run": name, "difference": difference, "relative": difference / change})
            print(f"{name:<24} {difference:.1e}  {difference / change:.1%} of the largest change", flush=True)
    if args.out:
        values = {"model": args.model, "batch_size": args.batch_size, "steps": args.steps, "rows": rows}
        args.out.write_text(json.dumps(values, indent=1) + "\n")


if __name__ == "__main__":
    main()
