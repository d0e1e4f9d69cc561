"""Whether alignment lowers the denoising loss in fewer steps, on a small store of real photographs, over several seeds.

    python benchmarks/alignment_helps.py --folder DIR [--steps 600] [--seeds 3] [--out FILE.json]

The demo's 320 crops of 20 photographs, its model (SiT-T/2) and its training settings; each seed trains once with
`--proj-coeff 0.5` and once without, on the same batches and the same noise. A run's curve is its mean denoising loss
in windows of `--window` steps. Reported for every seed: the last window's loss of both runs, and the first step whose
window is as low as the last window of the run without alignment. DIR keeps everything, so the same command continues.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

from repa_pipe.config import EncodeConfig, TrainConfig
from repa_pipe.pipeline import encode, train
from repa_pipe.pipeline.artifacts.metrics_log import read_metrics
from repa_pipe.pipeline.demo import ENCODER, PROJ_COEFF, TRAINING, VAE
from repa_pipe.sources.demo_images import make_crops


def curve(run: str, window: int) -> tuple[np.ndarray, np.ndarray]:
    """Last steps of the windows, and the mean denoising loss in each."""
    rows = read_metrics(Path(run))
    every = max(1, window // rows[0]["step"])
    count = len(rows) // every
    losses = np.array([row["denoising_loss"] for row in rows][: count * every]).reshape(count, every).mean(axis=1)
    return np.array([row["step"] for row in rows])[every - 1 :: every][:count], losses


def first_step(steps: np.ndarray, losses: np.ndarray, level: float) -> int | None:
    """The first window's last step whose loss is at most `level`."""
    low = np.flatnonzero(losses <= level)
    return int(steps[low[0]]) if len(low) else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--window", type=int, default=50)
    parser.add_argument("--out", type=Path, default=None, help="JSON file for the rows")
    args = parser.parse_args()
    images, store = args.folder / "images", args.folder / "store"
    if not images.exists():
        make_crops(images)
    encode.run(EncodeConfig(source=str(images), store=str(store), vae=VAE, encoder=(ENCODER,)))
    rows = []
    for seed in range(args.seeds):
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
            curves[name] = curve(train.run(config).run, args.window)
        level = float(curves["plain"][1][-1])
        rows.append(
            {
                "seed": seed,
                "plain_last": round(level, 4),
                "aligned_last": round(float(curves["aligned"][1][-1]), 4),
                "plain_reaches_it_at": first_step(*curves["plain"], level),
                "aligned_reaches_it_at": first_step(*curves["aligned"], level),
            }
        )
        print(json.dumps(rows[-1]), flush=True)
    if args.out:
        args.out.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
