"""Model FLOPs utilization, and the memory in the log."""

from pathlib import Path

import pytest
import torch

from repa_pipe.config import TrainConfig
from repa_pipe.models.flops import forward_flops, model_flops
from repa_pipe.models.sit import SIT_PRESETS
from repa_pipe.models.throughput import peak_flops_per_second
from repa_pipe.pipeline import train
from repa_pipe.pipeline.artifacts.metrics_log import read_metrics
from repa_pipe.pipeline.artifacts.run_folder import RunFolder
from repa_pipe.pipeline.training import trainer
from repa_pipe.pipeline.training.utilization import mfu_per_image_rate

XL = SIT_PRESETS["SiT-XL/2"](input_size=32, in_channels=4, z_dims=(768,))


def test_the_flops_of_sit_xl_are_those_of_its_paper():
    assert forward_flops(XL, project=False) == pytest.approx(2 * 118.6e9, rel=0.01)  # 118.6 G multiply-adds
    assert forward_flops(XL) == model_flops("SiT-XL/2", 32, 4, (768,)) > forward_flops(XL, project=False)


def test_the_flops_of_a_model_with_class_tokens_are_counted():
    entangled = SIT_PRESETS["SiT-XL/2"](input_size=32, in_channels=4, z_dims=(768,), cls_dim=768)
    assert forward_flops(entangled, project=False) == pytest.approx(
        forward_flops(XL, project=False) * 257 / 256, rel=0.01
    )


def test_mfu_compares_the_flops_of_training_steps_with_the_peak_of_all_gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100 80GB HBM3")
    factor = mfu_per_image_rate(TrainConfig(store="s", mixed_precision="bf16"), XL, torch.device("cuda"), 8)
    assert 8 * 513 * factor == pytest.approx(3 * 2 * 118.6e9 * 513 / 989e12, rel=0.01)


@pytest.mark.parametrize(
    ("name", "precision", "known"),
    [
        ("NVIDIA H100 80GB HBM3", "bf16", True),
        ("NVIDIA H100 80GB HBM3", "fp32", False),
        ("NVIDIA H100 80GB HBM3 MIG 3g.40gb", "bf16", False),
        ("some other GPU", "bf16", False),
    ],
)
def test_the_peak_is_known_only_for_listed_gpus_in_half_precision(name, precision, known):
    assert (peak_flops_per_second(name, precision) is not None) == known


def test_the_log_has_memory_and_mfu_only_where_the_peak_is_known(config_of, monkeypatch):
    (row,) = read_metrics(RunFolder(Path(train.run(config_of(max_train_steps=1)).run)))
    assert 0.1 < row["memory_gib"] < 100
    assert 0 < row["process_gib"] <= row["memory_gib"] * 1.01  # the latter is its peak
    assert 0 < row["cpu_cores"] < 64
    assert "mfu" not in row
    monkeypatch.setattr(trainer, "mfu_per_image_rate", lambda *_: 0.001)
    rows = read_metrics(RunFolder(Path(train.run(config_of(max_train_steps=2, log_steps=1)).run)))
    assert [row["mfu"] for row in rows] == [None, pytest.approx(0.001 * rows[1]["images_per_s"])]
