"""The config of `repa-pipe train`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from .base import is_count, uses_ray, weights_by_name
from .train_options import TrainOptions

TRACKERS = ("tensorboard", "wandb", "trackio", "aim")


@dataclass(frozen=True, kw_only=True)
class TrainConfig(TrainOptions):
    """Settings of `repa-pipe train`."""

    kind: ClassVar[str] = "train"

    def validate(self) -> None:
        """Raise ConfigError for values that cannot work."""
        self.require_at_least_1("batch_size", "microbatches", "max_train_steps", "checkpointing_steps", "log_steps")
        self.require_seed("seed")
        self.require_at_least_1("ray_workers", "val_steps", "lr_decay_steps", "num_classes")
        self.require_at_least_1("encoder_depth", "projector_embed_dims", "shuffle_window")
        for name in (
            "keep_checkpoints",
            "milestone_steps",
            "sampling_steps",
            "eval_every",
            "proj_coeff",
            "cls_coeff",
            "cosine_coeff",
            "latents_eps",
            "contrast_coeff",
            "dispersive_coeff",
            "self_coeff",
            "attn_coeff",
            "warmup_steps",
            "lr_constant_steps",
            "lr_final",
            "adam_weight_decay",
        ):
            self.require(getattr(self, name) >= 0, name, "must be 0 or more")
        for name in ("learning_rate", "max_grad_norm", "adam_epsilon"):
            self.require(getattr(self, name) > 0, name, "must be above 0")
        for name in ("cfg_prob", "ema_decay", "adam_beta1", "adam_beta2", "val_fraction"):
            self.require(0 <= getattr(self, name) < 1, name, "must be at least 0 and below 1")
        self.require(not (self.fsdp and self.sampling_steps), "fsdp", "cannot be combined with --sampling-steps")
        self.require(not (self.fsdp and self.optimizer == "muon"), "fsdp", "cannot be combined with --optimizer muon")
        self.require(not (self.token_latents and self.latents_eps), "latents_eps", "applies to the latents of a VAE")
        for name in ("proj_coeff_decay_steps", "alignment_steps"):
            value = getattr(self, name)
            self.require(
                value is None or value >= 1, name, "must be at least 1; --proj-coeff 0 trains without alignment"
            )
        gamma = self.spatial_norm
        self.require(gamma is None or 0 <= gamma <= 1, "spatial_norm", "expected a fraction from 0 to 1")
        self.require(-10 <= self.time_mean <= 10, "time_mean", "expected a number from -10 to 10")
        self.require(0 < self.time_std <= 10, "time_std", "expected a number above 0 and up to 10")
        for name, default in (("time_mean", 0.0), ("time_std", 1.0)):
            is_used = self.weighting == "lognormal" or getattr(self, name) == default
            self.require(is_used, name, "requires --weighting lognormal")
        self.require(0 < self.time_shift <= 1000, "time_shift", "expected a number above 0 and up to 1000")
        self.require(
            self.path_type == "linear" or (self.time_shift == 1 and self.weighting != "truncated_lognormal"),
            "path_type",
            "--time-shift and truncated_lognormal times require the linear path",
        )
        self.require_no_repeats("enc_type")
        self.require(not (self.token_latents and self.vae), "token_latents", "cannot be combined with --vae")
        self.require(
            self.decoder is not None or not (self.token_latents and self.sampling_steps),
            "sampling_steps",
            "requires --decoder with --token-latents",
        )
        self._validate_evaluation()
        self.require_no_repeats("classes")
        self.require_no_repeats("tag")
        self.require(self.val_steps is None or self.val_fraction > 0, "val_steps", "requires --val-fraction")
        names = self.trackers or ()
        known = set(names) <= set(TRACKERS) and len(set(names)) == len(names)
        expected = f"expected one of {', '.join(TRACKERS)}, several of them with commas, or none"
        self.require(known, "report_to", expected)
        self._validate_projector()
        self._validate_terms()
        self._validate_attention()
        self._validate_schedule()
        self.require(
            self.profile_steps is None or bool(self.profiled), "profile_steps", "expected FIRST:LAST, as 100:105"
        )

    def _validate_evaluation(self) -> None:
        """Raise ConfigError for evaluations that cannot work."""
        self.require(self.eval_images >= 4, "eval_images", "must be at least 4")
        self.require(bool(self.eval_detector), "eval_detector", "at least one is required")
        self.require_no_repeats("eval_detector")
        self.require(
            self.eval_every % self.log_steps == 0,
            "eval_every",
            f"expected a multiple of --log-steps {self.log_steps}, whose rows get the metrics",
        )
        self.require(
            self.decoder is not None or not (self.token_latents and self.eval_every),
            "eval_every",
            "requires --decoder with --token-latents",
        )

    def _validate_terms(self) -> None:
        """Raise ConfigError for terms that cannot work, or not together."""
        self.require_at_least_1("dispersive_block")
        self.require(self.dispersive_temperature > 0, "dispersive_temperature", "must be above 0")
        self.require(0 <= self.self_offset <= 1, "self_offset", "expected a number from 0 to 1")
        words = self.self_blocks.split(",")
        self.require(len(words) == 2 and all(map(is_count, words)), "self_blocks", "expected two blocks, such as 8,20")
        share = self.token_groups
        self.require(share is None or 0 < share < 1, "token_groups", "expected a fraction between 0 and 1")
        self.require(share is not None or not self.separate_attention, "separate_attention", "requires --token-groups")
        self.require(not (share and self.cls_coeff), "token_groups", "cannot be combined with --cls-coeff")
        self.require(
            not (self.dispersive_coeff and self.microbatches > 1),
            "microbatches",
            "must be 1 with --dispersive-coeff, which compares all samples of a rank with each other",
        )
        self.require(not self.contrast_coeff or self.batch_size > 1, "contrast_coeff", "requires two samples per batch")
        for each in self.term:
            name, _, weight = each.partition("=")
            self.require(bool(name) and _is_number(weight), "term", f"expected NAME=WEIGHT, found {each}")

    def _validate_attention(self) -> None:
        """Raise ConfigError for an alignment of attention that cannot work."""
        for name in ("attn_encoder", "encoder_weights"):
            self.require(self.attn_coeff > 0 or not getattr(self, name), name, "requires --attn-coeff")
        if not self.attn_coeff:
            return
        if self.attn_encoder is not None:
            weights_by_name(self.encoder_weights, [self.attn_encoder])
        self.require(not self.cls_coeff, "attn_coeff", "cannot be combined with --cls-coeff")
        self.require(
            self.proj_coeff_decay_steps is None,
            "proj_coeff_decay_steps",
            "cannot be combined with --attn-coeff; --alignment-steps ends both alignments",
        )
        separate = self.separate_attention
        self.require(not separate, "separate_attention", "cannot be combined with --attn-coeff")

    def attn_weights(self) -> str | None:
        """Return the weights file given for --attn-encoder, if any."""
        return weights_by_name(self.encoder_weights, [str(self.attn_encoder)]).get(str(self.attn_encoder))

    def _validate_projector(self) -> None:
        """Raise ConfigError for a projector that cannot work."""
        grid_only = self.projector == "conv" and self.cls_coeff > 0
        self.require(
            not grid_only, "projector", "--cls-coeff requires mlp, since a class token has no place in the grid"
        )
        kernel = self.projector_kernel_size
        self.require(kernel in (1, 3, 5, 7), "projector_kernel_size", "expected 1, 3, 5 or 7")
        self.require(kernel == 3 or self.projector == "conv", "projector_kernel_size", "requires --projector conv")

    def _validate_schedule(self) -> None:
        """Raise ConfigError for a learning rate schedule that cannot work."""
        for name in ("lr_constant_steps", "lr_final"):
            decays = self.lr_schedule != "constant" or not getattr(self, name)
            self.require(decays, name, "requires --lr-schedule cosine or linear")
        self.require(self.lr_final <= self.learning_rate, "lr_final", "must not be above --learning-rate")
        if self.lr_decay_steps is None:
            return
        self.require(self.lr_schedule != "constant", "lr_decay_steps", "requires --lr-schedule cosine or linear")
        before = self.warmup_steps + self.lr_constant_steps
        expected = f"must be above --warmup-steps and --lr-constant-steps ({before:,} in all)"
        self.require(self.lr_decay_steps > before, "lr_decay_steps", expected)

    @property
    def profiled(self) -> range:
        """The steps of `profile_steps`, counted from 0; empty for none, and for text that is not FIRST:LAST."""
        first, _, last = (self.profile_steps or "").partition(":")
        return range(int(first), int(last)) if is_count(first) and is_count(last) else range(0)

    @property
    def trackers(self) -> tuple[str, ...] | None:
        """The names in `report_to`; None to use TensorBoard if it is installed."""
        if self.report_to in {None, "none"}:
            return None if self.report_to is None else ()
        return tuple(name.strip() for name in str(self.report_to).split(","))

    @property
    def self_aligned_blocks(self) -> tuple[int, int]:
        """The blocks of student and teacher of `--self-blocks`."""
        student, teacher = map(int, self.self_blocks.split(","))
        return student, teacher

    @property
    def own_terms(self) -> dict[str, float]:
        """The weights of the terms of `--term`, by name."""
        return {name: float(weight) for name, _, weight in (each.partition("=") for each in self.term)}

    @property
    def uses_ray(self) -> bool:
        """Whether the ranks run on Ray."""
        return uses_ray(self.ray, self.ray_address)

    @property
    def aligned_steps(self) -> int | None:
        """Number of steps with alignment; after them the coefficients are 0 and no tokens are read. None: all steps."""
        if self.proj_coeff == self.attn_coeff == 0:
            return 0
        given = [steps for steps in (self.alignment_steps, self.proj_coeff_decay_steps) if steps is not None]
        return min(given, default=None)

    def is_aligned(self, step: int) -> bool:
        """Return whether a step, counted from 0, is one with alignment."""
        return self.aligned_steps is None or step < self.aligned_steps


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False
