"""Flags of the published programs whose command lines people bring along, and what replaces them here. Data only.

Read from the argparse definitions of REPA (sihyun-yu/REPA, 9d60489), iREPA (End2End-Diffusion/iREPA, 99ad4ac, `ldm`),
REG (Martinser/REG, 021ea2e), SiT (willisma/SiT, a87098c) and OpenAI's evaluator as REG calls it. Flags with the same
name and meaning are not listed, except with values that are spelled differently. `translation.py` reads the tables, and
docs/coming-from-repa.md shows them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

STORE = "encode the images into a store first (repa-pipe encode)"
FROM_CHECKPOINT = "inferred from the checkpoint"
FIXED_STEPS = "the steps are fixed (--num-steps)"
NO_EPSILON = "the velocity needs no bounds of t"


@dataclass(frozen=True, slots=True)
class ForeignFlag:
    """A flag of another program.

    Attributes:
        flag: its name with dashes, which also stands for the name with underscores; or a word without a flag.
        programs: the programs that have it.
        use: the arguments that replace it, "" for none; `{value}` stands for its value. None: there is no replacement.
        reason: why, or what else to know.
        values: patterns of the values that the entry is about; () for all.
        takes_value: whether a value follows; if not, `--no-…` is the same flag.
    """

    flag: str
    programs: tuple[str, ...]
    use: str | None
    reason: str = ""
    values: tuple[str, ...] = ()
    takes_value: bool = True


REPA, IREPA, REG, SIT, ADM = ("REPA",), ("iREPA",), ("REG",), ("SiT",), ("ADM evaluator",)
ALL_REPA = REPA + IREPA + REG
EVERY = ALL_REPA + SIT
_unneeded = partial(ForeignFlag, use="")
_unavailable = partial(ForeignFlag, use=None)
_switch = partial(ForeignFlag, takes_value=False)

# Of several entries with the same flag, the first one with a matching pattern counts. Replacements are joined in this
# order, and the last one of the same name counts.
_TRAIN = (
    ForeignFlag("--data-dir", ALL_REPA, "--store STORE", STORE),
    ForeignFlag("--data-path", SIT, "--store STORE --proj-coeff 0", f"SiT trains without alignment; {STORE}"),
    ForeignFlag(
        "--config",
        IREPA,
        "--recipe irepa --projector-kernel-size 1",
        "the published file leaves the kernel at the script's default, 1; the recipe has the paper's, 3. With a JiT, "
        "use --recipe irepa-jit instead",
        values=("*irepa.yaml",),
    ),
    _unneeded("--config", IREPA, reason="REPA's settings are the defaults", values=("*repa.yaml",)),
    _unavailable(
        "--config", IREPA, reason="a config file is TOML, as printed by --dry-run", values=("*.yaml", "*.yml")
    ),
    _unneeded("--resolution", ALL_REPA, reason="the store determines it (encode --resolution)"),
    _unneeded("--image-size", SIT, reason="the store determines it (encode --resolution)"),
    ForeignFlag("--vae", SIT, "--vae sd-vae-ft-{value}", values=("ema", "mse")),
    ForeignFlag("--results-dir", SIT, "--output-dir {value}"),
    ForeignFlag("--global-batch-size", SIT, "--batch-size {value}"),
    ForeignFlag("--global-seed", SIT, "--seed {value}"),
    ForeignFlag("--log-every", SIT, "--log-steps {value}"),
    ForeignFlag("--ckpt-every", SIT, "--checkpointing-steps {value}"),
    ForeignFlag("--sample-every", SIT, "--sampling-steps {value}"),
    _switch("--wandb", SIT, "--report-to wandb"),
    _unavailable(
        "--ckpt", SIT, reason="runs resume by themselves; --init-from starts from a checkpoint of REPA, iREPA or REG"
    ),
    _unneeded("--logging-dir", ALL_REPA, reason="logs are in the run folder"),
    _unneeded("--resume-step", ALL_REPA, reason="a run resumes from its last checkpoint"),
    _unavailable("--epochs", EVERY, reason="a run ends after --max-train-steps"),
    _unneeded("--num-workers", EVERY, reason="threads read the store"),
    _unneeded("--gradient-accumulation-steps", ALL_REPA, reason="the default", values=("1",)),
    _unavailable(
        "--gradient-accumulation-steps",
        ALL_REPA,
        reason="there, it multiplies --batch-size: pass the product as --batch-size, and --microbatches {value}",
    ),
    _unneeded("--fused-attn", ALL_REPA, reason="attention is always fused", takes_value=False),
    _unneeded("--n-samples", IREPA, reason="grids have 16 images"),
    _unneeded("--cfg-scale", SIT, reason="grids have guidance scale 4"),
    _unneeded("--ema-update-freq", IREPA, reason="the average is updated in every step", values=("1",)),
    _unavailable("--ema-update-freq", IREPA, reason="the average is updated in every step (--ema-decay)"),
    _unneeded("--prediction", EVERY, reason="always the velocity, v", values=("v", "velocity")),
    _unavailable("--prediction", EVERY, reason="always the velocity, v"),
    ForeignFlag("--path-type", SIT, "--path-type linear", values=("Linear",)),
    ForeignFlag("--path-type", SIT, "--path-type cosine", values=("GVP",)),
    _unavailable("--path-type", SIT, reason="expected linear or cosine", values=("VP",)),
    _unneeded("--loss-weight", SIT, reason="the velocity's loss is not weighted", values=("None",)),
    _unavailable("--loss-weight", SIT, reason="the velocity's loss is not weighted"),
    _unneeded("--train-eps", SIT, reason=NO_EPSILON),
    _unneeded("--sample-eps", SIT, reason=NO_EPSILON),
    _unneeded("--repa-loss", IREPA, reason="tokens are aligned unless --proj-coeff is 0", takes_value=False),
    _switch("--no-repa-loss", IREPA, "--proj-coeff 0"),
    ForeignFlag("--projection-layer-type", IREPA, "--projector mlp", values=("mlp",)),
    ForeignFlag(
        "--projection-layer-type",
        IREPA,
        "--projector conv --projector-kernel-size 1",
        "1 is the default of the kernel there, 3 here",
        values=("conv", "linear"),
    ),
    ForeignFlag("--proj-kwargs-kernel-size", IREPA, "--projector-kernel-size {value}"),
    _unneeded("--projection-loss-type", IREPA, reason="the default of --alignment-loss", values=("cosine",)),
    _unavailable("--projection-loss-type", IREPA, reason="see --alignment-loss"),
    _unneeded("--spnorm-method", IREPA, reason="the default of --spatial-norm", values=("none",)),
    ForeignFlag("--spnorm-method", IREPA, "--spatial-norm 0.6", "the default of --zscore-alpha", values=("zscore",)),
    _unavailable("--spnorm-method", IREPA, reason="see --spatial-norm"),
    ForeignFlag("--zscore-alpha", IREPA, "--spatial-norm {value}"),
    _unneeded("--no-zscore-proj-skip-std", IREPA, reason="the default", takes_value=False),
    _unavailable("--zscore-proj-skip-std", IREPA, reason="--spatial-norm always divides", takes_value=False),
    _unneeded("--cls-token-weight", IREPA, reason="unused there, too"),
    ForeignFlag("--cls", REG, "--cls-coeff {value}"),
)
_SAMPLE = (
    ForeignFlag("ODE", SIT, "--mode ode", "Euler's or Heun's steps instead of dopri5"),
    ForeignFlag("SDE", SIT, "--mode sde --num-steps 250", "the default of --num-sampling-steps"),
    ForeignFlag("--ckpt", EVERY, "--checkpoint {value}"),
    ForeignFlag(
        "--sample-dir", EVERY, "--png-folder {value}", "the .npz is in samples/ of the run folder, or at --out"
    ),
    ForeignFlag("--vae", EVERY, "--vae sd-vae-ft-{value}", values=("ema", "mse")),
    _unneeded("--model", EVERY, reason=FROM_CHECKPOINT),
    _unneeded("--num-classes", EVERY, reason=FROM_CHECKPOINT),
    _unneeded("--resolution", ALL_REPA, reason=FROM_CHECKPOINT),
    _unneeded("--image-size", SIT, reason=FROM_CHECKPOINT),
    _unneeded("--encoder-depth", ALL_REPA, reason=FROM_CHECKPOINT),
    _unneeded("--projector-embed-dims", REPA + REG, reason=FROM_CHECKPOINT),
    _unneeded("--cls", REG, reason=FROM_CHECKPOINT),
    _unneeded("--qk-norm", ALL_REPA, reason=FROM_CHECKPOINT, takes_value=False),
    _unneeded("--legacy", REPA + REG, reason="older names of tensors are recognized", takes_value=False),
    _unneeded("--fused-attn", ALL_REPA, reason="attention is always fused", takes_value=False),
    _unneeded("--tf32", EVERY, reason="products are exact float32; --precision is faster", takes_value=False),
    ForeignFlag("--seed", SIT, "--global-seed {value}"),
    ForeignFlag("--num-sampling-steps", SIT, "--num-steps {value}"),
    ForeignFlag("--path-type", SIT, "--path-type linear", values=("Linear",)),
    ForeignFlag("--path-type", SIT, "--path-type cosine", values=("GVP",)),
    _unavailable("--path-type", SIT, reason="expected linear or cosine", values=("VP",)),
    _unneeded("--prediction", SIT, reason="always the velocity, v", values=("velocity",)),
    _unavailable("--prediction", SIT, reason="always the velocity, v"),
    _unneeded("--loss-weight", SIT, reason="a setting of training"),
    _unneeded("--train-eps", SIT, reason=NO_EPSILON),
    _unneeded("--sample-eps", SIT, reason=NO_EPSILON),
    _unneeded("--sampling-method", SIT, reason="the default", values=("Euler", "euler")),
    ForeignFlag("--sampling-method", SIT, "--heun", "with --mode ode", values=("Heun", "heun2")),
    _unavailable("--sampling-method", SIT, reason=FIXED_STEPS),
    _unavailable("--atol", SIT, reason=FIXED_STEPS),
    _unavailable("--rtol", SIT, reason=FIXED_STEPS),
    _unavailable("--reverse", SIT, reason="images are generated from noise only", takes_value=False),
    _unavailable("--likelihood", SIT, reason="images are generated from noise only", takes_value=False),
    _unneeded("--diffusion-form", SIT, reason="the only one", values=("sigma",)),
    _unavailable("--diffusion-form", SIT, reason="sigma is the only one"),
    _unneeded("--diffusion-norm", SIT, reason="the only one", values=("1", "1.0")),
    _unavailable("--diffusion-norm", SIT, reason="1 is the only one"),
    _unneeded("--last-step", SIT, reason="the only one", values=("Mean",)),
    _unavailable("--last-step", SIT, reason="Mean is the only one"),
    _unneeded("--last-step-size", SIT, reason="the only one", values=("0.04",)),
    _unavailable("--last-step-size", SIT, reason="0.04 is the only one"),
)
_ENCODE = (
    ForeignFlag("--dest", REPA, "--store {value}", "one store holds crops' moments and tokens"),
    ForeignFlag("--resolution", REPA, "--resolution 256", values=("256x256",)),
    _unneeded("--transform", REPA, reason="the only crop", values=("center-crop-dhariwal",)),
    _unavailable("--transform", REPA, reason="center-crop-dhariwal is the only crop"),
)
_EVALUATE = (
    ForeignFlag("--ref-batch", ADM, "--reference {value}"),
    ForeignFlag("--sample-batch", ADM, "--samples {value}"),
    _unneeded("--save-path", ADM, reason="metrics are written next to the samples (--out)"),
    *(
        _unneeded(flag, ADM, reason="recorded by sample")
        for flag in ("--cfg-cond", "--step", "--num_steps", "--cfg", "--cls-cfg", "--gh")
    ),
)
FOREIGN_FLAGS = {"train": _TRAIN, "sample": _SAMPLE, "encode": _ENCODE, "evaluate": _EVALUATE}

# Defaults of REPA's flags that have the same name here; None: required there.
REPA_DEFAULTS: dict[str, dict[str, object]] = {
    "train": {
        "--output-dir": "exps",
        "--exp-name": None,
        "--report-to": "wandb",
        "--sampling-steps": 10_000,
        "--model": None,
        "--num-classes": 1000,
        "--encoder-depth": 8,
        "--qk-norm": False,
        "--batch-size": 256,
        "--allow-tf32": False,
        "--mixed-precision": "fp16",
        "--max-train-steps": 400_000,
        "--checkpointing-steps": 50_000,
        "--learning-rate": 1e-4,
        "--adam-beta1": 0.9,
        "--adam-beta2": 0.999,
        "--adam-weight-decay": 0.0,
        "--adam-epsilon": 1e-8,
        "--max-grad-norm": 1.0,
        "--seed": 0,
        "--path-type": "linear",
        "--cfg-prob": 0.1,
        "--enc-type": "dinov2-vit-b",
        "--proj-coeff": 0.5,
        "--weighting": "uniform",
        "--legacy": False,
    },
    "sample": {
        "--global-seed": 0,
        "--per-proc-batch-size": 32,
        "--num-fid-samples": 50_000,
        "--mode": "ode",
        "--cfg-scale": 1.5,
        "--path-type": "linear",
        "--num-steps": 50,
        "--heun": False,
        "--guidance-low": 0.0,
        "--guidance-high": 1.0,
        "--vae": "ema",
    },
}
