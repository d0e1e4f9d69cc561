"""Part of chaos.py: commands in processes of their own, and the undisturbed results that trials are compared with."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
from kill_encode import file_contents, make_images, make_vae

from repa_pipe.pipeline.artifacts.checkpoints import load_checkpoint

PRELOAD = [
    "diffusers.models.autoencoders.autoencoder_kl",
    "repa_pipe.cli",
    "repa_pipe.models.vae",
    "repa_pipe.models.encoders",
    "repa_pipe.pipeline.encode",
    "repa_pipe.pipeline.evaluate",
    "repa_pipe.pipeline.sampling.sampler",
    "repa_pipe.pipeline.training.trainer",
    "zarr",
]
ENCODER = "efficientnet-lite0"
IMAGES = 24
STEPS = 12
SAVED = 4  # steps between checkpoints
LONGEST_S = 180.0  # a command that takes longer hangs

ENCODE = ["--source", "images", "--vae", "vae", "--encoder", ENCODER, "--shard-size", "4", "--device", "cpu"]
TRAIN = [
    *("--store", "store", "--output-dir", ".", "--exp-name", "run", "--model", "SiT-T/2", "--encoder-depth", "2"),
    *("--projector-embed-dims", "32", "--batch-size", "4", "--mixed-precision", "fp32", "--device", "cpu"),
    *("--max-train-steps", str(STEPS), "--checkpointing-steps", str(SAVED), "--log-steps", "2", "--report-to", "none"),
]
SAMPLE = [
    *("--checkpoint", "run", "--num-fid-samples", "12", "--per-proc-batch-size", "2", "--num-steps", "4"),
    *("--out", "run/samples/set.npz", "--device", "cpu"),
]
EVALUATE = ["--samples", "run/samples/set.npz", "--reference", "images", "--resize", "256", "--detector", ENCODER]
SWEEP = f"""
[train]
model = "SiT-T/2"
encoder_depth = 2
projector_embed_dims = 32
batch_size = 4
max_train_steps = {SAVED}
mixed_precision = "fp32"
device = "cpu"
report_to = "none"
[grid]
seed = [0, 1]
[sample]
num_fid_samples = 4
num_steps = 2
device = "cpu"
[evaluate]
reference = "IMAGES"
resize = 256
detector = ["{ENCODER}"]
device = "cpu"
"""
COMMANDS: dict[str, list[str]] = {
    "encode": ["encode", "--store", "store", *ENCODE],
    "train": ["train", *TRAIN],
    "sample": ["sample", *SAMPLE],
    "evaluate": ["evaluate", *EVALUATE, "--device", "cpu"],
    "ablate": ["ablate", "sweep.toml", "--store", "store", "--out", "sweep", "--no-ray"],
}


@dataclass(frozen=True, slots=True)
class Ended:
    """How a command ended: its exit code, negative for a signal; its output; how long it took."""

    command: str
    code: int
    output: str
    seconds: float
    hung: bool = False

    @property
    def traceback(self) -> bool:
        """Whether the command printed a traceback."""
        return "Traceback (most recent call last)" in self.output

    @property
    def last_line(self) -> str:
        """The last line of the output that is not a progress line."""
        lines = [line for line in self.output.replace("\r", "\n").splitlines() if line.strip()]
        return lines[-1] if lines else "(no output)"


class Running:
    """A command in a process of its own, which leads a process group."""

    def __init__(self, name: str, process: BaseProcess, log: Path) -> None:
        self.name, self._process, self._log = name, process, log
        self._start = time.monotonic()

    def send(self, number: int) -> None:
        """Send a signal to the command; to all of its processes if it is SIGKILL."""
        if self._process.is_alive() and self._process.pid is not None:
            with suppress(ProcessLookupError):
                (os.killpg if number == signal.SIGKILL else os.kill)(self._process.pid, number)

    def wait_or(self, seconds: float) -> None:
        """Wait some seconds, or until the end."""
        self._process.join(seconds)

    def wait_until(self, condition: Callable[[], bool]) -> None:
        """Wait until a condition is met, or until the end."""
        while self._process.is_alive() and not condition():
            time.sleep(0.005)

    def wait(self, limit: float = LONGEST_S) -> Ended:
        """Wait for the end; a command that takes longer than `limit` seconds is killed, and counts as hung."""
        self._process.join(limit)
        hung = self._process.is_alive()
        if hung:
            self.send(signal.SIGKILL)
            self._process.join()
        output = self._log.read_text(errors="replace")
        code = self._process.exitcode
        return Ended(self.name, -signal.SIGKILL if code is None else code, output, time.monotonic() - self._start, hung)


def _main(
    words: Sequence[str], folder: str, log: str, limits: Mapping[int, int], environment: Mapping[str, str]
) -> None:
    """Run the command line with these words, as its own process would."""
    os.setsid()
    os.chdir(folder)
    os.environ.update(environment)
    fd = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(fd, 1)
    os.dup2(fd, 2)
    for limit, value in limits.items():
        resource.setrlimit(limit, (value, value))
    import torch

    from repa_pipe import cli

    torch.set_num_threads(1)
    sys.argv = ["repa-pipe", *words]
    cli.main()


@dataclass
class World:
    """A folder with images, a VAE, a store, a run, its samples and metrics, and a sweep, all made undisturbed.

    Attributes:
        folder: `reference/` has the results; a trial works in a copy of what it needs.
        rng: chooses moments, files, bytes and commands.
        seconds: how long each command took undisturbed.
        ended: the commands of the current trial.
    """

    folder: Path
    rng: random.Random
    seconds: dict[str, float] = field(default_factory=dict)
    ended: list[Ended] = field(default_factory=list)
    expected: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(PRELOAD)
        self.reference = self.folder / "reference"
        make_images(self.reference / "images", IMAGES)
        make_vae(self.reference / "vae")
        (self.reference / "sweep.toml").write_text(SWEEP.replace("IMAGES", str(self.reference / "images")))
        self.run("encode", self.reference, LONGEST_S, store="warm-up")  # imports and compiles, so that times are true
        for name in COMMANDS:
            ended = self.run(name, self.reference)
            if ended.code:
                raise RuntimeError(f"undisturbed, '{name}' ended with exit code {ended.code}: {ended.output}")
            self.seconds[name] = ended.seconds
            self.expected[name] = self.result(name, self.reference)

    def start(
        self,
        name: str,
        folder: Path,
        words: Sequence[str] | None = None,
        limits: Mapping[int, int] | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> Running:
        """Start a command of `COMMANDS`, or other words, in a folder."""
        log = self.folder / f"log-{len(self.ended)}-{random.getrandbits(32):08x}.txt"
        chosen = COMMANDS[name] if words is None else words
        arguments = ([self._place(word) for word in chosen], str(folder), str(log), limits or {}, environment or {})
        process = self._context.Process(target=_main, args=arguments)
        process.start()
        return Running(name, process, log)

    def finish(self, running: Running, limit: float = LONGEST_S) -> Ended:
        """Wait for a command, and keep how it ended for the verdict on the trial."""
        ended = running.wait(limit)
        self.ended.append(ended)
        return ended

    def run(self, name: str, folder: Path, limit: float = LONGEST_S, store: str | None = None, **how: Any) -> Ended:
        """Run a command to its end."""
        if store is not None:
            how["words"] = [store if word == "store" else word for word in COMMANDS[name]]
        return self.finish(self.start(name, folder, **how), limit)

    def _place(self, word: str) -> str:
        """Return images and VAE by their place, which a store records, and other words as they are."""
        return str(self.reference / word) if word in ("images", "vae") else word

    def copy(self, *names: str) -> Path:
        """Return a new folder with the sweep, and copies of the named results."""
        target = self.folder / f"trial-{random.getrandbits(48):012x}"
        target.mkdir()
        shutil.copy(self.reference / "sweep.toml", target)
        for name in names:
            source = self.reference / name
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            (shutil.copytree if source.is_dir() else shutil.copy)(source, target / name)
        return target

    def needs(self, name: str) -> tuple[str, ...]:
        """Return the results that a command reads."""
        return {
            "encode": (),
            "train": ("store",),
            "sample": ("run/train.json", "run/checkpoints"),
            "ablate": ("store",),
        }.get(name, ("run/samples/set.npz", "run/samples/set.json"))

    def result(self, name: str, folder: Path) -> Any:
        """Return what a command has written, in a form that can be compared."""
        if name == "encode":
            return file_contents(folder / "store")
        if name == "train":
            path = folder / f"run/checkpoints/{STEPS:07d}.pt"
            values = load_checkpoint(path)
            return {
                f"{part}.{key}": value.numpy().tobytes()
                for part in ("model", "ema")
                for key, value in values[part].items()
            }
        if name == "sample":
            with np.load(folder / "run/samples/set.npz") as arrays:
                return {key: arrays[key].tobytes() for key in arrays.files}
        if name == "evaluate":
            return json.loads((folder / "run/samples/set.metrics.json").read_text())["metrics"]
        rows = json.loads((folder / "sweep/results.json").read_text())["runs"]
        return [
            {key: value for key, value in row.items() if key.startswith(("fd_", "val_")) or "loss" in key}
            for row in rows
        ]

    def same(self, name: str, folder: Path) -> bool:
        """Return whether a command has written what it writes undisturbed."""
        try:
            return bool(self.result(name, folder) == self.expected[name])
        except Exception as error:
            self.ended.append(Ended(f"(reading the result of {name})", 1, str(error), 0))
            return False
