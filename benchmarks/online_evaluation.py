"""Measure whether evaluation while training (`train --eval-every`) slows the steps, with a spare core.

    python benchmarks/online_evaluation.py [--steps 400] [--rounds 3] [--out FILE.json]

The same run is trained with and without evaluations, in turn, each with one thread, on the demo's photographs at 64
pixels. As soon as one evaluation has ended, the next one begins. Only rows of the log during which evaluations ran are
counted, and the same rows of the run without them. The weights of both runs are compared bit by bit.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import torch
from arguments import at_least
from cached_vs_online import select_crops

from repa_pipe.config import EncodeConfig, TrainConfig
from repa_pipe.pipeline import encode
from repa_pipe.pipeline.artifacts.checkpoints import load_checkpoint
from repa_pipe.pipeline.artifacts.metrics_log import read_metrics
from repa_pipe.pipeline.artifacts.run_folder import RunFolder

ENCODER = "efficientnet-lite0"
LOG_STEPS = 20
EVALUATIONS = 3  # the first one begins after a third of the steps, and one runs until the end


def train(config: TrainConfig) -> RunFolder:
    """Train in a process of its own; return the run."""
    command = [sys.executable, "-m", "repa_pipe.cli", "train", *config.flags()]
    subprocess.run(command, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL)
    return RunFolder.of(config)


def compare(folder: Path, args: argparse.Namespace) -> dict[str, object]:
    """Return the ratio of the rates with and without evaluations, per round."""
    images, store = select_crops(folder, 32), str(folder / "store")
    encode.run(
        EncodeConfig(source=str(images), store=store, encoder=(ENCODER,), vae="tiny-kl-f8", resolution=64, device="cpu")
    )
    config = TrainConfig(
        store=store,
        output_dir=str(folder / "runs"),
        model="SiT-T/2",
        projector_embed_dims=256,
        batch_size=16,
        max_train_steps=args.steps,
        checkpointing_steps=args.steps,
        log_steps=LOG_STEPS,
        eval_images=args.images,
        eval_detector=(ENCODER,),
        mixed_precision="fp32",
        report_to="none",
        device="cpu",
    )
    every = args.steps // EVALUATIONS // LOG_STEPS * LOG_STEPS
    ratios, evaluated, same = [], 0, True
    for number in range(args.rounds):
        runs = [
            train(replace(config, exp_name=f"{kind}-{number}", eval_every=steps))
            for kind, steps in (("plain", 0), ("online", every))
        ]
        plain, online = (read_metrics(run) for run in runs)
        later = [[row["images_per_s"] for row in rows if row["step"] > every] for rows in (plain, online)]
        rates = [statistics.median(each) for each in later]
        ratios.append(rates[1] / rates[0])
        evaluated = sum(any(name.startswith("eval_") and row[name] is not None for name in row) for row in online)
        weights = [load_checkpoint(run.last_checkpoint())["ema"] for run in runs]
        same &= all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
        print(json.dumps({"round": number, "images_per_s": rates, "ratio": ratios[-1]}), flush=True)
    return {
        "cores": os.cpu_count(),
        "steps": args.steps,
        "images": args.images,
        "evaluations": evaluated,
        "ratios": [round(ratio, 3) for ratio in ratios],
        "median_ratio": round(statistics.median(ratios), 3),
        "same_weights": same,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=at_least(2 * EVALUATIONS * LOG_STEPS), default=300, help="steps of each run")
    parser.add_argument("--images", type=at_least(4), default=32, help="images per evaluation")
    parser.add_argument("--rounds", type=at_least(1), default=3, help="pairs of runs")
    parser.add_argument("--out", type=Path, default=None, help="JSON file for the results")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = compare(Path(folder), args)
    print(json.dumps(result, indent=1))
    if args.out:
        args.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
