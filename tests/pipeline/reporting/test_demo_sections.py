"""Sections of the demo's report: the figures in them are those of their inputs."""

from pathlib import Path

import numpy as np
import pytest

from repa_pipe.pipeline import train
from repa_pipe.pipeline.artifacts.metrics_log import read_metrics
from repa_pipe.pipeline.artifacts.run_folder import RunFolder
from repa_pipe.pipeline.reporting.demo_sections import alignment_section, codec_section
from repa_pipe.pipeline.reporting.steps import StepComparison, Steps, StepTimes, step_section
from repa_pipe.pipeline.runtime.sizes import bytes_text
from repa_pipe.stores import open_store


def texts(table):
    return [[cell.text for cell in row] for row in (table.header, *table.rows)]


@pytest.fixture
def comparison():
    """Three steps: 100 ms from the store, and 150, 200 and 290 ms with the encoder online."""
    stored = [StepTimes(0.01, 0.0, 0.0, 0.09)] * 3
    online = [StepTimes(0.005, 0.02, encode, 0.085) for encode in (0.04, 0.09, 0.18)]
    losses = np.zeros((3, 2), np.float32)
    return StepComparison(
        stored=Steps(stored, losses),
        online=Steps(online, losses + np.float32(0.25)),
        losses=("loss", "denoising_loss"),
        batch_size=8,
        device="CPU, 2 threads",
        token_cosine=0.875,
    )


def test_the_ratio_is_the_median_of_those_of_single_steps(comparison):
    section = step_section(comparison, "SiT-T/2", "enc")
    assert "2.00 times" in section.paragraphs[0]
    assert "lowest 1.50, highest 2.90" in section.paragraphs[0]
    assert "differ widely" not in section.paragraphs[0]
    for words in ("SiT-T/2 with batch size 8", "aligned with enc", "CPU, 2 threads", "0.875000", "2.5e-01"):
        assert words in section.paragraphs[1]


def test_a_disturbed_measurement_is_marked(comparison):
    comparison.online.times.append(StepTimes(0.005, 0.02, 0.3, 0.085))
    comparison.stored.times.append(comparison.stored.times[0])
    assert "The rounds differ widely" in step_section(comparison, "SiT-T/2", "enc").paragraphs[0]


def test_the_table_of_times_has_the_parts_of_a_step_and_their_sum(comparison):
    header, stored, online = texts(step_section(comparison, "SiT-T/2", "enc").table)
    assert header[1:] == ["Read the store", "Decode images", "Run the encoder", "Train", "Total"]
    assert stored[1:] == ["10.0", "0.0", "0.0", "90.0", "100.0"]
    assert online[1:] == ["5.0", "20.0", "90.0", "85.0", "200.0"]


def test_the_figure_of_times_has_a_bar_per_part(comparison):
    section = step_section(comparison, "SiT-T/2", "enc")
    for label in ("read the store", "decode images", "run the encoder", "train"):
        assert label in section.script


def test_bytes_per_image_are_those_of_the_shapes_in_the_store(make_store):
    path, _ = make_store()
    with open_store(path) as store:
        rows = {row[0]: row[1:] for row in texts(codec_section(store, "tiny", "enc", 1_281_167).table)[1:]}
        assert store.group("features/enc").spec.arrays[0].sample_bytes == 16 * 24 * 2
    moments = 8 * 8 * 8 * 4
    assert rows["float16"][:3] == ["1.00000 (min 1.00000)", bytes_text(16 * 24 * 2), bytes_text(16 * 24 * 2 + moments)]
    assert rows["int8"][1:3] == [bytes_text(16 * (24 + 2)), bytes_text(16 * (24 + 2) + moments)]
    assert rows["int4"][1:3] == [bytes_text(16 * (12 + 2)), bytes_text(16 * (12 + 2) + moments)]
    large = 2 * 2 * 768 * 2  # DINOv2-B at the resolution of this store, 32 pixels
    assert rows["float16"][3:] == [bytes_text(large), bytes_text(large + moments), "10.5 GB"]
    means = [float(rows[codec][0].split()[0]) for codec in ("float16", "int8", "int4")]
    assert means == sorted(means, reverse=True)
    assert means[2] < 1


def test_the_curve_of_alignment_is_the_negative_loss(config_of):
    run = RunFolder(Path(train.run(config_of(max_train_steps=4)).run))
    section = alignment_section(run)
    first, last = (f"{-row['alignment_loss']:.3f}".replace("-", "−") for row in read_metrics(run))
    assert f"{first} at step 2, {last} at step 4" in section.paragraphs[0]
    assert "cosine" in section.script
