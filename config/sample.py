"""The config of `repa-pipe sample`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from .base import (
    ACTORS_HELP,
    DEVICE_HELP,
    HARDWARE,
    LATENTS_STATS_HELP,
    MODEL,
    MODEL_PRECISION_HELP,
    OUTPUT,
    PATH_TYPE_HELP,
    RAY_ADDRESS_HELP,
    RAY_HELP,
    SAMPLING,
    Config,
    Precision,
    is_count,
    option,
    uses_ray,
)
from .paths import PathKind

LABEL_RULES = ("random", "balanced")


@dataclass(frozen=True, kw_only=True)
class SampleConfig(Config):
    """Settings of `repa-pipe sample`. Names and defaults are the published generator's where it has the option."""

    kind: ClassVar[str] = "sample"

    checkpoint: str = option(
        MODEL,
        "Run folder (its last checkpoint), checkpoint file of repa-pipe, REPA, iREPA or REG, exported file, model on "
        "the Hugging Face Hub (hf://USER/NAME[@REVISION]), or repa-sit-xl-2-256 (downloaded).",
        path=PathKind.PATH,
    )
    out: str | None = option(
        OUTPUT,
        "Output .npz file. Default: samples/<step>-<settings>.npz in the run folder.",
        None,
        affects_result=False,
        path=PathKind.PATH,
    )
    num_fid_samples: int = option(SAMPLING, "Number of images to generate.", 50_000)
    per_proc_batch_size: int = option(HARDWARE, "Images per batch and process.", 32, affects_result=False)
    mode: Literal["ode", "sde"] = option(SAMPLING, "Sampler: ode (probability flow) or sde (Euler-Maruyama).", "ode")
    num_steps: int = option(
        SAMPLING,
        "Number of sampling steps. With LightningDiT or, with a time shift, RAE: number of times, one more than steps.",
        50,
    )
    time_shift: float | None = option(
        SAMPLING,
        "Move the sampler's times toward the noise, as in training: t becomes s t / (1 + (s - 1) t). LightningDiT: "
        "3.33, the inverse of the published 0.3. Default: that of training.",
        None,
    )
    heun: bool = option(SAMPLING, "Use Heun's second-order steps instead of Euler's; requires --mode ode.", False)
    cfg_scale: float = option(SAMPLING, "Guidance scale; 1 disables guidance.", 1.5)
    guidance: Literal["cfg", "internal", "path_drop"] = option(
        SAMPLING,
        "What the model is guided away from: cfg (classifier-free guidance), its prediction without a label; internal, "
        "that of its base head (RAEv2); path_drop, that without a label and without its middle blocks (SR-DiT).",
        "cfg",
    )
    guidance_checkpoint: str | None = option(
        SAMPLING,
        "Checkpoint of a weaker model that the model is guided away from (autoguidance; RAE). Default: none.",
        None,
        path=PathKind.PATH,
    )
    guidance_channels: int | None = option(
        SAMPLING,
        "Number of channels of the latents, counted from the first, that are guided (LightningDiT: 3). Default: all.",
        None,
    )
    cls_cfg_scale: float | None = option(
        SAMPLING,
        "Guidance scale of the class token (REG, SR-DiT); 1, or 0 and less, disables its guidance. "
        "Default: --cfg-scale.",
        None,
    )
    guidance_low: float = option(SAMPLING, "Lowest time t (0: data) at which guidance is applied.", 0.0)
    guidance_high: float = option(SAMPLING, "Highest time t (1: noise) at which guidance is applied.", 1.0)
    labels: str = option(
        SAMPLING,
        "Class labels: random, balanced (the same number of images per class), or a list of class numbers to cycle "
        "through, such as 207,360.",
        "random",
    )
    path_type: Literal["linear", "cosine"] | None = option(MODEL, PATH_TYPE_HELP, None)
    latents_stats: str | None = option(MODEL, LATENTS_STATS_HELP, None, path=PathKind.PATH)
    vae: str | None = option(
        MODEL, "VAE that decodes the latents. Default: the VAE that encoded the store.", None, path=PathKind.MODEL
    )
    decoder: str | None = option(
        MODEL,
        "Decoder of latents that are encoder tokens (RAE): folder or Hugging Face name of a diffusers AutoencoderRAE. "
        "Default: none.",
        None,
        path=PathKind.MODEL,
    )
    global_seed: int = option(SAMPLING, "Random seed; image i depends only on the seed and on i.", 0)
    ema: bool = option(MODEL, "Use the EMA weights.", True)
    precision: Precision = option(HARDWARE, MODEL_PRECISION_HELP, "fp32")
    compile: bool = option(
        HARDWARE, "Run the model through torch.compile: slower to start, same images up to rounding.", False
    )
    png_folder: str | None = option(
        OUTPUT,
        "Folder to which the images are also written as PNG files. Default: no PNG files.",
        None,
        affects_result=False,
        path=PathKind.PATH,
    )
    device: str | None = option(HARDWARE, DEVICE_HELP, None, affects_result=False)
    ray: bool = option(HARDWARE, RAY_HELP, False, affects_result=False)
    ray_address: str | None = option(HARDWARE, RAY_ADDRESS_HELP, None, affects_result=False)
    actors: int | None = option(HARDWARE, ACTORS_HELP, None, affects_result=False)

    def validate(self) -> None:
        """Raise ConfigError for values that cannot work."""
        self.require_at_least_1("num_fid_samples", "per_proc_batch_size", "num_steps", "actors")
        self.require_seed("global_seed")
        self.require(self.cfg_scale >= 1, "cfg_scale", "must be 1 (no guidance) or more")
        self.require(not (self.heun and self.mode == "sde"), "heun", "requires --mode ode")
        shift = self.time_shift
        self.require(shift is None or 0 < shift <= 1000, "time_shift", "expected a number above 0 and up to 1000")
        self.require_at_least_1("guidance_channels")
        self.require(
            self.guidance == "cfg" or self.guidance_checkpoint is None,
            "guidance",
            "cannot be combined with --guidance-checkpoint",
        )
        self.require(
            self.guidance_channels is None or self.cls_cfg_scale is None,
            "guidance_channels",
            "cannot be combined with --cls-cfg-scale",
        )
        words = () if self.labels in LABEL_RULES else self.labels.split(",")
        self.require(
            all(is_count(word.strip()) for word in words),
            "labels",
            f"expected {', '.join(LABEL_RULES)}, or class numbers such as 207,360",
        )

    @property
    def listed_labels(self) -> tuple[int, ...]:
        """The class numbers in `labels`; none for a rule."""
        return () if self.labels in LABEL_RULES else tuple(map(int, self.labels.split(",")))

    @property
    def is_guided(self) -> bool:
        """Whether images or class tokens are guided."""
        return max(self.cfg_scale, self.cls_cfg_scale or 1) > 1

    @property
    def uses_ray(self) -> bool:
        """Whether the images are generated by Ray actors."""
        return uses_ray(self.ray, self.ray_address)
