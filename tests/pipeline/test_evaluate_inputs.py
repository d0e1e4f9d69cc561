"""Which images and statistics metrics are computed from: as ADM's evaluator does, or refused with the reason."""

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from repa_pipe.config import EvaluateConfig
from repa_pipe.errors import ConfigError, SourceError
from repa_pipe.metrics import VALIDATION_FD, Features, frechet_distance, kernel_distance, precision_recall
from repa_pipe.pipeline import evaluate
from repa_pipe.pipeline.artifacts.images import open_images, write_npz
from repa_pipe.pipeline.evaluation import comparison

COUNT = 40


class Colors:
    """A detector with the outputs of Inception: the mean color as features, spatial features, and probabilities."""

    width, rule, library = 3, "mean over pixels", "none"

    def __init__(self, name):
        self.name, self.fingerprint = name, {"name": name}

    def features(self, images):
        colors = images.float().mean((2, 3))
        return (
            Features(colors, colors[:, :2] + 1, colors.softmax(1))
            if self.name == "inception"
            else Features(colors, None, None)
        )


@pytest.fixture(autouse=True)
def _detector(monkeypatch, tmp_path):
    monkeypatch.setattr(comparison, "load_detector", lambda name, *_: Colors(name))
    monkeypatch.chdir(tmp_path)


def images_of(seed, count=COUNT, side=8):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (count, 1, 1, 3), dtype=np.uint8) + np.zeros((1, side, side, 1), np.uint8)


def npz_of(path, images, **statistics):
    if statistics:
        np.savez(path, arr_0=images, **statistics)
    else:
        write_npz(Path(path), [images], np.zeros(len(images), np.int64), images.shape[1])
    return str(path)


def statistics_of(images):
    """Return what ADM's reference files hold, but of other images than those next to them."""
    features = Colors("inception").features(torch.from_numpy(images).permute(0, 3, 1, 2))
    pooled, spatial = features.pooled.double().numpy(), features.spatial.double().numpy()
    return {
        "mu": pooled.mean(0),
        "sigma": np.cov(pooled, rowvar=False),
        "mu_s": spatial.mean(0),
        "sigma_s": np.cov(spatial, rowvar=False),
    }


def metrics_of(samples, reference, **options):
    return evaluate.run(EvaluateConfig(samples=samples, reference=reference, device="cpu", **options))


def test_a_reference_of_adm_gives_its_statistics_to_distances_and_its_images_to_the_rest():
    own, shown, all_images = images_of(0), images_of(1, 30), images_of(2, 500)
    statistics = statistics_of(all_images)
    samples, reference = npz_of("a.npz", own), npz_of("adm.npz", shown, **statistics)
    result = metrics_of(samples, reference)
    mine = statistics_of(own)
    expected = {
        "fid": frechet_distance(mine["mu"], mine["sigma"], statistics["mu"], statistics["sigma"]),
        "sfid": frechet_distance(mine["mu_s"], mine["sigma_s"], statistics["mu_s"], statistics["sigma_s"]),
    }
    colors = [images[:, 0, 0].astype(np.float32) for images in (shown, own)]
    expected["precision"], expected["recall"] = precision_recall(*colors)
    expected["kid"] = kernel_distance(*colors)
    assert {name: result.metrics[name] for name in expected} == pytest.approx(expected, rel=1e-6)
    assert result.num_reference is None
    inputs = {"path": str(Path("adm.npz").resolve()), "statistics": "file", "statistics_images": None, "images": 30}
    assert json.loads(Path(result.out).read_text())["detectors"]["inception"]["reference"] == inputs
    counted = metrics_of(samples, npz_of("counted.npz", shown, **statistics, count=500))
    assert (counted.metrics, counted.num_reference) == (result.metrics, 500)


def test_the_command_prints_what_was_compared_with_what(run_cli):
    samples, shown = npz_of("a.npz", images_of(0)), images_of(1, 30)
    statistics = statistics_of(images_of(2, 500))
    np.savez("statistics.npz", **statistics)
    for reference, text in {
        npz_of(
            "adm.npz", shown, **statistics
        ): "40 images compared with reference statistics of an unrecorded number of "
        "images (FID, sFID) and 30 reference images (other metrics); saved to",
        npz_of(
            "counted.npz", shown, **statistics, count=500
        ): "with reference statistics of 500 images (FID, sFID) and",
        "statistics.npz": "40 images compared with reference statistics of an unrecorded number of images; saved to",
        npz_of("images.npz", shown): "40 images compared with 30 reference images; saved to",
    }.items():
        code, out, errors = run_cli("evaluate", samples, "--reference", reference, "--device", "cpu")
        assert code == 0, errors
        assert text in out


def test_other_detectors_use_the_images_of_a_reference_with_statistics():
    samples, shown = npz_of("a.npz", images_of(0)), images_of(1, 30)
    reference = npz_of("adm.npz", shown, **statistics_of(images_of(2, 500)))
    detectors = ("efficientnet-lite0", "inception")
    result = metrics_of(samples, reference, detector=detectors)
    alone = metrics_of(samples, npz_of("images.npz", shown), detector=detectors)
    assert result.metrics["fd_efficientnet-lite0"] == alone.metrics["fd_efficientnet-lite0"]
    assert result.metrics["fid"] != alone.metrics["fid"]
    inputs = result.detectors["efficientnet-lite0"]["reference"]
    assert inputs.items() >= {"statistics": "images", "statistics_images": 30, "images": 30}.items()


def test_other_detectors_refuse_a_reference_of_statistics_alone(run_cli):
    samples = npz_of("a.npz", images_of(0))
    np.savez("statistics.npz", **statistics_of(images_of(1)))
    metrics_of(samples, "statistics.npz")
    code, _, errors = run_cli(
        "evaluate", samples, "--reference", "statistics.npz", "--detector", "efficientnet-lite0", "--device", "cpu"
    )
    assert code == 2
    assert (
        "statistics.npz holds statistics of Inception's features alone, and efficientnet-lite0 needs images" in errors
    )


def test_statistics_of_samples_are_not_used_which_is_stated():
    samples = npz_of("a.npz", images_of(0), **statistics_of(images_of(1)))
    reference = npz_of("reference.npz", images_of(2))
    result = metrics_of(samples, reference)
    assert result.metrics == metrics_of(npz_of("b.npz", images_of(0)), reference).metrics
    assert "statistics in a.npz are not used" in result.warnings[0]


def test_a_reference_without_images_and_statistics_is_refused_before_features_are_computed(monkeypatch):
    monkeypatch.setattr(comparison, "load_detector", lambda *_: 1 / 0)
    np.savez("labels.npz", labels=np.zeros(3), mu=np.zeros(3))
    with pytest.raises(ConfigError, match=r"labels.npz holds labels, mu, expected images \(arr_0\) or statistics"):
        metrics_of(npz_of("a.npz", images_of(0)), "labels.npz")


def test_statistics_without_spatial_ones_give_no_sfid_which_is_stated():
    statistics = statistics_of(images_of(1))
    np.savez("ttur.npz", mu=statistics["mu"], sigma=statistics["sigma"])
    result = metrics_of(npz_of("a.npz", images_of(0)), "ttur.npz")
    assert set(result.metrics) == {"fid", "inception_score"}
    assert "ttur.npz holds no mu_s and sigma_s: sFID is not computed" in result.warnings


def test_metrics_of_a_version_that_took_the_images_are_computed_again():
    samples = npz_of("a.npz", images_of(0))
    reference = npz_of("adm.npz", images_of(1), **statistics_of(images_of(2)))
    result = metrics_of(samples, reference)
    record = json.loads(Path(result.out).read_text())
    del record["detectors"]["inception"]["reference"]
    Path(result.out).write_text(json.dumps(record | {"metrics": {"fid": -1.0}}))
    assert metrics_of(samples, reference).metrics == result.metrics


def test_a_relative_reference_in_another_folder_is_another_reference(tmp_path, monkeypatch):
    samples = str(Path(npz_of("a.npz", images_of(0))).resolve())
    results = []
    for seed, folder in enumerate(("one", "two", "one")):
        (tmp_path / folder).mkdir(exist_ok=True)
        monkeypatch.chdir(tmp_path / folder)
        if not Path("reference.npz").exists():
            npz_of("reference.npz", images_of(seed + 1))
        results.append(metrics_of(samples, "reference.npz"))
    assert results[0] == results[2]
    assert results[1].metrics != results[0].metrics
    assert results[1].out != results[0].out


def save_folder(name, images):
    for number, image in enumerate(images):
        path = Path(name, "class", f"{number:03d}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    return name


@pytest.mark.parametrize("side", ["samples", "reference"])
def test_images_of_several_sizes_are_refused_unless_a_size_is_requested(side, run_cli):
    mixed = save_folder("mixed", [*images_of(0), *images_of(1, 1, 16)])
    uniform = save_folder("uniform", images_of(2))
    paths = [mixed, uniform] if side == "samples" else [uniform, mixed]
    command = ["evaluate", paths[0], "--reference", paths[1], "--device", "cpu"]
    code, _, errors = run_cli(*command)
    assert code == 2
    assert "class/040.png cannot be evaluated: it has 16 x 16 pixels, the first image 8 x 8: pass --resize 8" in errors
    assert run_cli(*command, "--resize", 8)[0] == 0
    code, _, errors = run_cli(*command)  # also with the cached features of the resized reference
    assert (code, "pass --resize 8" in errors) == (2, True)


def test_images_that_are_not_square_need_a_size():
    folder = save_folder("wide", images_of(0)[:, :6])
    with pytest.raises(SourceError, match=r"class/000.png .*: it has 8 x 6 pixels, expected a square: pass --resize 6"):
        open_images(folder, 8)
    Path("wide/class/000.png").write_bytes(b"text")
    with pytest.raises(SourceError, match=r"class/000.png cannot be evaluated: not an image"):
        open_images(folder, 8)
    Path("wide/class/000.png").unlink()
    images = open_images(folder, 8, resize=4)
    assert (images.side, next(iter(images.blocks)).shape) == (4, (8, 4, 4, 3))


def test_a_requested_size_applies_to_every_kind_of_images():
    folder, npz = save_folder("folder", images_of(0)), npz_of("a.npz", images_of(0))
    found = [np.concatenate(list(open_images(path, 8, resize=4).blocks)) for path in (folder, npz)]
    np.testing.assert_array_equal(*found)
    assert found[0].shape == (COUNT, 4, 4, 3)
    with pytest.raises(ConfigError, match=r"the samples are 8 x 8, the reference b\.npz is 16 x 16: .* --resize"):
        metrics_of(npz, npz_of("b.npz", images_of(1, side=16)))
    assert metrics_of(npz, "b.npz", resize=4).num_reference == COUNT


def test_images_with_transparent_pixels_or_16_bits_are_refused_by_name():
    reference = npz_of("reference.npz", images_of(0))
    folder = Path(save_folder("images", images_of(1)), "class")
    for made, reason in (
        (Image.new("RGBA", (8, 8), (1, 2, 3, 100)), "transparent pixels"),
        (Image.fromarray(np.zeros((8, 8), np.uint16)), "16 bits per channel"),
    ):
        made.save(folder / "007.png")
        with pytest.raises(SourceError, match=f"class/007.png cannot be evaluated: .*{reason}"):
            metrics_of("images", reference)


@pytest.mark.parametrize(("samples", "reference"), [(3, 40), (40, 3), (0, 40), (40, 0), (1, 1)])
def test_fewer_images_than_a_metric_needs_are_refused(samples, reference):
    paths = npz_of("a.npz", images_of(0, samples)), npz_of("b.npz", images_of(1, reference))
    with pytest.raises(ConfigError, match=r"\.npz: (expected at least 4 images|arr_0 holds no images)"):
        metrics_of(*paths)


def test_four_images_have_all_metrics_with_a_warning():
    result = metrics_of(npz_of("a.npz", images_of(0, 4)), npz_of("b.npz", images_of(1, 4)))
    assert {"fid", "sfid", "inception_score", "kid", "mind_inception", "precision", "recall"} == set(result.metrics)
    assert all(np.isfinite(value) for value in result.metrics.values())
    assert "4 images for 3 features" in result.warnings[0]


def test_equal_images_have_the_metrics_of_a_point():
    point, others = np.full((COUNT, 8, 8, 3), 200, np.uint8), images_of(0)
    samples, reference = npz_of("point.npz", point), npz_of("others.npz", others)
    result = metrics_of(samples, reference).metrics
    colors = others[:, 0, 0].astype(np.float64)
    distance = ((colors.mean(0) - 200) ** 2).sum() + np.trace(np.cov(colors, rowvar=False))
    assert result["fid"] == pytest.approx(distance)
    assert (result["inception_score"], result["recall"]) == (pytest.approx(1), 0)
    same = metrics_of(samples, samples).metrics
    assert {name: same[name] for name in ("fid", "precision", "recall")} == {"fid": 0, "precision": 1, "recall": 1}


@pytest.mark.parametrize("damage", ["cut", "bits"])
def test_a_damaged_npz_is_refused_in_one_line(damage, run_cli):
    samples, reference = Path(npz_of("a.npz", images_of(0))), npz_of("b.npz", images_of(1))
    data = bytearray(samples.read_bytes())
    if damage == "bits":
        data[len(data) // 2] ^= 1
        samples.write_bytes(data)
    else:  # the header promises more images than there are
        with zipfile.ZipFile(samples, "w") as archive:
            header = {"descr": "|u1", "fortran_order": False, "shape": (50, 8, 8, 3)}
            with archive.open("arr_0.npy", "w") as member:
                np.lib.format.write_array_header_1_0(member, header)
                member.write(images_of(0).tobytes())
    code, _, errors = run_cli("evaluate", str(samples), "--reference", reference, "--device", "cpu")
    assert code == 2
    assert "error: a.npz cannot be read as an .npz" in errors
    assert "Traceback" not in errors


@pytest.mark.parametrize("fraction", [0.0, 0.5, 1.0])
def test_a_flipped_byte_of_generated_images_is_noticed(fraction):
    path = Path(npz_of("images.npz", images_of(0)))
    data = bytearray(path.read_bytes())
    first = data.index(images_of(0).tobytes())
    data[first + int(fraction * (images_of(0).nbytes - 1))] ^= 1
    path.write_bytes(data)
    with pytest.raises(ConfigError, match=r"images.npz cannot be read as an .npz \(Bad CRC-32"):
        list(open_images(str(path), 7).blocks)


def test_intervals_are_optional_and_printed(run_cli):
    samples, reference = npz_of("a.npz", images_of(0)), npz_of("b.npz", images_of(1))
    command = ["evaluate", samples, "--reference", reference, "--device", "cpu"]
    code, plain, errors = run_cli(*command)
    assert (code, "±" in plain) == (0, False), errors
    code, out, errors = run_cli(*command, "--intervals")
    assert code == 0, errors
    record = next(json.loads(path.read_text()) for path in Path().glob("a.*.metrics.json"))
    assert record["metrics"] == json.loads(Path("a.metrics.json").read_text())["metrics"]
    assert record["margins"].keys() == record["metrics"].keys() - {"sfid"}  # spatial features are not kept
    assert f"{record['metrics']['fid']:.4f} ± {record['margins']['fid']:.4f}" in out
    assert "inception: none, mean over pixels" in out
    precision = record["metrics"]["precision"]
    expected = 1.96 * (precision * (1 - precision) / (COUNT - 1)) ** 0.5
    assert record["margins"]["precision"] == pytest.approx(expected, rel=1e-3)


def test_fdr_of_six_detectors_is_their_mean_for_images_of_256_pixels():
    samples, reference = npz_of("a.npz", images_of(0, side=256)), npz_of("b.npz", images_of(1, side=256))
    six = tuple(VALIDATION_FD)
    result = metrics_of(samples, reference, detector=six, intervals=True)
    distances = {name: result.metrics["fid" if name == "inception" else f"fd_{name}"] for name in six}
    ratios = {name: distances[name] / VALIDATION_FD[name] for name in six}
    assert {name: result.metrics[f"fdr_{name}"] for name in six} == pytest.approx(ratios)
    assert result.metrics["fdr6"] == pytest.approx(sum(ratios.values()) / 6)
    margin = result.margins["fdr6"]  # all detectors here are the same, so their terms are correlated
    assert margin == pytest.approx(result.margins["fid"] * np.mean([1 / each for each in VALIDATION_FD.values()]))
    assert "compare it with published values only for 50,000 images" in result.warnings[-1]
    five = metrics_of(samples, reference, detector=six[:-1])
    assert "fdr6" not in five.metrics
    assert "fdr_mae-l-224" in five.metrics
    assert not any(name.startswith("fdr") for name in metrics_of(samples, reference).metrics)
    small = metrics_of(npz_of("c.npz", images_of(0)), npz_of("d.npz", images_of(1)), detector=six)
    assert not any(name.startswith("fdr") for name in small.metrics)
    assert "FDr is not computed: it is defined for images of 256 pixels, found 8" in small.warnings


def test_metrics_of_a_version_without_rules_and_margins_are_read(run_cli):
    samples, reference = npz_of("a.npz", images_of(0)), npz_of("b.npz", images_of(1))
    result = metrics_of(samples, reference)
    record = json.loads(Path(result.out).read_text())
    del record["margins"], record["config"]["intervals"]
    for name in ("rule", "library"):
        del record["detectors"]["inception"][name]
    Path(result.out).write_text(json.dumps(record | {"metrics": {"fid": 1.25}}))
    assert metrics_of(samples, reference).metrics == {"fid": 1.25}  # it is not computed again
    code, out, _ = run_cli("evaluate", samples, "--reference", reference, "--device", "cpu")
    assert (code, "fid  1.2500\n" in out) == (0, True)
