"""What each command is told: frozen, validated, saved as JSON beside what it made.

A field that the command line offers has its help text in its metadata, so a flag, its default and its meaning stand
in one place. Fields marked `harmless` may change when a run is continued; all others shaped it.
"""

from __future__ import annotations

import dataclasses
import json
import shlex
from collections.abc import Collection, Mapping
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, Self

from .errors import ConfigError

RESOLUTIONS = (256, 512)


def _option(text: str, default: Any = MISSING, *, harmless: bool = False, choices: tuple[str, ...] = ()) -> Any:
    """A field with a help text; without a default it is required."""
    metadata = {"help": text, "harmless": harmless, "choices": choices}
    return field(metadata=metadata) if default is MISSING else field(default=default, metadata=metadata)


@dataclass(frozen=True, kw_only=True)
class Config:
    """What the four configs share: JSON in and out, choices checked."""

    kind: ClassVar[str]

    def __post_init__(self) -> None:
        for item in fields(self):
            choices, value = item.metadata.get("choices"), getattr(self, item.name)
            if choices and value is not None and value not in choices:
                raise ConfigError(f"{flag(item.name)} is {value!r}: choose one of {', '.join(choices)}")
        self.validate()

    def validate(self) -> None:
        """Raise ConfigError, naming the flag, for values that cannot work."""

    def require(self, holds: bool, name: str, expected: str) -> None:
        """Raise ConfigError about field `name` unless `holds`."""
        if not holds:
            raise ConfigError(f"{flag(name)} is {getattr(self, name)!r}: {expected}")

    def as_json(self) -> dict[str, Any]:
        """JSON form: tuples become lists."""
        values: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self)))
        return values

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """From what `as_json` gave; ConfigError for names that are no field."""
        names = {item.name for item in fields(cls)}
        unknown = sorted(values.keys() - names)
        if unknown:
            raise ConfigError(f"{cls.__name__} has no field {', '.join(unknown)}")
        return cls(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})

    def command(self) -> str:
        """The command line that gives this config, defaults left out."""
        return shlex.join(["repa-pipe", self.kind, *self.flags()])

    def flags(self, without: Collection[str] = ()) -> list[str]:
        """The words of its flags, defaults and the fields `without` left out."""
        words: list[str] = []
        for item in fields(self):
            value = getattr(self, item.name)
            if value == item.default or item.name in without:
                continue
            for each in value if isinstance(value, tuple) else (value,):
                if isinstance(each, bool):
                    words.append(flag(item.name) if each else f"--no-{flag(item.name)[2:]}")
                else:
                    words += [flag(item.name), str(each)]
        return words

    def differences(self, other: Self) -> list[str]:
        """Fields that shaped a run and differ: `--seed: 0 there, 1 asked for`."""
        pairs = [(item, getattr(self, item.name), getattr(other, item.name)) for item in fields(self)]
        return [
            f"{flag(item.name)}: {mine!r} there, {theirs!r} asked for"
            for item, mine, theirs in pairs
            if mine != theirs and not item.metadata.get("harmless")
        ]


def flag(name: str) -> str:
    """`batch_size` → `--batch-size`."""
    return "--" + name.replace("_", "-")


@dataclass(frozen=True, kw_only=True)
class EncodeConfig(Config):
    """`repa-pipe encode`."""

    kind: ClassVar[str] = "encode"

    source: str = _option("Images: a folder of class folders, a zip, tar files, or parquet files (docs/sources.md).")
    source_kind: str | None = _option(
        "folder, zip, tar, parquet, or MODULE:CALLABLE for a plug-in. Default: told from --source.", None, harmless=True
    )
    store: str = _option("The store to make or to go on with.")
    vae: str = _option("VAE: a known name, a hub name, or a local folder in diffusers' format.", "sd-vae-ft-mse")
    encoder: tuple[str, ...] = _option("Frozen encoder; give it several times for several. See docs/encoders.md.", ())
    encoder_weights: tuple[str, ...] = _option(
        "NAME=PATH: the published weights file of an encoder, instead of a download.", (), harmless=True
    )
    resolution: int = _option("Side of the square crops, in pixels.", 256)
    flip: bool = _option("Encode every image mirrored as well, as a second view: twice the time and the bytes.", False)
    codec: str = _option("How patch tokens are stored.", "float16", choices=("float16", "int8", "int4"))
    shard_size: int | None = _option("Samples a shard. Default: 1024, fewer when the store is small.", None)
    batch_size: int | None = _option(
        "Images a forward pass. Default: what the store was begun with, else as many as fit the GPU, 16 on a CPU.",
        None,
    )
    compile: bool = _option(
        "torch.compile the encoders. Tokens then differ in rounding: a group keeps to one way.", False
    )
    device: str | None = _option(
        "Where the models run. Default: cuda where there is one, else cpu.", None, harmless=True
    )
    precision: str | None = _option(
        "Autocast precision of the models. Default: fp16 on a GPU (as published), fp32 on a CPU.",
        None,
        choices=("fp32", "fp16", "bf16"),
    )
    decode_threads: int | None = _option("Threads that decode images. Default: one a CPU core.", None, harmless=True)
    max_bad: float = _option(
        "Share of broken images above which the job fails (a handful, 10, is always let through).", 0.001, harmless=True
    )
    shard_timeout: float | None = _option(
        "Seconds after which a shard counts as hung: on Ray its actor is ended and it is tried again. Default: none.",
        None,
        harmless=True,
    )
    ray: bool = _option("Run on Ray: this machine, or the cluster that --ray-address names.", False, harmless=True)
    ray_address: str | None = _option(
        "Address of a Ray cluster. Default: RAY_ADDRESS, else this machine.", None, harmless=True
    )
    actors: int | None = _option(
        "Ray actors. Default: one a GPU of the cluster, else one a 2 CPUs.", None, harmless=True
    )

    def validate(self) -> None:
        """Raise ConfigError for values that cannot work."""
        read_only = self.store.startswith(("http://", "https://"))
        self.require(not read_only, "store", "a folder or a bucket (s3://, gs://, az://): web servers take no files")
        self.require(self.resolution in RESOLUTIONS, "resolution", "choose 256 or 512")
        self.require(self.shard_size is None or self.shard_size >= 1, "shard_size", "give at least 1")
        self.require(self.batch_size is None or self.batch_size >= 1, "batch_size", "give at least 1")
        self.require(self.shard_timeout is None or self.shard_timeout > 0, "shard_timeout", "give more than 0 s")
        self.require(0 <= self.max_bad <= 1, "max_bad", "give a share from 0 to 1")
        self.require(len(set(self.encoder)) == len(self.encoder), "encoder", "name every encoder once")
        for entry in self.encoder_weights:
            name, separator, _ = entry.partition("=")
            if not separator or name not in self.encoder:
                raise ConfigError(f"--encoder-weights is {entry!r}: give NAME=PATH with a NAME that --encoder has too")

    def weights_of(self, encoder: str) -> str | None:
        """The weights file given for an encoder."""
        return dict(entry.split("=", 1) for entry in self.encoder_weights).get(encoder)


@dataclass(frozen=True, kw_only=True)
class PlanConfig(Config):
    """`repa-pipe plan`."""

    kind: ClassVar[str] = "plan"

    source: str | None = _option("Images, which are listed to count them. Default: --images says how many.", None)
    source_kind: str | None = _option("As of encode. Default: told from --source.", None)
    images: int | None = _option("Number of images. Default: those of --source, else ImageNet's 1,281,167.", None)
    vae: str = _option("As of encode.", "sd-vae-ft-mse")
    encoder: tuple[str, ...] = _option("As of encode; several times for several.", ())
    encoder_weights: tuple[str, ...] = _option("As of encode; only --probe reads them.", ())
    resolution: int = _option("Side of the square crops, in pixels.", 256)
    flip: bool = _option("Encode every image mirrored as well.", False)
    codec: str = _option("How patch tokens are stored.", "float16", choices=("float16", "int8", "int4"))
    gpus: int = _option("GPUs that encode, and that train.", 1)
    model: str = _option("The SiT to be trained.", "SiT-XL/2")
    epochs: float = _option(
        "Epochs of training, over all runs that will use the store; 80 are REPA's 400,000 steps.", 80.0
    )
    probe: bool = _option("Time the models on this machine for some seconds each, instead of looking up.", False)
    device: str | None = _option("Where --probe runs. Default: cuda where there is one, else cpu.", None)

    def validate(self) -> None:
        """Raise ConfigError for values that cannot work."""
        self.require(self.resolution in RESOLUTIONS, "resolution", "choose 256 or 512")
        self.require(self.images is None or self.images >= 1, "images", "give at least 1")
        self.require(self.gpus >= 1, "gpus", "give at least 1")
        self.require(self.epochs > 0, "epochs", "give more than 0")
        self.require(len(set(self.encoder)) == len(self.encoder), "encoder", "name every encoder once")


@dataclass(frozen=True, kw_only=True)
class TrainConfig(Config):
    """`repa-pipe train`. Names and defaults are the published trainer's where they mean the same."""

    kind: ClassVar[str] = "train"

    store: str = _option("The store to train from.", harmless=True)
    output_dir: str = _option("Folder that holds the runs.", "exps", harmless=True)
    exp_name: str | None = _option(
        "The run's folder below --output-dir. Default: from model, encoder and coefficient.", None
    )
    model: str = _option("Model and patch size.", "SiT-XL/2")
    init_from: str | None = _option(
        "Checkpoint to start from, published or our own: its averaged weights. Default: fresh weights.", None
    )
    vae: str | None = _option("Which latents of the store. Default: the only ones.", None)
    enc_type: tuple[str, ...] = _option(
        "Encoder to align with; give it several times for several. Default: the only one.", ()
    )
    proj_coeff: float = _option("Weight of the alignment loss; 0 trains without alignment and reads no tokens.", 0.5)
    proj_coeff_decay_steps: int | None = _option(
        "Steps in which --proj-coeff falls to 0 in a straight line. Default: it stays.", None
    )
    alignment_steps: int | None = _option(
        "Steps with alignment; from then on no tokens are read (HASTE). Default: all.", None
    )
    alignment_loss: str = _option("Compares projected and stored tokens.", "cosine", choices=("cosine", "nt_xent"))
    spatial_norm: float | None = _option(
        "Normalize stored tokens over the image, less this share (gamma) of their mean (iREPA). Default: off.", None
    )
    projector: str = _option(
        "mlp (REPA) or one 3x3 convolution over the tokens (iREPA).", "mlp", choices=("mlp", "conv")
    )
    cls_coeff: float = _option(
        "REG: denoise the class token of the first encoder too, with this weight of its loss (published: 0.03).", 0.0
    )
    encoder_depth: int | None = _option("Block whose output is aligned. Default: 8, and 4 for SiT-B.", None)
    projector_embed_dims: int = _option("Width of the projector's hidden layers.", 2048)
    qk_norm: bool = _option("Normalize queries and keys.", False)
    num_classes: int | None = _option("Classes. Default: the store's.", None)
    cfg_prob: float = _option("Share of labels dropped, for guidance.", 0.1)
    legacy: bool = _option("Drop labels a second time, 1 in 10, as the published model does while it trains.", False)
    path_type: str = _option("Interpolant.", "linear", choices=("linear", "cosine"))
    weighting: str = _option("How times are drawn.", "uniform", choices=("uniform", "lognormal"))
    batch_size: int = _option("Samples a step, over all ranks.", 256)
    microbatches: int = _option("Parts in which a rank computes its samples of a step: less memory, the same step.", 1)
    max_train_steps: int = _option("Steps to train.", 400_000, harmless=True)
    learning_rate: float = _option("Of AdamW.", 1e-4)
    adam_beta1: float = _option("Of AdamW.", 0.9)
    adam_beta2: float = _option("Of AdamW.", 0.999)
    adam_weight_decay: float = _option("Of AdamW.", 0.0)
    adam_epsilon: float = _option("Of AdamW.", 1e-8)
    max_grad_norm: float = _option("Gradients are clipped to this norm.", 1.0)
    ema_decay: float = _option("Of the averaged weights.", 0.9999)
    mixed_precision: str = _option("Autocast precision of the model.", "bf16", choices=("fp32", "fp16", "bf16"))
    allow_tf32: bool = _option("TF32 matrix products on GPUs.", True)
    compile: bool | None = _option("torch.compile the model. Default: on GPUs.", None, harmless=True)
    checkpoint_blocks: bool = _option("Recompute activations in the backward pass: less memory, slower.", False)
    shuffle_window: int | None = _option("Shuffle among this many shards at a time, not fully: for slow disks.", None)
    direct: bool | None = _option(
        "Read past the page cache. Default: when the store outgrows this machine's memory.", None, harmless=True
    )
    store_cache: str | None = _option(
        "Folder that keeps the samples read from a store behind a URL (docs/stores.md).", None, harmless=True
    )
    reader_process: bool = _option(
        "Read the store in a process of its own: for steps that keep Python busy.", False, harmless=True
    )
    flip: bool = _option("Take half of the samples from the flipped views ('encode --flip').", False)
    seed: int = _option("Of weights, order and noise.", 0)
    checkpointing_steps: int = _option("Steps between checkpoints.", 50_000, harmless=True)
    keep_checkpoints: int = _option("Checkpoints kept besides the last; 0 keeps all.", 0, harmless=True)
    milestone_steps: int = _option("Steps between checkpoints that are kept for ever; 0 for none.", 0, harmless=True)
    log_steps: int = _option("Steps between rows of metrics.parquet.", 100, harmless=True)
    sampling_steps: int = _option(
        "Steps between pictures of samples, which need the store's VAE; 0 for none.", 0, harmless=True
    )
    report_to: str | None = _option(
        "Whom to tell besides. Default: tensorboard where it is installed.",
        None,
        harmless=True,
        choices=("tensorboard", "wandb", "none"),
    )
    device: str | None = _option("Where to train. Default: cuda where there is one, else cpu.", None, harmless=True)
    fsdp: bool = _option(
        "Share weights, gradients and optimizer state among ranks (FSDP2): less memory, more traffic.",
        False,
        harmless=True,
    )
    ray: bool = _option(
        "Run the ranks on Ray: this machine, or the cluster that --ray-address names.", False, harmless=True
    )
    ray_workers: int | None = _option(
        "DistributedContext on Ray. Default: one a GPU of the cluster, else one.", None, harmless=True
    )
    ray_address: str | None = _option(
        "Address of a Ray cluster. Default: RAY_ADDRESS, else this machine.", None, harmless=True
    )

    def validate(self) -> None:
        """Raise ConfigError for values that cannot work."""
        for name in (
            "batch_size",
            "microbatches",
            "max_train_steps",
            "checkpointing_steps",
            "log_steps",
        ):
            self.require(getattr(self, name) >= 1, name, "give at least 1")
        for name in ("keep_checkpoints", "milestone_steps", "sampling_steps"):
            self.require(getattr(self, name) >= 0, name, "give 0 or more")
        for name in ("learning_rate", "max_grad_norm", "adam_epsilon"):
            self.require(getattr(self, name) > 0, name, "give a number above 0")
        for name in ("cfg_prob", "ema_decay", "adam_beta1", "adam_beta2"):
            self.require(0 <= getattr(self, name) < 1, name, "give a number from 0 to below 1")
        self.require(not (self.fsdp and self.sampling_steps), "fsdp", "--sampling-steps needs whole models")
        self.require(self.ray_workers is None or self.ray_workers >= 1, "ray_workers", "give at least 1")
        for name in ("proj_coeff_decay_steps", "alignment_steps"):
            value = getattr(self, name)
            self.require(value is None or value >= 1, name, "give at least 1; --proj-coeff 0 trains without alignment")
        self.require(self.proj_coeff >= 0, "proj_coeff", "give 0 or more")
        self.require(self.cls_coeff >= 0, "cls_coeff", "give 0 or more")
        grid_only = self.projector == "conv" and self.cls_coeff > 0
        self.require(not grid_only, "projector", "--cls-coeff needs mlp, since a class token has no place in the grid")
        gamma = self.spatial_norm
        self.require(gamma is None or 0 <= gamma <= 1, "spatial_norm", "give a share from 0 to 1")
        self.require(len(set(self.enc_type)) == len(self.enc_type), "enc_type", "name every encoder once")

    @property
    def aligned_steps(self) -> int | None:
        """Steps that have alignment: after them the coefficient is 0, and no tokens are read. None: all steps."""
        if self.proj_coeff == 0:
            return 0
        given = [steps for steps in (self.alignment_steps, self.proj_coeff_decay_steps) if steps is not None]
        return min(given, default=None)


@dataclass(frozen=True, kw_only=True)
class SampleConfig(Config):
    """`repa-pipe sample`. Names and defaults are the published generator's where they mean the same."""

    kind: ClassVar[str] = "sample"

    checkpoint: str = _option(
        "A run's folder (its last checkpoint), a checkpoint file, ours or REPA's, or repa-sit-xl-2-256 (downloaded)."
    )
    out: str | None = _option("The .npz to write. Default: samples/<step>-<settings>.npz in the run's folder.", None)
    num_fid_samples: int = _option("Images to make.", 50_000)
    per_proc_batch_size: int = _option("Images a forward pass.", 32, harmless=True)
    mode: str = _option("ode: probability flow; sde: Euler-Maruyama.", "ode", choices=("ode", "sde"))
    num_steps: int = _option("Sampling steps.", 50)
    heun: bool = _option("Second order ODE steps.", False)
    cfg_scale: float = _option("Guidance scale; 1 is none.", 1.5)
    guidance_low: float = _option("Guidance acts for times from here …", 0.0)
    guidance_high: float = _option("… to here.", 1.0)
    labels: str = _option("random, balanced (the same number of every class), or classes by number: 207,360.", "random")
    vae: str | None = _option("VAE that decodes. Default: the one that the store was encoded with.", None)
    global_seed: int = _option("Image i depends on this seed and on i.", 0)
    ema: bool = _option("Use the averaged weights.", True)
    precision: str = _option("Autocast precision of the model.", "fp32", choices=("fp32", "fp16", "bf16"))
    compile: bool = _option("torch.compile the model: a minute at the start, images the same to rounding.", False)
    png_folder: str | None = _option("Folder for the images as PNG files too. Default: none.", None, harmless=True)
    device: str | None = _option("Where to sample. Default: cuda where there is one, else cpu.", None, harmless=True)
    ray: bool = _option("Run on Ray: this machine, or the cluster that --ray-address names.", False, harmless=True)
    ray_address: str | None = _option(
        "Address of a Ray cluster. Default: RAY_ADDRESS, else this machine.", None, harmless=True
    )
    actors: int | None = _option(
        "Ray actors. Default: one a GPU of the cluster, else one a 2 CPUs.", None, harmless=True
    )

    def validate(self) -> None:
        """Raise ConfigError for values that cannot work."""
        for name in ("num_fid_samples", "per_proc_batch_size", "num_steps"):
            self.require(getattr(self, name) >= 1, name, "give at least 1")
        self.require(self.cfg_scale >= 1, "cfg_scale", "give 1 (no guidance) or more")
        self.require(not (self.heun and self.mode == "sde"), "heun", "only --mode ode has Heun steps")


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(Config):
    """`repa-pipe evaluate`."""

    kind: ClassVar[str] = "evaluate"

    samples: str = _option("Images to judge: an .npz of uint8 [N, H, W, 3] or a folder.")
    reference: str = _option("What they should look like: an .npz (images or mu and sigma), a folder, or a store.")
    detector: tuple[str, ...] = _option(
        "inception (FID proper), or an encoder's name (fd_NAME); several times for several.", ("inception",)
    )
    encoder_weights: tuple[str, ...] = _option("NAME=PATH: weights file of a detector.", ())
    source: str | None = _option(
        "Where a reference store's images lie now. Default: where they were encoded from.", None
    )
    batch_size: int = _option("Images a forward pass.", 32, harmless=True)
    out: str | None = _option("JSON to write. Default: beside the samples.", None, harmless=True)
    device: str | None = _option(
        "Where detectors run. Default: cuda where there is one, else cpu.", None, harmless=True
    )

    def validate(self) -> None:
        """Raise ConfigError for values that cannot work."""
        self.require(bool(self.detector), "detector", "name at least one")

    def weights_of(self, detector: str) -> str | None:
        """The weights file given for a detector."""
        return dict(entry.split("=", 1) for entry in self.encoder_weights).get(detector)


@dataclass(frozen=True, kw_only=True)
class ProbeConfig(Config):
    """`repa-pipe probe`."""

    kind: ClassVar[str] = "probe"

    checkpoint: str = _option("A run's folder (all its checkpoints) or a checkpoint file.")
    store: str | None = _option("The store whose images are looked at. Default: the one trained from.", None)
    vae: str | None = _option("Which latents of the store. Default: the checkpoint's.", None)
    encoder: tuple[str, ...] = _option(
        "Stored encoder to compare with; several times for several. Default: all of the store.", ()
    )
    block: tuple[int, ...] = _option("Block to look at, from 1; several times for several. Default: all.", ())
    time: tuple[float, ...] = _option("Noise level, 0 is none; several times for several. [default: 0.5]", (0.5,))
    num_images: int = _option("Images to look at, drawn from the store.", 10_000)
    test_share: float = _option("Share of them that the linear classifier is judged by, not fitted to.", 0.2)
    ema: bool = _option("Use the averaged weights.", True)
    seed: int = _option("Of the images drawn and their noise.", 0)
    precision: str = _option("Autocast precision of the model.", "fp32", choices=("fp32", "fp16", "bf16"))
    batch_size: int = _option("Images a forward pass.", 32, harmless=True)
    out: str | None = _option("JSON to write. Default: probe.json in the run's folder.", None, harmless=True)
    device: str | None = _option("Where to work. Default: cuda where there is one, else cpu.", None, harmless=True)

    def validate(self) -> None:
        """Raise ConfigError for values that cannot work."""
        for name in ("num_images", "batch_size"):
            self.require(getattr(self, name) >= 1, name, "give at least 1")
        self.require(0 < self.test_share < 1, "test_share", "give a share between 0 and 1")
        self.require(bool(self.time) and all(0 <= t <= 1 for t in self.time), "time", "give numbers from 0 to 1")
        self.require(all(block >= 1 for block in self.block), "block", "blocks are counted from 1")
        self.require(self.out is None or self.out.endswith(".json"), "out", "give a name that ends in .json")


@dataclass(frozen=True, kw_only=True)
class RankConfig(Config):
    """`repa-pipe rank`."""

    kind: ClassVar[str] = "rank"

    store: str = _option("The store whose encoders are ranked.")
    num_samples: int = _option("Samples to look at, drawn from those that all encoders have.", 1000)
    seed: int = _option("Of the samples drawn.", 0)
    batch_size: int = _option("Samples at a time.", 16, harmless=True)
    out: str = _option("JSON to write; the picture goes beside it, as .html.", "rank.json", harmless=True)

    def validate(self) -> None:
        """Raise ConfigError for values that cannot work."""
        for name in ("num_samples", "batch_size"):
            self.require(getattr(self, name) >= 1, name, "give at least 1")
        self.require(self.out.endswith(".json"), "out", "give a name that ends in .json")


@dataclass(frozen=True, kw_only=True)
class AblateConfig(Config):
    """`repa-pipe ablate`."""

    kind: ClassVar[str] = "ablate"

    sweep: str = _option("The sweep, a TOML file: docs/ablations.md.")
    store: str = _option("The store that all runs train from.")
    out: str | None = _option("Folder for the runs and their comparison. Default: exps/<name of the file>.", None)
    ray: bool | None = _option(
        "Runs side by side on Ray: this machine, or the cluster of --ray-address. Default: where there are GPUs.",
        None,
        harmless=True,
    )
    ray_address: str | None = _option(
        "Address of a Ray cluster. Default: RAY_ADDRESS, else this machine.", None, harmless=True
    )


def read_config(path: Path) -> dict[str, Any]:
    """Read a saved config; ConfigError when it is absent or damaged."""
    try:
        values: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read ({error})") from error
    return values
