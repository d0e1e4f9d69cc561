"""Import of REPA's layout, export to it and to safetensors, and listing of samples."""

import json
import os

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from safetensors.numpy import load_file

from repa_pipe.cli import cli
from repa_pipe.config import EncodeConfig
from repa_pipe.errors import ConfigError, SourceError, StoreError
from repa_pipe.pipeline import encode
from repa_pipe.pipeline.store_tools.export import export
from repa_pipe.pipeline.store_tools.import_repa import import_repa
from repa_pipe.stores import open_store
from repa_pipe.stores.layout import latents_group
from repa_pipe.stores.metadata_writer import set_attributes
from repa_pipe.stores.verify import verify_store

COUNT = 20


@pytest.fixture
def repa_folder(tmp_path):
    """Write 20 images of 256 pixels and their moments, as REPA's `dataset_tools.py convert` and `encode` do."""
    root, rng = tmp_path / "repa", np.random.default_rng(0)
    labels = {"images": [], "vae-sd": []}
    for i in range(COUNT):
        image, moments = f"0000{i // 16}/img{i:08d}.png", f"0000{i // 16}/img-mean-std-{i:08d}.npy"
        for folder, name in (("images", image), ("vae-sd", moments)):
            (root / folder / name).parent.mkdir(parents=True, exist_ok=True)
            labels[folder].append([name, i % 3])
        Image.fromarray(rng.integers(0, 255, (256, 256, 3), np.uint8)).save(root / "images" / image, compress_level=0)
        np.save(root / "vae-sd" / moments, rng.standard_normal((8, 32, 32)).astype(np.float32))
    for folder, pairs in labels.items():
        (root / folder / "dataset.json").write_text(json.dumps({"labels": pairs}))
    return root


def read_as_published(root):
    """Return images, moments and labels paired as in the published `CustomDataset`, by sorted relative names."""

    def names(folder, ending):
        found = (os.path.relpath(f"{top}/{name}", folder) for top, _, files in os.walk(folder) for name in files)
        return sorted(name for name in found if name.endswith(ending))

    images, moments = names(root / "images", ".png"), names(root / "vae-sd", ".npy")
    labels = dict(json.loads((root / "vae-sd/dataset.json").read_text())["labels"])
    return (
        np.stack([np.array(Image.open(root / "images" / name)) for name in images]),
        np.stack([np.load(root / "vae-sd" / name) for name in moments]),
        [labels[name] for name in moments],
    )


def test_imported_store_holds_what_the_published_trainer_reads(repa_folder, tmp_path):
    text = import_repa(str(repa_folder), str(tmp_path / "store"), "sd-vae-ft-mse")
    assert "20 images" in text
    _, moments, labels = read_as_published(repa_folder)
    with open_store(tmp_path / "store") as store:
        np.testing.assert_array_equal(
            store.read(["latents/sd-vae-ft-mse"], range(COUNT))["latents/sd-vae-ft-mse/moments"], moments
        )
        assert store.labels.tolist() == labels
        assert store.group("latents/sd-vae-ft-mse").attributes["scale"] == [0.18215] * 4
    assert verify_store(tmp_path / "store").ok


def test_encoder_is_added_to_an_imported_store_which_exports_the_same_files(repa_folder, tmp_path):
    store, out = str(tmp_path / "store"), tmp_path / "again"
    import_repa(str(repa_folder), store, "sd-vae-ft-mse")
    config = EncodeConfig(
        source=str(repa_folder / "images"), store=store, encoder=("efficientnet-lite0",), device="cpu", batch_size=10
    )
    assert not encode.run(config).failed
    export(store, str(out), "repa", ["latents/sd-vae-ft-mse"], None)
    for ours, theirs in zip(read_as_published(out), read_as_published(repa_folder), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    images = json.loads((out / "images/dataset.json").read_text())["labels"]
    assert images[17] == ["00000/img00000017.png", 2]
    assert import_repa(str(out), str(tmp_path / "second"), "sd-vae-ft-mse")


def test_interrupted_import_resumes(repa_folder, tmp_path):
    bad = repa_folder / "vae-sd/00001/img-mean-std-00000018.npy"
    data = bad.read_bytes()
    bad.write_bytes(data[:500])
    with pytest.raises(SourceError, match=r"00000018.npy cannot be read as moments"):
        import_repa(str(repa_folder), str(tmp_path / "store"), "sd-vae-ft-mse")
    assert open_store(tmp_path / "store").group("latents/sd-vae-ft-mse").missing_shards() == [1]
    bad.write_bytes(data)
    import_repa(str(repa_folder), str(tmp_path / "store"), "sd-vae-ft-mse")
    assert verify_store(tmp_path / "store").ok


def change_label(root):
    (root / "images/dataset.json").write_text(
        (root / "images/dataset.json").read_text().replace('00000003.png", 0', '00000003.png", 1')
    )


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda root: (root / "vae-sd/00001/img-mean-std-00000018.npy").unlink(),
            "20 images and 19 .npy files: expected one",
        ),
        (lambda root: (root / "vae-sd/dataset.json").write_text("{}"), "does not have a label for every .npy file"),
        (change_label, "labels in images/ and vae-sd/ differ for 1 of 20 images"),
        (
            lambda root: np.save(root / "vae-sd/00001/img-mean-std-00000018.npy", np.zeros((4, 32, 32))),
            r"expected floats \(8, 32, 32\), found float64 \(4, 32, 32\)",
        ),
        (lambda root: [file.unlink() for file in (root / "vae-sd").rglob("*.npy")], "has no .npy files"),
    ],
)
def test_inconsistent_folders_are_refused(repa_folder, tmp_path, damage, message):
    damage(repa_folder)
    with pytest.raises(SourceError, match=message):
        import_repa(str(repa_folder), str(tmp_path / "store"), "sd-vae-ft-mse")


def write_vae_config(folder, **changes):
    """Write the config of a VAE like SDXL's, without its weights; return the folder as a name of the VAE."""
    folder.mkdir(exist_ok=True)
    values = {"_class_name": "AutoencoderKL", "latent_channels": 4, "block_out_channels": [8, 8, 8, 8]}
    (folder / "config.json").write_text(json.dumps(values | {"scaling_factor": 0.13025} | changes))
    return str(folder)


def test_the_scale_of_imported_moments_is_that_of_the_vaes_config(repa_folder, tmp_path):
    for name, changes, scale, bias in (
        ("sdxl", {}, [0.13025] * 4, [0.0] * 4),
        ("shifted", {"shift_factor": 2.0}, [0.13025] * 4, [-0.2605] * 4),
    ):
        vae = write_vae_config(tmp_path / name, **changes)
        import_repa(str(repa_folder), str(tmp_path / "store"), vae)
        attributes = open_store(tmp_path / "store").group(latents_group(vae)).attributes
        assert (attributes["scale"], attributes["bias"]) == (scale, bias)


def test_moments_of_a_vae_without_a_config_need_a_scale(repa_folder, tmp_path, run_cold):
    options = ["store", "import-repa", str(repa_folder), str(tmp_path / "store"), "--vae", "ours"]
    (refused, message, _), (code, text, _) = run_cold(options, [*options, "--latents-scale", "0.3"])
    assert (refused, code) == (2, 0), text
    assert "unknown VAE 'ours'" in message
    assert "pass --latents-scale" in message
    assert open_store(tmp_path / "store").group("latents/ours").attributes["scale"] == [0.3] * 4


def test_a_scale_that_is_not_that_of_the_config_is_refused(repa_folder, tmp_path):
    vae = write_vae_config(tmp_path / "sdxl")
    with pytest.raises(ConfigError, match=r"--latents-scale is 0.18215, but the config of .*sdxl has 0.13025: omit it"):
        import_repa(str(repa_folder), str(tmp_path / "store"), vae, 0.18215)
    assert import_repa(str(repa_folder), str(tmp_path / "store"), vae, 0.13025)


def test_moments_of_another_shape_than_the_vaes_are_refused(repa_folder, tmp_path):
    vae = write_vae_config(tmp_path / "flux", latent_channels=16)
    with pytest.raises(SourceError, match=r"moments \(32, 32, 32\) of 256 x 256 pixels, found \(8, 32, 32\)"):
        import_repa(str(repa_folder), str(tmp_path / "store"), vae)


def test_moments_that_were_imported_with_another_scale_are_refused(repa_folder, tmp_path):
    vae = write_vae_config(tmp_path / "sdxl")
    import_repa(str(repa_folder), str(tmp_path / "store"), vae)
    set_attributes(tmp_path / "store", latents_group(vae), {"scale": [0.18215] * 4})
    with pytest.raises(StoreError, match=r"was imported with scale \[0.18215, .* the VAE has \[0.13025, .*: delete"):
        import_repa(str(repa_folder), str(tmp_path / "store"), vae)


def test_an_unusual_scale_of_imported_moments_is_reported(repa_folder, tmp_path, caplog):
    import_repa(str(repa_folder), str(tmp_path / "store"), write_vae_config(tmp_path / "vae", scaling_factor=0.01))
    assert "standard deviation of about 1, found 0.0141 over 20 images (scale 0.01)" in caplog.text


def test_imported_moments_that_are_not_finite_are_refused(repa_folder, tmp_path):
    file = repa_folder / "vae-sd/00001/img-mean-std-00000018.npy"
    moments = np.load(file)
    moments[0, 0, 0] = np.nan
    np.save(file, moments)
    with pytest.raises(SourceError, match=r"00000018.npy: moments are NaN or infinite"):
        import_repa(str(repa_folder), str(tmp_path / "store"), "sd-vae-ft-mse")


def test_an_image_without_a_readable_header_is_refused(repa_folder, tmp_path):
    (repa_folder / "images/00000/img00000000.png").write_bytes(b"%PDF-1.7")
    with pytest.raises(SourceError, match=r"img00000000.png: its format is PDF"):
        import_repa(str(repa_folder), str(tmp_path / "store"), "sd-vae-ft-mse")


def test_safetensors_export_holds_the_same_arrays(make_store, tmp_path):
    path, contents = make_store()
    export(str(path), str(tmp_path / "out"), "safetensors", [], None)
    shards = [load_file(file) for file in sorted((tmp_path / "out").glob("*.safetensors"))]
    assert len(shards) == 4
    for name, expected in contents.items():
        np.testing.assert_array_equal(np.concatenate([shard[name] for shard in shards]), expected)
    assert np.concatenate([shard["index"] for shard in shards]).tolist() == list(range(50))
    metadata = json.loads((tmp_path / "out/store.json").read_text())
    assert metadata["groups"]["features/enc"]["codec"]["name"] == "float16"
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "out").glob("*.safetensors")}
    export(str(path), str(tmp_path / "out"), "safetensors", [], None)
    assert before == {file: file.stat().st_mtime_ns for file in before}


def test_export_to_repa_layout_requires_one_vae(make_store, tmp_path):
    path, _ = make_store()
    with pytest.raises(
        StoreError, match=r"holds the moments of one VAE: expected one group of latents in .*, found none"
    ):
        export(str(path), str(tmp_path / "out"), "repa", ["features/enc"], None)


def test_ls_lists_samples(helpers, make_store):
    from repa_pipe.stores.manifest import Quarantined

    path, _ = make_store(quarantined=(Quarantined(index=17, key="0017.png", reason="truncated"),))
    lines = CliRunner().invoke(cli, ["store", "ls", str(path), "--limit", "3"]).output.splitlines()
    assert lines == [
        "0\tcat\t100\t0000.png",
        "1\tdog\t101\t0001.png",
        "2\towl\t102\t0002.png",
        "… and 47 more; --limit 0 lists all",
    ]
    lines = CliRunner().invoke(cli, ["store", "ls", str(path), "--class", "dog", "--limit", "0"]).output.splitlines()
    assert len(lines) == 17
    assert (
        CliRunner().invoke(cli, ["store", "ls", str(path), "--quarantined"]).output
        == "17\towl\t117\t0017.png\ttruncated\n"
    )
    assert isinstance(CliRunner().invoke(cli, ["store", "ls", str(path), "--class", "cow"]).exception, StoreError)


def files_in(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("layout", ["repa", "safetensors"])
def test_a_folder_never_holds_the_files_of_two_exports(repa_folder, tmp_path, layout):
    larger, smaller, out = str(tmp_path / "larger"), str(tmp_path / "smaller"), tmp_path / "out"
    import_repa(str(repa_folder), larger, "sd-vae-ft-mse")
    fewer = tmp_path / "fewer"
    export(larger, str(fewer), "repa", [], None)
    for path in [*fewer.rglob("*00000019.*")]:
        path.unlink()
    import_repa(str(fewer), smaller, "sd-vae-ft-mse")
    export(larger, str(out), layout, [], None)
    before = files_in(out)
    with pytest.raises(StoreError, match=r"out holds another export \(different: images, num_samples, samples\)"):
        export(smaller, str(out), layout, [], None)
    assert files_in(out) == before
    some = next(path for path in before if path.suffix in {".npy", ".safetensors"})
    some.unlink()
    export(larger, str(out), layout, [], None)
    assert files_in(out) == before


def test_an_export_that_failed_at_once_leaves_the_folder_to_others(make_store, tmp_path):
    path, _ = make_store()
    out = tmp_path / "out"
    with pytest.raises(SourceError, match="does not exist"):
        export(str(path), str(out), "repa", ["latents/tiny"], str(tmp_path / "nowhere"))
    export(str(path), str(out), "safetensors", [], None)
    assert (out / "00000.safetensors").exists()


def test_an_export_is_not_mixed_with_files_that_it_did_not_write(make_store, tmp_path):
    path, _ = make_store()
    out = tmp_path / "out"
    out.mkdir()
    export(str(path), str(out), "safetensors", [], None)
    (out / "export.json").unlink()  # as of an earlier version
    with pytest.raises(StoreError, match=r"out is not an empty folder or an export with export.json \(found 00000"):
        export(str(path), str(out), "safetensors", [], None)
    with pytest.raises(StoreError, match="found a file"):
        export(str(path), str(path / "samples.parquet"), "safetensors", [], None)
