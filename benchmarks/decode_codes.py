"""Cost of restoring stored tokens on the device of the training, by codec, with and without torch.compile.

    python benchmarks/decode_codes.py [--batch-size 256] [--rounds 20] [--no-compile]

A step decodes the codes of its batch once. Tokens have the shape of DINOv2-B's, 256 x 768; codes are random numbers.
Results are medians over the rounds, in which the ways take turns. `disk_us` is the time that a disk of 1 GB/s needs for
the same codes: decoding must be cheaper than what it saves compared with float16.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections import defaultdict
from pathlib import Path

import torch
from arguments import at_least

from repa_pipe.stores.codecs import CODEC_NAMES, make_codec

TOKENS, WIDTH = 256, 768


def random_codes(dtype: str, shape: tuple[int, ...], device: torch.device) -> torch.Tensor:
    if dtype.startswith("float"):
        return torch.randn(shape, device=device).to(getattr(torch, dtype))
    low, high = (-127, 127) if dtype == "int8" else (0, 256)
    return torch.randint(low, high, shape, device=device).to(getattr(torch, dtype))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch-size", type=at_least(1), default=256, help="samples per batch")
    parser.add_argument("--rounds", type=at_least(1), default=20, help="number of rounds")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True, help="also compiled")
    parser.add_argument("--out", type=Path, default=None, help="JSON file for the results")
    args = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    synchronize = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    ways, sizes = {}, {}
    for name in CODEC_NAMES:
        codec = make_codec(name, TOKENS, WIDTH)
        spec = next(array for array in codec.arrays if array.name == "tokens")
        codes = random_codes(spec.dtype, (args.batch_size, *spec.sample_shape), device)
        sizes[name] = spec.sample_bytes
        ways[name, False] = (codec.decode, codes)
        if args.compile:
            ways[name, True] = (torch.compile(codec.decode), codes)
    seconds = defaultdict(list)
    for number in range(args.rounds + 2):
        for way, (decode, codes) in ways.items():
            synchronize()
            start = time.perf_counter()
            decode(codes, None, dtype)
            synchronize()
            if number >= 2:  # the first ones compile
                seconds[way].append(time.perf_counter() - start)
    rows = [
        {
            "codec": name,
            "compiled": compiled,
            "decode_us": round(1e6 * statistics.median(found) / args.batch_size, 3),
            "disk_us": round(sizes[name] / 1e3, 1),
        }
        for (name, compiled), found in seconds.items()
    ]
    print(json.dumps(rows, indent=1))
    if args.out:
        args.out.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
