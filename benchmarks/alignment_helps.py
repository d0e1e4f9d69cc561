"""Test whether alignment lowers the denoising loss in fewer steps: a small store of real images, several seeds.

    python benchmarks/alignment_helps.py --folder DIR [--steps 600] [--seeds 3] [--out FILE.json]

Uses the demo's 320 crops of 20 images, its model (SiT-T/2) and its training settings. Each seed trains twice, with
`--proj-coeff 0.5` and without alignment, on the same batches and the same noise. The curve of a run is its mean
denoising loss in windows of `--window` steps. For each seed, the report contains the loss of both runs in the last
window, and the first step at which each run is as low as the run without alignment is in its last window. All files
stay in DIR: re-run the same command to resume.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from arguments import at_least

from repa_pipe.config import EncodeConfig, TrainConfig
from repa_pipe.pipeline import encode, train
from repa_pipe.pipeline.artifacts.metrics_log import read_metrics
from repa_pipe.pipeline.artifacts.run_folder import RunFolder
from repa_pipe.pipeline.demo import ENCODER, PROJ_COEFF, TRAINING, VAE
from repa_pipe.sources.demo_images import make_crops


def loss_curve(run: str, window: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the last step of each window, and the mean denoising loss in it."""
    rows = read_metrics(RunFolder(Path(run)))
    every = max(1, window // rows[0]["step"])
    count = len(rows) // every
    losses = np.array([row["denoising_loss"] for row in rows][: count * every]).reshape(count, every).mean(axis=1)
    return np.array([row["step"] for row in rows])[every - 1 :: every][:count], losses


def first_step_at(level: float, steps: np.ndarray, losses: np.ndarray) -> int | None:
    """Return the last step of the first window with a loss of at most `level`."""
    low = np.flatnonzero(losses <= level)
    return int(steps[low[0]]) if len(low) else None


def compare(seed: int, store: Path, args: argparse.Namespace) -> dict[str, object]:
    """Train with and without alignment; return one row of the result."""
    curves = {}
    for name, coefficient in (("aligned", PROJ_COEFF), ("plain", 0.0)):
        config = TrainConfig(
            store=str(store),
            output_dir=str(args.folder / "runs"),
            exp_name=f"{name}-{seed}",
            proj_coeff=coefficient,
            max_train_steps=args.steps,
            seed=seed,
            mixed_precision=args.precision,
            **TRAINING,
        )
        curves[name] = loss_curve(train.run(config).run, args.window)
    level = float(curves["plain"][1][-1])
    return {
        "seed": seed,
        "plain_last": round(level, 4),
        "aligned_last": round(float(curves["aligned"][1][-1]), 4),
        "plain_reaches_it_at": first_step_at(level, *curves["plain"]),
        "aligned_reaches_it_at": first_step_at(level, *curves["aligned"]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="folder for the images, the store and the runs")
    parser.add_argument("--steps", type=at_least(1), default=600, help="training steps per run")
    parser.add_argument("--seeds", type=at_least(1), default=3, help="number of seeds")
    parser.add_argument("--precision", default="fp32", help="mixed precision of the training")
    parser.add_argument("--window", type=int, default=50, help="steps per window of the loss curve")
    parser.add_argument("--out", type=Path, default=None, help="JSON file for the results")
    args = parser.parse_args()
    every = TRAINING["log_steps"]
    if args.window < every or args.steps < args.window:
        parser.error(f"--window is {args.window}: expected {every} (steps per log row) to {args.steps} (--steps)")
    images, store = args.folder / "images", args.folder / "store"
    if not images.exists():
        make_crops(images)
    encode.run(EncodeConfig(source=str(images), store=str(store), vae=VAE, encoder=(ENCODER,)))
    rows = []
    for seed in range(args.seeds):
        rows.append(compare(seed, store, args))
        print(json.dumps(rows[-1]), flush=True)
    if args.out:
        args.out.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
