"""Measure how far the weights of one run differ when only ranks, memory savings or precision differ.

    python benchmarks/rounding.py [--model SiT-T/2] [--batch-size 16] [--steps 20] [--folder DIR]

The same run is trained with one rank in fp32, then with each of the options below, from a store of random numbers with
the shapes of SD-VAE and DINOv2-B. Prints the largest difference of any weight after the last step, and the largest
change that training made to a weight.
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

ONE_RANK, BF16 = "one rank", "one rank, bf16"
VARIANTS: dict[str, tuple[int, dict[str, object]]] = {  # name → ranks and settings
    ONE_RANK: (1, {}),
    "--microbatches 4": (1, {"microbatches": 4}),
    "--checkpoint-blocks": (1, {"checkpoint_blocks": True}),
    "two ranks": (2, {}),
    "two ranks, --fsdp": (2, {"fsdp": True}),
    BF16: (1, {"mixed_precision": "bf16"}),
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
        found: dict[str, dict[str, torch.Tensor]] = {}
        for number, (name, (ranks, options)) in enumerate(VARIANTS.items()):
            config = TrainConfig(**settings | options, exp_name=str(number), max_train_steps=args.steps)
            found[name] = weights_after(config, ranks)
            other = BF16 if name not in {ONE_RANK, BF16} and options.get("mixed_precision") else ONE_RANK
            change = largest_difference(found[ONE_RANK], initial)
            difference = largest_difference(found[other], found[name])
            rows.append({"run": name, "compared_with": other, "difference": difference, "largest_change": change})
            print(f"{name:<20} {difference:.1e} from {other:<15} (largest change {change:.1e})", flush=True)
    if args.out:
        values = {"model": args.model, "batch_size": args.batch_size, "steps": args.steps, "rows": rows}
        args.out.write_text(json.dumps(values, indent=1) + "\n")


if __name__ == "__main__":
    main()
