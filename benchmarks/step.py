"""Compare the speed of training from a store with the same trainer fed from memory, and with an online encoder.

    python benchmarks/step.py --model SiT-B/2 --encoder dinov2-vit-b [--batch-size 256] [--steps 20] [--rounds 3]

For each encoder, a store is filled with random numbers of the real shapes: the values do not affect speed. Three ways
to take the same step are timed in turn, `--rounds` times each; results are medians:

    memory   one batch that is already on the device: the cost of the step without any reading
    store    batches read, shuffled and copied from the store, as in `repa-pipe train`
    online   the batch from memory, the tokens from the encoder, which encodes 256 px images in the step

A breakdown of the step from memory follows. The device is synchronized after every part, so the sum is more than the
time of a step, whose parts overlap.

With `--float8`, a second row follows with the matrix products of the blocks in float8 (torchao, `pip install
'.[bench]'`, an H100 or later). `--loss-steps 2000` takes as many more steps from the store and adds the mean loss of
the last tenth, to compare both.

The weights of the encoder are random. MFU counts three forward passes of the model (without recomputation) relative to
`--peak-tflops`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from itertools import islice, product, repeat
from pathlib import Path
from typing import Any

import torch
from arguments import at_least
from synthetic import sample_bytes, synthetic_store
from torch import nn

from repa_pipe.config import TrainConfig
from repa_pipe.models.flops import model_flops
from repa_pipe.pipeline.artifacts.run_folder import RunFolder
from repa_pipe.pipeline.runtime.distributed import DistributedContext
from repa_pipe.pipeline.runtime.progress import progress
from repa_pipe.pipeline.runtime.seeds import seed_weights
from repa_pipe.pipeline.training.prefetch import prefetch_to_device
from repa_pipe.pipeline.training.setup import resolve
from repa_pipe.pipeline.training.trainer import Trainer
from repa_pipe.stores import Batch, open_store


def online_encoder(name: str, device: torch.device) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return an encoder with random weights, from images uint8 `[B, 3, 256, 256]` to tokens; fp16 autocast on a GPU."""
    import timm

    architecture = {"dinov2-vit-b": "vit_base_patch14_dinov2", "dinov2-vit-g": "vit_giant_patch14_dinov2"}[name]
    network = timm.create_model(architecture, pretrained=False, img_size=224, num_classes=0).to(device).eval()
    mean, std = (
        torch.tensor(v, device=device).reshape(1, 3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    )

    @torch.no_grad()
    def encode(images: torch.Tensor) -> torch.Tensor:
        pixels = torch.nn.functional.interpolate((images / 255.0 - mean) / std, 224, mode="bicubic")
        with torch.autocast(device.type, torch.float16, device.type == "cuda"):
            tokens: torch.Tensor = network.forward_features(pixels)[:, network.num_prefix_tokens :]
        return tokens

    return encode


def timed(trainer: Trainer, batches: Iterator[Batch], steps: int) -> float:
    """Return seconds per step."""
    for batch in islice(batches, 2):
        trainer.train_step(batch)
    _synchronize(trainer.device)
    start = time.perf_counter()
    for batch in islice(batches, steps):
        trainer.train_step(batch)
        trainer.step += 1
    _synchronize(trainer.device)
    return (time.perf_counter() - start) / steps


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def online_batches(
    batch: Batch, encode: Callable[[torch.Tensor], torch.Tensor], images: torch.Tensor
) -> Iterator[Batch]:
    """Yield the batch repeatedly, with new tokens from the encoder each time."""
    while True:
        yield batch._replace(patch_tokens=[encode(images)])


def use_float8(blocks: nn.Module, emulate: bool) -> None:
    """Compute the products of attention and MLP in float8, scaled per tensor; weights stay float32.

    Modulation stays as it is: its products have one row per image, too few for a gain.
    """
    from torchao.float8 import Float8LinearConfig, convert_to_float8_training

    layers = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    convert_to_float8_training(
        blocks,
        module_filter_fn=lambda _, name: name.endswith(layers),
        config=Float8LinearConfig(emulate=emulate),
    )


def late_loss(trainer: Trainer, batches: Iterator[Batch], steps: int) -> float:
    """Take steps; return the mean loss of the last tenth."""
    losses = []
    for batch in islice(batches, steps):
        losses.append(trainer.train_step(batch)[0])
        trainer.step += 1
    return float(torch.stack(losses[-max(1, steps // 10) :]).mean())


def measure(
    model: str, encoder: str, args: argparse.Namespace, store_path: Path, float8: bool = False
) -> dict[str, object]:
    """Time all three ways for one model and encoder; return one row of the result."""
    with open_store(store_path) as store, tempfile.TemporaryDirectory() as runs:
        config = TrainConfig(
            store=str(store_path),
            output_dir=runs,
            model=model,
            batch_size=args.batch_size,
            mixed_precision=args.precision,
        )
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        config = resolve(config, store)
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = config.allow_tf32  # as `train` does
        seed_weights(config.seed)  # so that losses with and without float8 begin with the same weights
        trainer = Trainer(config, store, device, DistributedContext(0, 1), RunFolder(Path(runs)))
        if float8:
            use_float8(trainer.model.blocks, emulate=device.type == "cpu")
        sit = trainer.model.config
        flops = model_flops(model, sit.input_size, sit.in_channels, sit.z_dims)
        encode = online_encoder(encoder, device)
        images = torch.randint(0, 256, (args.batch_size, 3, 256, 256), dtype=torch.uint8, device=device)
        seconds: dict[str, list[float]] = {"memory": [], "store": [], "online": []}
        with closing(prefetch_to_device(trainer.dataset, device, 0)) as batches:
            batch = next(batches)
            timed(trainer, repeat(batch), 3)  # compiles
            timed(trainer, online_batches(batch, encode, images), 1)
            for _ in range(args.rounds):
                seconds["memory"].append(timed(trainer, repeat(batch), args.steps))
                seconds["store"].append(timed(trainer, batches, args.steps))
                seconds["online"].append(timed(trainer, online_batches(batch, encode, images), args.steps))
            parts = breakdown(trainer, batch, args.steps)
            loss = late_loss(trainer, batches, args.loss_steps) if args.loss_steps else None
    step = {name: statistics.median(values) for name, values in seconds.items()}
    row: dict[str, object] = {
        "model": model,
        "encoder": encoder,
        "batch_size": args.batch_size,
        "precision": f"{args.precision}, float8" if float8 else args.precision,
        **{f"{name}_images_per_s": round(args.batch_size / value, 1) for name, value in step.items()},
        "store_over_memory": round(step["memory"] / step["store"], 3),
        "store_over_online": round(step["online"] / step["store"], 3),
        "milliseconds": parts,
        "forward_gflops_an_image": round(flops / 1e9, 2),
        "samples_mib_a_second": round(args.batch_size / step["store"] * sample_bytes(store) / 2**20),
    }
    if loss is not None:
        row["loss"] = round(loss, 4)
    if args.peak_tflops:
        row["mfu"] = round(3 * flops * args.batch_size / step["store"] / (args.peak_tflops * 1e12), 3)
    if device.type == "cuda":
        row["peak_gib"] = round(torch.cuda.max_memory_allocated() / 2**30, 1)
        torch.cuda.reset_peak_memory_stats()
    return row


def breakdown(trainer: Trainer, batch: Batch, steps: int) -> dict[str, float]:
    """Return the milliseconds of the parts of a step."""
    spent: Counter[str] = Counter()

    def timing(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            _synchronize(trainer.device)
            start = time.perf_counter()
            result = function(*args, **kwargs)
            _synchronize(trainer.device)
            spent[name] += time.perf_counter() - start
            return result

        return call

    parts = [
        (trainer.objective, "inputs"),
        (trainer, "_call"),
        (trainer, "_accumulate_gradients"),
        (nn.utils, "clip_grad_norm_"),
        (trainer.nonfinite, "check"),
        (trainer.optimizers["adamw"], "step"),
        (trainer.ema, "update"),
    ]
    functions = [getattr(owner, name) for owner, name in parts]
    for (owner, name), function in zip(parts, functions, strict=True):
        setattr(owner, name, timing(name, function))
    total = timed(trainer, repeat(batch), steps) * (steps + 2)  # `timed` takes two more steps for warm-up
    for (owner, name), function in zip(parts, functions, strict=True):
        setattr(owner, name, function)
    named = {
        "draws_and_decoding": spent["inputs"],
        "forward": spent["_call"],
        "backward": spent["_accumulate_gradients"] - spent["_call"],
        "gradient_norm": spent["clip_grad_norm_"],
        "finite_check": spent["check"],
        "optimizer": spent["step"],
        "ema": spent["update"],
    }
    named["rest"] = max(0.0, total - sum(named.values()))
    per_step = {name: seconds / (steps + 2) for name, seconds in named.items()}
    per_step["logging"] = logging_seconds(trainer, batch)
    return {name: round(1000 * seconds, 2) for name, seconds in per_step.items()}


def logging_seconds(trainer: Trainer, batch: Batch, steps: int = 300) -> float:
    """Return seconds per step for metrics, progress line and the rows that are written every 100 steps."""
    values = trainer.train_step(batch)
    with closing(trainer._open_monitor(None)) as monitor, progress("log", steps, "steps") as bar:
        start = time.perf_counter()
        for step in range(1, steps + 1):
            monitor.log_step(trainer.step + step, values, 0.0, bar, {})
        return (time.perf_counter() - start) / steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="+", default=["SiT-B/2"], help="models to train")
    parser.add_argument("--encoder", nargs="+", default=["dinov2-vit-b"], help="encoders to align with")
    parser.add_argument("--batch-size", type=at_least(1), default=256, help="images per step")
    parser.add_argument("--precision", default="bf16", help="mixed precision of the training")
    parser.add_argument("--steps", type=at_least(1), default=20, help="steps per measurement, after two for warm-up")
    parser.add_argument("--rounds", type=at_least(1), default=3, help="number of rounds")
    parser.add_argument("--samples", type=at_least(1), default=4096, help="samples in the store")
    parser.add_argument("--float8", action="store_true", help="also measure with products in float8")
    parser.add_argument("--loss-steps", type=int, default=0, help="more steps, whose last losses are compared")
    parser.add_argument("--peak-tflops", type=float, default=0.0, help="peak TFLOP/s of the device, for MFU")
    parser.add_argument("--out", type=Path, default=None, help="JSON file for the results")
    args = parser.parse_args()
    rows = []
    for encoder in args.encoder:
        with tempfile.TemporaryDirectory() as folder:
            store = Path(folder) / "store"
            synthetic_store(store, encoder, args.samples)
            for model, float8 in product(args.model, [False, True] if args.float8 else [False]):
                rows.append(measure(model, encoder, args, store, float8))
                print(json.dumps(rows[-1]), flush=True)
                if args.out:
                    args.out.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
