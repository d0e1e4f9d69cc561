"""`repa-pipe train`: from a store to checkpoints. No encoder, no VAE: both are in the store.

Every draw of step s (time, noise, posterior, dropped labels) is made for the whole global batch from a generator
seeded by (seed, s), and the order of samples comes from (seed, epoch): a killed run that is started again goes on as
if nothing had happened, and the number of ranks changes nothing but rounding.
"""

from __future__ import annotations

import dataclasses
import signal
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..config import TrainConfig, read_config
from ..errors import CheckpointError, ConfigError, StoreError
from ..models.ema import Ema
from ..models.sit import SiT, load_sit_state, sit_config
from ..stores import AlignmentDataset, Batch, Store, open_store
from ..stores.codecs import Codec, codec_from_attributes
from ..stores.files import write_json
from ..stores.layout import features_group, latents_group
from .checkpoints import StoreFacts, drop_old_checkpoints, list_checkpoints, load_checkpoint, save_checkpoint
from .device import DTYPES, choose_device
from .distributed import Ranks, join_ranks
from .feed import device_batches
from .metrics_log import Watch
from .objective import Draws, Objective
from .progress import progress, say

CONFIG_FILE = "train.json"


@dataclass(frozen=True, slots=True)
class TrainResult:
    """What a run of `train` did."""

    run: str
    step: int
    checkpoint: str
    seconds: float
    interrupted: bool = False


def run(config: TrainConfig) -> TrainResult:
    """Train to `max_train_steps`, from the last checkpoint of the run if it has one.

    Raises ConfigError, StoreError, CheckpointError for what cannot work, naming the flag to change.
    """
    start = time.monotonic()
    device = choose_device(config.device)
    with join_ranks(device) as ranks, open_store(config.store) as store, _interruptible() as interrupted:
        config = resolve(config, store)
        run_dir = Path(config.output_dir) / str(config.exp_name)
        _require_same_run(run_dir, config)
        trainer = Trainer(config, store, device, ranks, run_dir)
        trainer.resume()
        if ranks.is_first:
            write_json(run_dir / CONFIG_FILE, config.as_json())
        if trainer.step >= config.max_train_steps:
            say(f"{run_dir} has its {trainer.step:,} steps; nothing to do (raise --max-train-steps to go on)")
        else:
            trainer.train(interrupted)
        last = str(list_checkpoints(run_dir)[-1])
        return TrainResult(str(run_dir), trainer.step, last, round(time.monotonic() - start, 1), bool(interrupted))


def resolve(config: TrainConfig, store: Store) -> TrainConfig:
    """Fill in what the store decides: VAE, encoders, classes, the run's name."""
    vae = config.vae or _only(store, "latents", "--vae")
    encoders = config.enc_type
    if not config.proj_coeff:
        encoders = ()
    elif not encoders:
        encoders = (_only(store, "features", "--enc-type"),)
    name = "-".join(
        [config.model.replace("/", "-").lower(), *(encoders or ("no-alignment",)), f"{config.proj_coeff:g}"]
    )
    return dataclasses.replace(
        config,
        vae=vae,
        enc_type=encoders,
        num_classes=config.num_classes or len(store.manifest.class_names),
        exp_name=config.exp_name or name.replace("/", "-"),
    )


def _only(store: Store, kind: str, option: str) -> str:
    names = [name.split("/", 1)[1] for name in store.group_names() if name.startswith(f"{kind}/")]
    if len(names) != 1:
        there = f"{store.path} has {', '.join(names)}" if names else f"{store.path} has no {kind}"
        raise ConfigError(f"{option} is not given and {there}: name one (or 'repa-pipe encode' it first)")
    return names[0]


def _require_same_run(run_dir: Path, config: TrainConfig) -> None:
    """Raise ConfigError when the run has checkpoints of another configuration."""
    if not list_checkpoints(run_dir):
        return
    different = TrainConfig.from_json(read_config(run_dir / CONFIG_FILE)).differences(config)
    if different:
        raise ConfigError(
            f"{run_dir} was started with another configuration ({'; '.join(different)}): "
            "use the same flags to go on, or another --exp-name"
        )


class Trainer:
    """A model, its average, its optimiser, and the step that they have reached."""

    def __init__(self, config: TrainConfig, store: Store, device: torch.device, ranks: Ranks, run_dir: Path) -> None:
        self.config, self.device, self.ranks, self.run_dir = config, device, ranks, run_dir
        self.step = 0
        self.dataset = AlignmentDataset(
            store,
            latents=str(config.vae),
            encoders=config.enc_type,
            batch_size=config.batch_size,
            seed=config.seed,
            rank=ranks.rank,
            world_size=ranks.world_size,
            window=config.shuffle_window,
        )
        self._require_parts()
        self.facts = _store_facts(config, store)
        self._codecs = [_codec(store, encoder) for encoder in config.enc_type]
        torch.manual_seed(config.seed)
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = config.allow_tf32
        self.model = _build(config, store).to(device)
        self.model.checkpoint_blocks = config.checkpoint_blocks
        self.ema = Ema(self.model, config.ema_decay)
        self.optimizer = torch.optim.AdamW(
            [weight for weight in self.model.parameters() if weight.requires_grad],
            lr=config.learning_rate,
            betas=(config.adam_beta1, config.adam_beta2),
            weight_decay=config.adam_weight_decay,
            eps=config.adam_epsilon,
            fused=True,
        )
        self.scaler = torch.amp.GradScaler(device.type, enabled=config.mixed_precision == "fp16")
        self._objective: nn.Module = Objective(self.model, config, self.facts).to(device)
        self._data_parallel = self._wrap()

    def _require_parts(self) -> None:
        share = self.config.batch_size // self.ranks.world_size
        if share % self.config.microbatches:
            raise ConfigError(
                f"--microbatches {self.config.microbatches} does not divide a rank's {share} samples of a step"
            )

    def _wrap(self) -> nn.parallel.DistributedDataParallel | None:
        """Compile the model and share gradients between ranks, where asked for."""
        if self.device.type == "cuda" if self.config.compile is None else self.config.compile:
            self.model.compile()
        if self.ranks.world_size == 1:
            return None
        self._objective = nn.parallel.DistributedDataParallel(self._objective, gradient_as_bucket_view=True)
        return self._objective

    def resume(self) -> None:
        """Go on from the last checkpoint; CheckpointError when it came from another store."""
        there = list_checkpoints(self.run_dir)
        if not there:
            return
        values = load_checkpoint(there[-1])
        self._require_same_store(StoreFacts.from_json(values["store"]), there[-1])
        load_sit_state(self.model, values["model"])
        load_sit_state(self.ema.model, values["ema"])
        self.optimizer.load_state_dict(values["opt"])
        self.scaler.load_state_dict(values["scaler"])
        self.step = values["steps"]
        say(f"going on from {there[-1]}")

    def _require_same_store(self, there: StoreFacts, path: Path) -> None:
        pairs: dict[str, tuple[Any, Any]] = {
            "images": (there.index_digest, self.facts.index_digest),
            "scale of the latents": (there.latents_scale, self.facts.latents_scale),
            "bias of the latents": (there.latents_bias, self.facts.latents_bias),
        }
        for group, fingerprint in self.facts.fingerprints.items():
            old = there.fingerprints.get(group, {})
            pairs |= {f"{group} {name}": (old.get(name), fingerprint[name]) for name in fingerprint}
        different = [f"{name}: {old!r} there, {new!r} here" for name, (old, new) in pairs.items() if old != new]
        if different:
            raise CheckpointError(f"{path} was trained from another store ({'; '.join(different)}): use that one")

    def train(self, interrupted: list[int]) -> None:
        """Take the steps that are left, with checkpoints and metrics on the way."""
        config = self.config
        watch = Watch(config, self.run_dir, self.step) if self.ranks.is_first else None
        total = config.max_train_steps
        with (
            progress("train", total, "steps", self.step) if watch else nullcontext() as bar,
            closing(device_batches(self.dataset, self.device, self.step)) as batches,
        ):
            while self.step < total and not interrupted:
                waiting = time.perf_counter()
                batch = next(batches)
                waited = time.perf_counter() - waiting
                losses = self.take_step(batch)
                self.step += 1
                if watch and bar:
                    watch.observe(self.step, losses, waited, bar)
                if self.step % config.checkpointing_steps == 0 or self.step == total:
                    self.save(watch)
        if interrupted:
            self.save(watch)

    def take_step(self, batch: Batch) -> Tensor:
        """One optimiser step; `[3]`: denoising loss, alignment loss, gradient norm, left on the device."""
        draws = Draws.of_step(self.config, self.step, batch.moments, self.ranks)
        tokens = [
            codec.decode(codes, scale) if codec.name != "float16" else codes
            for codec, codes, scale in zip(self._codecs, batch.patch_tokens, batch.token_scales, strict=True)
        ]
        parts = self.config.microbatches
        size = len(batch.labels) // parts
        sums = torch.zeros(2, device=self.device)
        for part in range(parts):
            rows = slice(part * size, (part + 1) * size)
            last = part == parts - 1
            sync = nullcontext() if last or self._data_parallel is None else self._data_parallel.no_sync()
            with sync:
                with torch.autocast(
                    self.device.type, DTYPES[self.config.mixed_precision], self.config.mixed_precision != "fp32"
                ):
                    loss, losses = self._objective(
                        batch.moments[rows], batch.labels[rows], [token[rows] for token in tokens], draws.rows(rows)
                    )
                self.scaler.scale(loss / parts).backward()
            sums += losses.detach() / parts
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.config.max_grad_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.ema.update(self.model)
        return torch.cat([sums, norm.detach().reshape(1)])

    def save(self, watch: Watch | None) -> None:
        """Write a checkpoint of this step and what was measured up to it."""
        if watch is None or list_checkpoints(self.run_dir)[-1:] == [self.run_dir / f"checkpoints/{self.step:07d}.pt"]:
            return
        watch.write()
        save_checkpoint(
            self.run_dir,
            {
                "model": self.model.state_dict(),
                "ema": self.ema.model.state_dict(),
                "opt": self.optimizer.state_dict(),
                "scaler": self.scaler.state_dict(),
                "steps": self.step,
                "config": self.config.as_json(),
                "sit": self.model.config.to_dict(),
                "store": self.facts.as_json(),
            },
        )
        drop_old_checkpoints(self.run_dir, self.config.keep_checkpoints)


def _build(config: TrainConfig, store: Store) -> SiT:
    latents = store.group(latents_group(str(config.vae))).readers["moments"].layout.spec
    channels, side, _ = latents.sample_shape
    encoders = {encoder: store.group(features_group(encoder)).attributes for encoder in config.enc_type}
    options = {} if config.encoder_depth is None else {"encoder_depth": config.encoder_depth}
    model = sit_config(
        config.model,
        input_size=side,
        in_channels=channels // 2,
        num_classes=int(config.num_classes or 0),
        class_dropout_prob=config.cfg_prob,
        z_dims=tuple(attributes["width"] for attributes in encoders.values()),
        projector_dim=config.projector_embed_dims,
        qk_norm=config.qk_norm,
        **options,
    )
    grid = (side // model.patch_size) ** 2
    for encoder, attributes in encoders.items():
        if attributes["num_tokens"] != grid:
            raise StoreError(
                f"{config.model} has {grid} tokens, {encoder} has {attributes['num_tokens']} in {store.path}: choose a "
                "model with another patch size, or an encoder of that token grid"
            )
    return SiT(model)


def _codec(store: Store, encoder: str) -> Codec:
    attributes = store.group(features_group(encoder)).attributes
    return codec_from_attributes(attributes["codec"], attributes["num_tokens"], attributes["width"])


def _store_facts(config: TrainConfig, store: Store) -> StoreFacts:
    latents = store.group(latents_group(str(config.vae)))
    groups = [latents.path, *(features_group(encoder) for encoder in config.enc_type)]
    return StoreFacts(
        vae=latents.attributes["vae"],
        latents_scale=tuple(latents.attributes["scale"]),
        latents_bias=tuple(latents.attributes["bias"]),
        class_names=store.manifest.class_names,
        index_digest=store.manifest.index_digest,
        fingerprints={path: store.group(path).fingerprint for path in groups},
    )


@contextmanager
def _interruptible() -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM instead of dying in the middle of a step; the list is empty until one comes."""
    received: list[int] = []
    handled = (signal.SIGINT, signal.SIGTERM)
    try:
        before = [signal.signal(number, lambda got, _: received.append(got)) for number in handled]
    except ValueError:  # not the main thread: whoever started us handles signals
        yield received
        return
    try:
        yield received
    finally:
        for number, handler in zip(handled, before, strict=True):
            signal.signal(number, handler)
