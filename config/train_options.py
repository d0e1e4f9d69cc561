"""The options of `repa-pipe train`; `train.py` has what they must satisfy, and what follows from them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from .base import (
    DATA,
    DEVICE_HELP,
    HARDWARE,
    MODEL,
    OBJECTIVE,
    OPTIMIZATION,
    OUTPUT,
    RAY_ADDRESS_HELP,
    RAY_HELP,
    Config,
    Precision,
    option,
)
from .paths import PathKind


@dataclass(frozen=True, kw_only=True)
class TrainOptions(Config):
    """Names and defaults are those of the published trainer where it has the option."""

    added_later: ClassVar[frozenset[str] | None] = frozenset(
        (
            "warmup_steps",
            "lr_schedule",
            "lr_decay_steps",
            "projector_kernel_size",
            "classes",
            "indices",
            "val_fraction",
            "token_latents",
            "lr_constant_steps",
            "lr_final",
            "time_shift",
            "optimizer",
            "cosine_coeff",
            "latents_eps",
            "decoder",
            "time_mean",
            "time_std",
            "contrast_coeff",
            "dispersive_coeff",
            "dispersive_block",
            "dispersive_temperature",
            "self_coeff",
            "self_blocks",
            "self_offset",
            "token_groups",
            "separate_attention",
            "term",
            "attn_coeff",
            "attn_encoder",
            "encoder_weights",
            "eval_every",
            "eval_images",
            "eval_reference",
            "eval_detector",
            "eval_device",
        )
    )

    store: str = option(DATA, "Store to train from.", affects_result=False, path=PathKind.PATH)
    output_dir: str = option(OUTPUT, "Parent of all run folders.", "exps", affects_result=False, path=PathKind.PATH)
    exp_name: str | None = option(
        OUTPUT,
        "Name of the run and of its folder in --output-dir. Default: built from model, encoders and --proj-coeff.",
        None,
        affects_result=False,
    )
    model: str = option(
        MODEL,
        "Model: SiT-{T,S,B,L,XL}/{1,2,4,8} (size/patch size), DiT-DH-{T,S,B,L,XL} (RAE), LightningDiT-{T,B,L,XL}/1, "
        "RAEv2-{T,XL}, SRDiT-{T,B}/1 (SR-DiT), or JiT-{T,B,L,H}/16 (pixels).",
        "SiT-XL/2",
    )
    init_from: str | None = option(
        MODEL,
        "Checkpoint whose EMA weights the run starts from, saved by repa-pipe or published by REPA, or a model on the "
        "Hugging Face Hub (hf://USER/NAME[@REVISION]). "
        "Default: random weights.",
        None,
        path=PathKind.PATH,
    )
    vae: str | None = option(
        DATA, "VAE whose latents are used. Default: the only one in the store.", None, path=PathKind.MODEL
    )
    token_latents: str | None = option(
        DATA,
        "Encoder in the store whose patch tokens are the latents, instead of a VAE's (RAE). They are normalized by the "
        "statistics that `store stats --encoder NAME --write` records. Default: a VAE's latents.",
        None,
    )
    enc_type: tuple[str, ...] = option(
        DATA,
        "Encoder to align with; repeatable, or a list with commas. Default: the only one in the store.",
        (),
        comma_separated=True,
    )
    proj_coeff: float = option(
        OBJECTIVE, "Weight of the alignment loss; 0 trains without alignment and reads no tokens.", 0.5
    )
    proj_coeff_decay_steps: int | None = option(
        OBJECTIVE, "Decay --proj-coeff linearly to 0 over this many steps. Default: constant.", None
    )
    alignment_steps: int | None = option(
        OBJECTIVE,
        "Stop alignment after this many steps; no tokens are read from then on (HASTE). Default: never.",
        None,
    )
    attn_coeff: float = option(
        OBJECTIVE,
        "Weight of the alignment of attention maps in blocks 4 to 7, counted from 0, with those of the last blocks of "
        "--attn-encoder (HASTE: 0.5); 0 for none. --alignment-steps ends it as well.",
        0.0,
    )
    attn_encoder: str | None = option(
        DATA,
        "Encoder in the store whose attention --attn-coeff aligns with, such as dinov2-vit-b@block=8+norm=none. "
        "Default: the only one with norm=none.",
        None,
    )
    encoder_weights: tuple[str, ...] = option(
        DATA,
        "NAME=PATH: local file with the published weights of --attn-encoder NAME. Default: download.",
        (),
        affects_result=False,
        path=PathKind.NAMED,
    )
    alignment_loss: Literal["cosine", "nt_xent", "mse"] = option(
        OBJECTIVE, "Loss between projected and stored tokens; mse is RAEv2's.", "cosine"
    )
    spatial_norm: float | None = option(
        OBJECTIVE,
        "Normalize stored tokens over each image after subtracting this fraction (gamma) of their mean (iREPA). "
        "Default: no normalization.",
        None,
    )
    projector: Literal["mlp", "conv"] = option(
        MODEL, "Projector of the hidden tokens: mlp (REPA), or conv, one convolution (iREPA).", "mlp"
    )
    cosine_coeff: float = option(
        OBJECTIVE,
        "Weight of the cosine distance between predicted and true velocity, over the channels of each position "
        "(LightningDiT: 1).",
        0.0,
    )
    contrast_coeff: float = option(
        OBJECTIVE,
        "Weight with which the velocity is moved away from the target of another sample (contrastive flow matching: "
        "0.05); 0 for none.",
        0.0,
    )
    dispersive_coeff: float = option(
        OBJECTIVE, "Weight of the dispersive loss of hidden tokens (published: 0.25); 0 for none.", 0.0
    )
    dispersive_block: int | None = option(
        OBJECTIVE, "Block whose output the dispersive loss reads, counted from 1. Default: the last one.", None
    )
    dispersive_temperature: float = option(OBJECTIVE, "Temperature of the dispersive loss.", 1.0)
    self_coeff: float = option(
        OBJECTIVE,
        "Weight of the self-alignment with the EMA of the model (SRA: 0.5); 0 for none.",
        0.0,
    )
    self_blocks: str = option(
        OBJECTIVE, "Blocks of student and teacher in the self-alignment, counted from 1; SRA with SiT-XL: 8,20.", "8,20"
    )
    self_offset: float = option(
        OBJECTIVE, "The teacher's time is earlier by up to this much, drawn for each sample.", 0.2
    )
    token_groups: float | None = option(
        OBJECTIVE,
        "Fraction of the tokens of each sample that have a time of their own (dual time scheduling: 0.25). Default: "
        "one time for all tokens.",
        None,
    )
    separate_attention: bool = option(
        OBJECTIVE, "In training, tokens attend only to those with the same time (requires --token-groups).", False
    )
    term: tuple[str, ...] = option(
        OBJECTIVE,
        "Term of the objective from an installed package, as NAME=WEIGHT; repeatable (docs/methods.md). Default: none.",
        (),
    )
    cls_coeff: float = option(
        OBJECTIVE,
        "Weight of the denoising loss of the class token (REG and SR-DiT: 0.03); 0 trains without class tokens.",
        0.0,
    )
    encoder_depth: int | None = option(
        MODEL,
        "Block whose output is aligned, counted from 1. Default: 4 for SiT-S, SiT-B and JiT-B, 8 for larger models.",
        None,
    )
    projector_kernel_size: int = option(
        MODEL, "Side of the convolution of --projector conv: 1, 3, 5 or 7; 1 is a linear map per token.", 3
    )
    projector_embed_dims: int = option(MODEL, "Width of the projector's hidden layers.", 2048)
    qk_norm: bool = option(MODEL, "Normalize queries and keys in attention.", False)
    num_classes: int | None = option(
        DATA, "Number of classes, above the largest label. Default: the number of classes in the store.", None
    )
    cfg_prob: float = option(OBJECTIVE, "Probability of dropping a label, for classifier-free guidance.", 0.1)
    legacy: bool = option(
        OBJECTIVE,
        "Drop labels a second time, with probability 0.1, as the published model does (19% are dropped in total).",
        False,
    )
    path_type: Literal["linear", "cosine"] = option(OBJECTIVE, "Interpolant between data and noise.", "linear")
    weighting: Literal["uniform", "lognormal", "truncated_lognormal"] = option(
        OBJECTIVE,
        "Distribution of the training times t; truncated_lognormal has none above 0.999 (RAE).",
        "uniform",
    )
    time_mean: float = option(
        OBJECTIVE, "Mean of log(noise / data) at the times of --weighting lognormal (JiT: 0.8).", 0.0
    )
    time_std: float = option(
        OBJECTIVE, "Standard deviation of log(noise / data) at the times of --weighting lognormal (JiT: 0.8).", 1.0
    )
    time_shift: float = option(
        OBJECTIVE,
        "Move times toward the noise: t becomes s t / (1 + (s - 1) t), also in sampling. RAE: s is the square root of "
        "the numbers per latent / 4096; 1 for no shift.",
        1.0,
    )
    latents_eps: float = option(
        OBJECTIVE,
        "Number that is added to the variance of a VAE's latents where training normalizes them, but not where "
        "samples are decoded (REPA-E: 1e-4).",
        0.0,
    )
    batch_size: int = option(OPTIMIZATION, "Global batch size: samples per step over all ranks.", 256)
    microbatches: int = option(
        OPTIMIZATION,
        "Micro-batches per step (gradient accumulation): less memory, same result up to rounding.",
        1,
        affects_result=False,
    )
    max_train_steps: int = option(OPTIMIZATION, "Number of training steps.", 400_000, affects_result=False)
    optimizer: Literal["adamw", "muon"] = option(
        OPTIMIZATION,
        "Optimizer: adamw, or muon, which updates matrices by Muon and all else by AdamW (RAEv2).",
        "adamw",
    )
    learning_rate: float = option(OPTIMIZATION, "Learning rate.", 1e-4)
    warmup_steps: int = option(OPTIMIZATION, "Increase the learning rate linearly from 0 over this many steps.", 0)
    lr_schedule: Literal["constant", "cosine", "linear"] = option(
        OPTIMIZATION,
        "Learning rate after the warmup: constant, or a decay to --lr-final at --lr-decay-steps.",
        "constant",
    )
    lr_decay_steps: int | None = option(
        OPTIMIZATION,
        "Step at which --lr-schedule cosine or linear reaches --lr-final. Default: --max-train-steps when the run is "
        "created.",
        None,
    )
    lr_constant_steps: int = option(
        OPTIMIZATION, "Steps between the warmup and the decay of --lr-schedule, with the full learning rate.", 0
    )
    lr_final: float = option(OPTIMIZATION, "Learning rate at the end of --lr-schedule cosine or linear.", 0.0)
    adam_beta1: float = option(OPTIMIZATION, "AdamW beta1.", 0.9)
    adam_beta2: float = option(OPTIMIZATION, "AdamW beta2.", 0.999)
    adam_weight_decay: float = option(OPTIMIZATION, "Weight decay, of AdamW and of Muon.", 0.0)
    adam_epsilon: float = option(OPTIMIZATION, "AdamW epsilon.", 1e-8)
    max_grad_norm: float = option(OPTIMIZATION, "Maximum gradient norm (gradient clipping).", 1.0, may_be_infinite=True)
    ema_decay: float = option(OPTIMIZATION, "Decay of the exponential moving average (EMA) of the weights.", 0.9999)
    mixed_precision: Precision | None = option(
        HARDWARE,
        "Autocast precision of the model. Default: the recorded one when a run is resumed; else bf16 if the GPU has "
        "it, or the CPU has AVX512_BF16 or AMX; else fp32.",
        None,
        chosen=True,
        aliases={"no": "fp32"},
    )
    allow_tf32: bool = option(HARDWARE, "Allow TF32 matrix products on GPUs.", True)
    compile: bool | None = option(
        HARDWARE, "Run the model through torch.compile. Default: on GPUs.", None, affects_result=False
    )
    checkpoint_blocks: bool = option(
        HARDWARE, "Recompute activations in the backward pass: less memory, slower.", False, affects_result=False
    )
    shuffle_window: int | None = option(
        DATA,
        "Shuffle within windows of this many shards, for disks with slow random reads. Default: shuffle all samples.",
        None,
    )
    direct: bool | None = option(
        DATA,
        "Bypass the page cache (O_DIRECT). Default: for samples that do not fit into the memory of the machine or job.",
        None,
        affects_result=False,
    )
    store_cache: str | None = option(
        DATA,
        "Local folder that caches samples of a store behind a URL (docs/stores.md). Default: no cache.",
        None,
        affects_result=False,
        path=PathKind.PATH,
    )
    reader_process: bool = option(
        DATA,
        "Read the store in a separate process, for training loops that spend much time in Python.",
        False,
        affects_result=False,
    )
    check_reads: Literal["first", "every", "never"] = option(
        DATA,
        "Compare samples with their checksums: when they are read for the first time and in a random 1/64 of later "
        "reads (first), in every read, or never. A damaged sample stops the run.",
        "first",
        affects_result=False,
    )
    classes: tuple[str, ...] = option(
        DATA,
        "Class to train on, by name or number; repeatable. Labels and --num-classes stay those of the store. "
        "Default: all classes.",
        (),
    )
    indices: str | None = option(
        DATA,
        "File with the indices of the samples to train on: .npy, or text with one per line. Default: all samples.",
        None,
        path=PathKind.PATH,
    )
    flip: bool = option(DATA, "Use the flipped views for half of the samples (requires `encode --flip`).", False)
    val_fraction: float = option(
        DATA, "Fraction of the samples that are held out, drawn by --seed, to compute validation losses.", 0.0
    )
    seed: int = option(OPTIMIZATION, "Seed for initial weights, sample order and noise.", 0)
    checkpointing_steps: int = option(OUTPUT, "Steps between checkpoints.", 50_000, affects_result=False)
    keep_checkpoints: int = option(
        OUTPUT, "Number of checkpoints to keep in addition to the last one; 0 keeps all.", 0, affects_result=False
    )
    milestone_steps: int = option(
        OUTPUT, "Steps between checkpoints that are kept permanently; 0 for none.", 0, affects_result=False
    )
    log_steps: int = option(OUTPUT, "Steps between rows of metrics.parquet.", 100, affects_result=False)
    val_steps: int | None = option(
        OUTPUT,
        "Steps between validation losses; requires --val-fraction. Default: --checkpointing-steps.",
        None,
        affects_result=False,
    )
    sampling_steps: int = option(
        OUTPUT, "Steps between grids of generated images (loads the store's VAE); 0 for none.", 0, affects_result=False
    )
    decoder: str | None = option(
        OUTPUT,
        "Decoder of encoder tokens for --sampling-steps and --eval-every, as for `sample`. Default: none.",
        None,
        affects_result=False,
        path=PathKind.MODEL,
    )
    eval_every: int = option(
        OUTPUT,
        "Steps between evaluations of the EMA weights without guidance, by `sample` and `evaluate` in a process of "
        "their own, for which training does not wait; 0 for none.",
        0,
        affects_result=False,
    )
    eval_images: int = option(OUTPUT, "Images to generate per evaluation.", 2048, affects_result=False)
    eval_reference: str | None = option(
        OUTPUT,
        "What evaluations compare with, as for `evaluate --reference`. Default: the images of the store.",
        None,
        affects_result=False,
        path=PathKind.PATH,
    )
    eval_detector: tuple[str, ...] = option(
        OUTPUT,
        "Feature extractor of evaluations, as for `evaluate --detector`; repeatable.",
        ("inception",),
        affects_result=False,
    )
    eval_device: str | None = option(
        OUTPUT,
        "Torch device of evaluations, such as cuda:1; one that no rank uses does not slow training. Default: --device.",
        None,
        affects_result=False,
    )
    report_to: str | None = option(
        OUTPUT,
        "Experiment tracker: tensorboard, wandb, trackio, aim, a list of them with commas, or none. "
        "Default: tensorboard if installed, else none.",
        None,
        affects_result=False,
    )
    notes: str | None = option(
        OUTPUT, "Notes about the run, for run.json and trackers. Default: as recorded.", None, affects_result=False
    )
    tag: tuple[str, ...] = option(
        OUTPUT, "Tag of the run, for run.json and trackers; repeatable. Default: as recorded.", (), affects_result=False
    )
    group: str | None = option(
        OUTPUT, "Group of the run in trackers. Default: none; in a sweep, its name.", None, affects_result=False
    )
    profile_steps: str | None = option(
        OUTPUT,
        "Write a torch.profiler trace of the steps between two steps, such as 100:105. Default: no trace.",
        None,
        affects_result=False,
    )
    device: str | None = option(HARDWARE, DEVICE_HELP, None, affects_result=False)
    fsdp: bool = option(
        HARDWARE,
        "Shard weights, gradients and optimizer state across ranks (FSDP2): less memory, more communication.",
        False,
        affects_result=False,
    )
    ray: bool = option(HARDWARE, RAY_HELP, False, affects_result=False)
    ray_workers: int | None = option(
        HARDWARE, "Number of ranks on Ray. Default: one per GPU in the cluster, else one.", None, affects_result=False
    )
    ray_address: str | None = option(HARDWARE, RAY_ADDRESS_HELP, None, affects_result=False)
