"""Run every benchmark that needs a GPU, unattended, and write one file of results with tables for the documentation.

    benchmarks/gpu.sh [--out benchmarks/results/gpu.json] [--tiny] [--only PART …]

Parts, each in a process of its own with a time limit; together at most 40 minutes on an H100. A part that fails or
takes too long is recorded with its error, and the next one begins:

    tests          the tests that are skipped without CUDA
    step           training steps of SiT-S, B and L: from memory, from the store, with the encoder online; MFU
    step, float8   the same of SiT-XL, also with products in float8 (torchao)
    loss, float8   losses of SiT-S after 2,000 steps with and without float8
    step, giant    steps with the widest encoder
    sample         images per second with and without guidance, compared with the published loop
    encode models  images per second of the VAE, the encoder, and both
    decode codes   cost of decoding int8 and int4 tokens, with and without torch.compile

`--tiny` runs the same commands with the smallest sizes, for a CPU: it shows that they work, its numbers mean nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

FOLDER = Path(__file__).parent
PEAK_TFLOPS = {"H100": 989.0, "H200": 989.0, "A100": 312.0}  # dense bf16


@dataclass(frozen=True)
class Part:
    """A benchmark: its command, with OUT for the file of its results, for a GPU and in its smallest form."""

    name: str
    minutes: float
    command: str
    tiny: str


PARTS = [
    Part("tests", 2, "-m pytest -q -k cuda {tests}", "-m pytest -q -k cuda {tests}/metrics/test_cuda.py"),
    Part(
        "step",
        9,
        "{here}/step.py --model SiT-S/2 SiT-B/2 SiT-L/2 --batch-size 128 --peak-tflops {peak} --out OUT",
        "{here}/step.py --model SiT-T/2 --batch-size 1 --steps 1 --rounds 1 --samples 8 --precision fp32 --out OUT",
    ),
    Part(
        "step, float8",
        5,
        "{here}/step.py --model SiT-XL/2 --float8 --batch-size 128 --peak-tflops {peak} --out OUT",
        "",  # torchao is not among the development tools
    ),
    Part(
        "loss, float8",
        3,
        "{here}/step.py --model SiT-S/2 --float8 --loss-steps 2000 --batch-size 128 --rounds 1 --out OUT",
        "",
    ),
    Part(
        "step, giant",
        4,
        "{here}/step.py --model SiT-B/2 --encoder dinov2-vit-g --batch-size 128 --samples 2048 --out OUT",
        "",  # a billion weights are too many for a CPU
    ),
    Part(
        "tokens as latents",
        3,
        "{here}/cached_vs_online.py --token-latents dinov2reg-vit-b@norm=plain --model DiT-DH-XL --random-weights "
        "--images 64 --batch-size 16 --steps 12 --out OUT",
        "{here}/cached_vs_online.py --token-latents efficientnet-lite0 --steps 3 --images 4 --batch-size 1 --out OUT",
    ),
    Part(
        "sample",
        4,
        "{here}/sample.py --model SiT-XL/2 --vae {vae} --images 128 --batch-size 64 --num-steps 50 --precision bf16 "
        "--rounds 3 --compile --cfg-scale 1.8 --out OUT",
        "{here}/sample.py --model SiT-T/8 --resolution 64 --images 2 --batch-size 2 --num-steps 1 --rounds 1 --out OUT",
    ),
    Part(
        "sample, no guidance",
        3,
        "{here}/sample.py --model SiT-XL/2 --vae {vae} --images 128 --batch-size 64 --num-steps 50 --precision bf16 "
        "--rounds 3 --compile --cfg-scale 1 --out OUT",
        "",
    ),
    Part(
        "encode models",
        4,
        "{here}/encode_models.py --encoder dinov2-vit-b dinov2-vit-g --out OUT",
        "{here}/encode_models.py --batch-size 1 --batches 1 --rounds 1 --side 32 --out OUT",
    ),
    Part(
        "decode codes",
        3,
        "{here}/decode_codes.py --out OUT",
        "{here}/decode_codes.py --batch-size 2 --rounds 1 --no-compile --out OUT",
    ),
]


def run(part: Part, command: str, folder: Path) -> dict[str, Any]:
    """Run a part; return its results, its seconds, and the end of its output if it failed."""
    out, start = folder / f"{part.name.replace(' ', '-')}.json", time.monotonic()
    words = [word if word != "OUT" else str(out) for word in command.split()]
    try:
        done = subprocess.run(
            [sys.executable, *words], capture_output=True, text=True, timeout=60 * part.minutes, check=False
        )
        error = None if done.returncode == 0 else f"exit code {done.returncode}: {(done.stdout + done.stderr)[-800:]}"
        output = done.stdout
    except subprocess.TimeoutExpired:
        error, output = f"not finished after {part.minutes:g} minutes", ""
    found: Any = json.loads(out.read_text()) if out.exists() else output[-300:]
    return {"part": part.name, "seconds": round(time.monotonic() - start, 1), "error": error, "results": found}


def table(rows: list[dict[str, Any]]) -> str:
    """Return rows of plain values as a table in Markdown."""
    plain = [{key: value for key, value in row.items() if not isinstance(value, dict | list)} for row in rows]
    names = list(dict.fromkeys(key for row in plain for key in row))
    lines = [names, ["---"] * len(names), *([str(row.get(name, "")) for name in names] for row in plain)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def random_vae_folder(folder: Path) -> Path:
    """Write Stable Diffusion's VAE with random weights, in the format of diffusers."""
    from diffusers import AutoencoderKL
    from encode_models import SD_VAE

    AutoencoderKL(**SD_VAE).save_pretrained(folder / "vae")
    return folder / "vae"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=FOLDER / "results" / "gpu.json", help="JSON file for the results")
    parser.add_argument("--tiny", action="store_true", help="run the smallest sizes, also without a GPU")
    parser.add_argument("--only", nargs="+", choices=[part.name for part in PARTS], help="run only these parts")
    args = parser.parse_args()
    if not args.tiny and not torch.cuda.is_available():
        parser.error("this machine has no GPU: pass --tiny to check that the commands work")
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or "CPU"
    peak = next((tflops for name, tflops in PEAK_TFLOPS.items() if name in device), 0.0)
    facts = {"device": device, "torch": torch.__version__, "processors": os.cpu_count(), "tiny": args.tiny, "parts": []}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        vae = "" if args.tiny else random_vae_folder(folder)
        for part in PARTS:
            command = part.tiny if args.tiny else part.command
            if not command or (args.only and part.name not in args.only):
                continue
            command = command.format(here=FOLDER, tests=FOLDER.parent / "tests", peak=peak, vae=vae)
            found = run(part, command, folder)
            facts["parts"].append(found)
            print(f"\n{part.name}: {found['error'] or 'done'} ({found['seconds']} s)", flush=True)
            if isinstance(found["results"], list):
                print(table(found["results"]), flush=True)
            args.out.write_text(json.dumps(facts, indent=1) + "\n")
    if failed := [found["part"] for found in facts["parts"] if found["error"]]:
        sys.exit(f"failed: {', '.join(failed)} (see {args.out})")


if __name__ == "__main__":
    main()
