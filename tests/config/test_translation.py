"""Command lines of the published programs run here, or every flag that is not ours is answered.

The lines are those of the programs' own README files and scripts:

    github.com/sihyun-yu/REPA          README.md at 14319d6 and, with underscores, at 10c9231; preprocessing/README.md
    github.com/End2End-Diffusion/iREPA README.md at 99ad4ac
    github.com/Martinser/REG           README.md (train.sh) and eval.sh at 021ea2e
    github.com/willisma/SiT            README.md at a87098c
"""

import re
import shlex
from pathlib import Path

import click
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from repa_pipe import cli
from repa_pipe.config import TrainConfig
from repa_pipe.config.foreign_flags import FOREIGN_FLAGS, REPA_DEFAULTS
from repa_pipe.config.translation import answer, translate
from repa_pipe.options import config_of

REPA_TRAIN = """accelerate launch train.py --report-to="wandb" --allow-tf32 --mixed-precision="fp16" --seed=0
    --path-type="linear" --prediction="v" --weighting="uniform" --model="SiT-XL/2" --enc-type="dinov2-vit-b"
    --proj-coeff=0.5 --encoder-depth=8 --output-dir="exps" --exp-name="linear-dinov2-b-enc8"
    --data-dir=[YOUR_DATA_PATH]"""
LINES = {
    "REPA train": REPA_TRAIN,
    "REPA generate": """torchrun --nnodes=1 --nproc_per_node=8 generate.py --model SiT-XL/2 --num-fid-samples 50000
        --ckpt YOUR_CHECKPOINT_PATH --path-type=linear --encoder-depth=8 --projector-embed-dims=768
        --per-proc-batch-size=64 --mode=sde --num-steps=250 --cfg-scale=1.8 --guidance-high=0.7""",
    "REPA generate, older": """torchrun --nnodes=1 --nproc_per_node=8 generate.py --model SiT-XL/2
        --num-fid-samples 50000 --ckpt YOUR_CHECKPOINT_PATH --path_type=linear --encoder_depth=8
        --projector_embed_dims=768 --per-proc-batch-size=64 --mode=sde --num_steps=250 --cfg-scale=1.8
        --guidance_high=0.7""",
    "REPA convert": """python dataset_tool.py --source=[YOUR_DOWNLOAD_PATH]/ILSVRC/Data/CLS-LOC/train
        --dest=data/images --resolution=256x256 --transform=center-crop-dhariwal""",
    "REPA encode": "python dataset_tool.py --source=[YOUR_DATA_PATH]/images --dest=[YOUR_DATA_PATH]/vae-sd",
    "iREPA train REPA": """accelerate launch train.py --config configs/repa.yaml --model="SiT-B/2"
        --enc-type="pe-vit-g" --encoder-depth=4 --data-dir=../data --exp-name="sitb2-pe-vit-g-repa" """,
    "iREPA train iREPA": """accelerate launch train.py --config configs/irepa.yaml --model="SiT-B/2"
        --enc-type="pe-vit-g" --encoder-depth=4 --data-dir=../data --exp-name="sitb2-pe-vit-g-irepa" """,
    "iREPA train JiT": """torchrun --nproc_per_node=4 main_jit.py --config configs/irepa.yaml --model JiT-B/16
        --enc_type="pe-vit-g" --encoder_depth=4 --data_path=../data --output_dir="exps/jit-pe-vit-g-irepa" """,
    "iREPA generate": """torchrun --nproc_per_node=8 generate.py --model="SiT-B/2"
        --ckpt="exps/<exp_name>/checkpoints/<step>.pt" --num-fid-samples=50000 --sample-dir=samples""",
    "REG train": """accelerate launch --multi_gpu --num_processes $NUM_GPUS train.py --report-to="wandb" --allow-tf32
        --mixed-precision="fp16" --seed=0 --path-type="linear" --prediction="v" --weighting="uniform" --model="SiT-B/2"
        --enc-type="dinov2-vit-b" --proj-coeff=0.5 --encoder-depth=4 --output-dir="your_path"
        --exp-name="linear-dinov2-b-enc4" --batch-size=256 --data-dir="data_path/imagenet_vae" --cls=0.03""",
    "REG generate": """python -m torch.distributed.launch --master_port=$random_number --nproc_per_node=$NUM_GPUS
        generate.py --model SiT-XL/2 --num-fid-samples 50000 --ckpt ${SAVE_PATH}/checkpoints/${STEP}.pt
        --path-type=linear --encoder-depth=8 --projector-embed-dims=768 --per-proc-batch-size=64 --mode=sde
        --num-steps=250 --cfg-scale=2.3 --cls-cfg-scale=2.3 --guidance-high=0.85
        --sample-dir ${SAVE_PATH}/checkpoints --cls=768""",
    "REG evaluate": """python ./evaluations/evaluator.py --ref_batch your_path/VIRTUAL_imagenet256_labeled.npz
        --sample_batch ${SAVE_PATH}/checkpoints/images.npz --save_path ${SAVE_PATH}/checkpoints --cfg_cond 1
        --step 2400000 --num_steps 250 --cfg 2.3 --cls_cfg 2.3 --gh 0.85""",
    "SiT sample": "python sample.py ODE --image-size 256 --seed 1",
    "SiT sample L/4": "python sample.py ODE --model SiT-L/4 --image-size 256 --ckpt /path/to/model.pt",
    "SiT train": """torchrun --nnodes=1 --nproc_per_node=N train.py --model SiT-XL/2
        --data-path /path/to/imagenet/train""",
    "SiT train wandb": """torchrun --nnodes=1 --nproc_per_node=N train.py --model SiT-XL/2
        --data-path /path/to/imagenet/train --wandb""",
    "SiT train noise": """torchrun --nnodes=1 --nproc_per_node=N train.py --model SiT-XL/2
        --data-path /path/to/imagenet/train --path-type Linear --prediction noise""",
    "SiT resume": """torchrun --nnodes=1 --nproc_per_node=N train.py --model SiT-L/2
        --data-path /path/to/imagenet/train --ckpt /path/to/model.pt""",
    "SiT sample ddp": """torchrun --nnodes=1 --nproc_per_node=N sample_ddp.py ODE --model SiT-XL/2
        --num-fid-samples 50000""",
    "SiT likelihood": "torchrun --nnodes=1 --nproc_per_node=N sample_ddp.py ODE --model SiT-XL/2 --likelihood",
}
SCRIPTS = {
    "train.py": "train",
    "main_jit.py": "train",
    "generate.py": "sample",
    "sample.py": "sample",
    "sample_ddp.py": "sample",
    "dataset_tool.py": "encode",
    "evaluator.py": "evaluate",
}


def ours(line):
    """Return the command that does the work of the script in a line, and the script's arguments."""
    words = shlex.split(line)
    index = next(index for index, word in enumerate(words) if Path(word).name in SCRIPTS)
    return SCRIPTS[Path(words[index]).name], words[index + 1 :]


def parse(command, words):
    return cli.cli.commands[command].make_context(command, list(words))


def flags_of(command):
    options = [each for each in cli.cli.commands[command].params if isinstance(each, click.Option)]
    return {flag: not each.is_flag for each in options for flag in (*each.opts, *each.secondary_opts)}


@pytest.mark.parametrize("line", LINES.values(), ids=LINES)
def test_every_published_command_line_runs_or_has_an_answer_to_every_foreign_flag(line):
    command, words = ours(line)
    with pytest.raises(click.UsageError) as error:  # each of them reads a folder that is not a store here, at least
        parse(command, words)
    title, *answers = error.value.message.splitlines()
    assert title == "flags of other programs (docs/coming-from-repa.md):"
    answered = {re.split(r"[=: ]", each.strip())[0] for each in answers if each.startswith("  ")}
    typed = {word.partition("=")[0] for word in words if word.startswith("--")}
    unknown = {flag for flag in typed if flag.replace("_", "-") not in flags_of(command)}
    assert unknown <= answered
    for each in answers:
        if each.startswith("Use: "):
            repa_pipe, used, *equivalent = shlex.split(each.removeprefix("Use: "))
            assert (repa_pipe, used) == ("repa-pipe", command)
            if command != "evaluate":  # lacks nothing
                parse(command, equivalent)
    assert answers[-1].startswith("Use: ") or any("not available" in each for each in answers)


def equivalent(name):
    command, words = ours(LINES[name])
    with pytest.raises(click.UsageError) as error:
        parse(command, words)
    return error.value.message.splitlines()[-1].removeprefix(f"Use: repa-pipe {command} ")


def test_the_equivalents_keep_the_meaning():
    repa = config_of(TrainConfig, parse("train", shlex.split(equivalent("REPA train"))).params)
    assert (repa.store, repa.mixed_precision, repa.proj_coeff, repa.exp_name) == (
        "STORE",
        "fp16",
        0.5,
        "linear-dinov2-b-enc8",
    )
    irepa = config_of(TrainConfig, parse("train", shlex.split(equivalent("iREPA train iREPA"))).params)
    assert (irepa.model, irepa.encoder_depth, irepa.projector, irepa.projector_kernel_size) == ("SiT-B/2", 4, "conv", 1)
    assert (irepa.spatial_norm, irepa.proj_coeff) == (0.6, 1.0)
    assert config_of(TrainConfig, parse("train", shlex.split(equivalent("REG train"))).params).cls_coeff == 0.03
    sit = config_of(TrainConfig, parse("train", shlex.split(equivalent("SiT train wandb"))).params)
    assert (sit.proj_coeff, sit.report_to) == (0.0, "wandb")
    assert equivalent("SiT sample") == "--mode ode --global-seed 1 --checkpoint CHECKPOINT"
    assert equivalent("REG generate").endswith(
        "--checkpoint '${SAVE_PATH}/checkpoints/${STEP}.pt' --png-folder '${SAVE_PATH}/checkpoints'"
    )
    assert equivalent("iREPA train REPA").endswith("--store STORE")


def test_a_jit_is_a_model_of_ours_and_its_recipe_is_named():
    assert config_of(TrainConfig, parse("train", ["s", "--model", "JiT-B/16"]).params).model == "JiT-B/16"
    command, words = ours(LINES["iREPA train JiT"])
    with pytest.raises(click.UsageError, match="With a JiT, use --recipe irepa-jit instead"):
        parse(command, words)


def test_kernel_and_gamma_that_are_given_replace_the_defaults_of_irepa():
    words = [
        "--proj-kwargs-kernel-size=3",
        "--zscore-alpha=0.8",
        "--projection-layer-type=conv",
        "--spnorm-method=zscore",
    ]
    found = translate("train", words, flags_of("train")).describe("train", ["--store"])
    assert found.splitlines()[-1] == (
        "Use: repa-pipe train --projector conv --projector-kernel-size 3 --spatial-norm 0.8 --store STORE"
    )


def test_a_store_given_by_position_is_not_asked_for_again():
    found = translate("train", ["mystore", "--data-dir", "d"], flags_of("train")).describe("train", ["--store"])
    assert found.endswith("Use: repa-pipe train mystore")


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--prediction", "v"], "  --prediction v: always the velocity, v; remove it"),
        (["--prediction=noise"], "  --prediction=noise: not available: always the velocity, v"),
        (["--no-fused-attn"], "  --no-fused-attn: attention is always fused; remove it"),
        (["--num_workers", "4"], "  --num_workers 4: threads read the store; remove it"),
        (["--wandb", "mystore"], "  --wandb: use --report-to wandb"),
    ],
)
def test_a_foreign_flag_is_answered_as_it_was_typed(words, line):
    assert translate("train", words, flags_of("train")).describe("train", []).splitlines()[1] == line


def test_the_command_line_prints_the_answers_and_exits_with_2(run_cli):
    code, _, errors = run_cli("train", "s", "--prediction", "v", "--resume-step", "0")
    assert code == 2
    assert errors.splitlines()[-4:] == [
        "Error: flags of other programs (docs/coming-from-repa.md):",
        "  --prediction v: always the velocity, v; remove it",
        "  --resume-step 0: a run resumes from its last checkpoint; remove it",
        "Use: repa-pipe train s",
    ]


def test_underscores_in_our_flags_are_dashes():
    config = config_of(TrainConfig, parse("train", ["s", "--enc_type", "a", "--proj_coeff=1"]).params)
    assert config == TrainConfig(store="s", enc_type=("a",), proj_coeff=1.0)


def test_a_file_with_the_name_of_a_mode_is_a_checkpoint(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ODE").touch()
    assert parse("sample", ["ODE"]).params["checkpoint"] == "ODE"


def test_values_of_our_flags_are_not_taken_for_flags():
    config = config_of(TrainConfig, parse("train", ["s", "--notes", "--prediction v", "--tag", "--wandb"]).params)
    assert (config.notes, config.tag) == ("--prediction v", ("--wandb",))


@pytest.mark.parametrize("value", ["a,b", "a, b"])
def test_encoders_may_be_a_list_with_commas(value):
    config = config_of(TrainConfig, parse("train", ["s", "--enc-type", value, "--enc-type", "c"]).params)
    assert config.enc_type == ("a", "b", "c")


def test_no_mixed_precision_is_fp32():
    assert parse("train", ["s", "--mixed-precision=no"]).params["mixed_precision"] == "fp32"


ENTRIES = [(command, entry) for command, table in FOREIGN_FLAGS.items() for entry in table]


@settings(deadline=None)
@given(st.sampled_from(ENTRIES), st.sampled_from(["1", "x y", "v", "--seed", "{value}", "conv", ""]), st.booleans())
def test_every_flag_in_the_tables_is_answered_with_any_value(each, value, joined):
    command, entry = each
    values = [pattern.replace("*", "x") for pattern in entry.values] or [value]
    words = [f"{entry.flag}={values[0]}"] if joined else [entry.flag, values[0]]
    found = translate(command, words if entry.flag.startswith("--") else [entry.flag], flags_of(command))
    assert found.foreign
    text = found.describe(command, [])
    assert answer(found.foreign[0][0], found.foreign[0][2]) in text


@pytest.mark.parametrize("command", FOREIGN_FLAGS)
def test_replacements_exist_and_flags_of_ours_are_only_listed_with_values(command):
    own = flags_of(command)
    for entry in FOREIGN_FLAGS[command]:
        assert {word for word in shlex.split(entry.use or "") if word.startswith("--")} <= own.keys()
        assert entry.flag not in own or entry.values
    assert REPA_DEFAULTS.get(command, {}).keys() <= own.keys()
