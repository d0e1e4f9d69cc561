"""Import of latents that other programs have computed: stored byte for byte, in the order of the images."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file, save_file

from repa_pipe.config import EncodeConfig, TrainConfig
from repa_pipe.errors import ConfigError, SourceError, StoreError
from repa_pipe.pipeline import encode, train
from repa_pipe.pipeline.store_tools import import_latents as module
from repa_pipe.pipeline.store_tools.export import export
from repa_pipe.pipeline.store_tools.import_latents import ImportOptions, import_latents
from repa_pipe.pipeline.store_tools.latent_folders.folder import FolderOptions
from repa_pipe.sources.skipped import recorded_skipped
from repa_pipe.stores import open_store
from repa_pipe.stores.verify import verify_store

PUBLISHED = Path(__file__).parents[2] / "reference" / "lightningdit_latents"
KEYS = ("normal[^_]*", "normal[^_]*_flip", "labels")  # of the file of figures
VA = {"vae": "vavae", "resolution": 64}
STATED = {"vae": "ours", "resolution": 32, "latents_scale": 0.5}


def options(folder=None, **settings):
    return ImportOptions(folder=FolderOptions(**folder or {}), **settings)


@pytest.fixture
def published(tmp_path):
    return Path(shutil.copytree(PUBLISHED, tmp_path / "published"))


def read(store, name, array="latents"):
    with open_store(store) as opened:
        group = opened.group(f"latents/{name}")
        values = opened.read([f"{group.path}/{array}"], np.arange(len(opened)))[f"{group.path}/{array}"]
        return values, opened.labels, group.attributes


def test_lightningdits_shards_become_what_its_own_reader_returns(published, tmp_path):
    text = import_latents(str(published), str(tmp_path / "store"), options(**VA))
    assert "13 images, latents/vavae [32, 4, 4] from LightningDiT's layout, with flips" in text
    with np.load(PUBLISHED / "expected.npz") as expected:
        keep = ~expected["is_padding_duplicate"]
        order = np.argsort(expected["image_index"][keep])
        names = [next(name for name in expected.files if re.fullmatch(pattern, name)) for pattern in KEYS]
        plain, flipped, wanted = (expected[name][keep][order] for name in names)
    for array, read_by_lightningdit in (("latents", plain), ("latents_flipped", flipped)):
        values, labels, attributes = read(tmp_path / "store", "vavae", array)
        scale, bias = (np.array(attributes[key], np.float32).reshape(-1, 1, 1) for key in ("scale", "bias"))
        np.testing.assert_allclose(values * scale + bias, read_by_lightningdit, rtol=1e-5, atol=2e-6)
    assert labels.tolist() == wanted.tolist()
    files = sorted(published.glob("*.safetensors"))
    first, second = (np.concatenate([load_file(path)["latents"] for path in files[i : i + 2]]) for i in (0, 2))
    values, _, _ = read(tmp_path / "store", "vavae")
    np.testing.assert_array_equal(values, np.stack([first, second], axis=1).reshape(14, 32, 4, 4)[:13])
    assert verify_store(tmp_path / "store").ok
    with open_store(tmp_path / "store") as opened:
        assert recorded_skipped(opened.manifest.source) == ()  # not the same as unknown


def test_the_multiplier_follows_the_normalization(published, tmp_path):
    import_latents(str(published), str(tmp_path / "a"), options(**VA, latents_scale=0.5))
    (published / "latents_stats.pt").unlink()
    import_latents(str(published), str(tmp_path / "b"), options(**VA, latents_scale=0.18215))
    statistics = torch.load(PUBLISHED / "latents_stats.pt")
    _, _, attributes = read(tmp_path / "a", "vavae")
    np.testing.assert_allclose(attributes["scale"], 0.5 / statistics["std"].flatten())
    assert read(tmp_path / "b", "vavae")[2]["scale"] == [0.18215] * 32
    with pytest.raises(ConfigError, match="pass --latents-scale, or --latents-stats"):
        import_latents(str(published), str(tmp_path / "c"), options(**VA))


def test_an_interrupted_import_resumes(published, tmp_path, monkeypatch):
    whole, store = str(tmp_path / "whole"), str(tmp_path / "store")
    import_latents(str(published), whole, options(**VA))
    writer, calls = module.ShardWriter, []

    def failing(*arguments):
        calls.append(arguments)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return writer(*arguments)

    monkeypatch.setattr("repa_pipe.stores.layout.MIN_SHARD_SIZE", 2)
    monkeypatch.setattr(module, "ShardWriter", failing)
    create = module.open_or_create_store
    monkeypatch.setattr(module, "open_or_create_store", lambda *a, **k: create(*a, **k | {"shard_size": 4}))
    with pytest.raises(KeyboardInterrupt):
        import_latents(str(published), store, options(**VA))
    import_latents(str(published), store, options(**VA))
    np.testing.assert_array_equal(read(store, "vavae")[0], read(whole, "vavae")[0])
    assert len(calls) == 5  # four shards, one of them twice


def test_padding_is_told_from_images_or_the_number_of_images_is_asked_for(published, tmp_path):
    for path in published.glob("*.safetensors"):
        tensors = load_file(path)
        save_file(tensors | {"labels": np.zeros_like(tensors["labels"])}, path)
    with pytest.raises(SourceError, match="pass --images, the number of images that were encoded"):
        import_latents(str(published), str(tmp_path / "store"), options(**VA))
    assert "14 images" in import_latents(str(published), str(tmp_path / "a"), options({"images": 14}, **VA))
    assert "13 images" in import_latents(str(published), str(tmp_path / "b"), options({"images": 13}, **VA))
    with pytest.raises(SourceError, match="2 ranks with 14 rows in all hold 13 to 14 images, --images is 12"):
        import_latents(str(published), str(tmp_path / "c"), options({"images": 12}, **VA))


def damage(published, kind):
    first, *_, last = sorted(published.glob("*.safetensors"))
    tensors = load_file(last)
    if kind == "truncated":
        last.write_bytes(last.read_bytes()[:-40])
    elif kind == "missing":
        last.unlink()
    elif kind == "rank":
        for path in published.glob("latents_rank00*"):
            path.unlink()
    elif kind == "labels":
        tensors["labels"] = tensors["labels"][::-1].copy()
        save_file(tensors, last)
    elif kind == "nan":
        tensors["latents"][0, 0, 0, 0] = np.nan
        save_file(tensors, last)
    elif kind == "shape":
        save_file(tensors | {"latents": tensors["latents"][:, :16].copy()}, last)
    elif kind == "not square":
        for path in published.glob("*.safetensors"):
            each = load_file(path)
            save_file({n: v[..., :2].copy() if v.ndim == 4 else v for n, v in each.items()}, path)
    else:
        save_file({"latents": tensors["latents"]}, first)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("truncated", "is not a complete safetensors file"),
        ("missing", r"expected as many rows of every rank, found \[4, 7\]"),
        ("rank", r"expected files of ranks 0 to 1, found ranks \[1\]"),
        ("labels", "in class order"),
        ("nan", "rank01_shard001.*latents are NaN or infinite"),
        (
            "shape",
            r"rank01_shard001.*expected float32 \[32, 4, 4\] per image, as in the first one, found .* \[16, 4, 4\]",
        ),
        ("not square", r"expected latents \[channels, h, h\] per image, found \[32, 4, 2\]"),
        ("tensors", "expected latents, latents_flip and labels, found latents"),
    ],
)
def test_a_damaged_folder_of_lightningdit_is_refused(published, tmp_path, kind, message):
    damage(published, kind)
    with pytest.raises((SourceError, Exception), match=message) as error:
        import_latents(str(published), str(tmp_path / "store"), options(**VA))
    assert "\n" not in str(error.value)
    assert type(error.value).__module__ == "repa_pipe.errors"


def test_what_is_exported_to_lightningdits_layout_is_imported_again(published, tmp_path):
    import_latents(str(published), str(tmp_path / "store"), options(**VA))
    export(str(tmp_path / "store"), str(tmp_path / "out"), "lightningdit", [], None)
    import_latents(str(tmp_path / "out"), str(tmp_path / "again"), options(**VA))
    for array in ("latents", "latents_flipped"):
        first, second = (read(tmp_path / name, "vavae", array) for name in ("store", "again"))
        np.testing.assert_array_equal(first[0], second[0])
        assert first[1].tolist() == second[1].tolist()
        np.testing.assert_allclose(first[2]["scale"], second[2]["scale"], rtol=1e-6)


@pytest.fixture
def arrays():
    rng = np.random.default_rng(0)
    return rng.standard_normal((9, 4, 4, 4)).astype(np.float32), np.repeat(np.arange(3), 3)


def write_npy(folder, values, labels, by_class):
    names = [f"{f'class{label}' if by_class else '00000'}/{row:08d}.npy" for row, label in enumerate(labels)]
    for name, value in zip(names, values, strict=True):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        np.save(folder / name, value)
    if not by_class:
        pairs = [[name, int(label)] for name, label in zip(names, labels, strict=True)]
        (folder / "dataset.json").write_text(json.dumps({"labels": pairs[::-1]}))


@pytest.mark.parametrize("by_class", [True, False], ids=["folders of classes", "dataset.json"])
def test_npy_files(arrays, tmp_path, by_class):
    values, labels = arrays
    write_npy(tmp_path / "npy", values, labels, by_class)
    import_latents(str(tmp_path / "npy"), str(tmp_path / "store"), options(**STATED))
    found, stored, attributes = read(tmp_path / "store", "ours")
    np.testing.assert_array_equal(found, values)
    assert stored.tolist() == labels.tolist()
    assert attributes["scale"] == [0.5] * 4
    with open_store(tmp_path / "store") as store:
        assert store.manifest.class_names == (("class0", "class1", "class2") if by_class else ("0", "1", "2"))


def test_repa_es_npy_files_are_moments_with_statistics(arrays, tmp_path):
    values, labels = arrays
    folder = tmp_path / "npy"
    names = [f"00000/img-mean-std-{row:08d}.npy" for row in range(9)]
    for name, value in zip(names, values, strict=True):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        np.save(folder / name, np.abs(value))
    pairs = [[name, int(label)] for name, label in zip(names, labels, strict=True)]
    (folder / "dataset.json").write_text(json.dumps({"labels": pairs}))
    scale, bias = torch.tensor([2.0, 4.0]).reshape(1, 2, 1, 1), torch.tensor([0.5, -1.0]).reshape(1, 2, 1, 1)
    torch.save({"latents_scale": scale, "latents_bias": bias}, folder / "VAE-latents-stats.pt")
    import_latents(str(folder), str(tmp_path / "store"), options(vae="tuned", resolution=32))
    found, _, attributes = read(tmp_path / "store", "tuned", "moments")
    np.testing.assert_array_equal(found, np.abs(values))
    assert (attributes["scale"], attributes["bias"]) == ([2.0, 4.0], [-1.0, 4.0])


def test_repa_es_hdf5_file(arrays, tmp_path):
    h5py = pytest.importorskip("h5py")
    values, labels = arrays
    (tmp_path / "h5").mkdir()
    names = [f"00000/img-mean-std-{row:08d}.npy" for row in range(9)]
    with h5py.File(tmp_path / "h5" / "vae.h5", "w") as file:
        for name, value in zip(names, values, strict=True):
            file[name] = value
        text = json.dumps({"labels": [[name, int(label)] for name, label in zip(names, labels, strict=True)]})
        file["dataset.json"] = np.frombuffer(text.encode(), np.uint8)
    with h5py.File(tmp_path / "h5" / "images.h5", "w"):
        pass
    import_latents(str(tmp_path / "h5"), str(tmp_path / "store"), options(**STATED))
    found, stored, _ = read(tmp_path / "store", "ours", "moments")
    np.testing.assert_array_equal(found, values)
    assert stored.tolist() == labels.tolist()
    (tmp_path / "h5" / "vae.h5").write_bytes(b"no hdf5")
    with pytest.raises(SourceError, match=r"vae\.h5 cannot be read"):
        import_latents(str(tmp_path / "h5"), str(tmp_path / "again"), options(**STATED))


def test_npz_files_by_key(arrays, tmp_path):
    values, labels = arrays
    (tmp_path / "npz").mkdir()
    for number, rows in enumerate((slice(0, 4), slice(4, 8), slice(8, 9))):
        content = {"z": values[rows], "mirrored": values[rows, ..., ::-1], "y": labels[rows]}
        np.savez(tmp_path / "npz" / f"{number}.npz", **content)
    keys = {"latents_key": "z", "flipped_key": "mirrored", "label_key": "y"}
    import_latents(str(tmp_path / "npz"), str(tmp_path / "store"), options(keys, **STATED))
    for array, expected in (("latents", values), ("latents_flipped", values[..., ::-1])):
        found, stored, _ = read(tmp_path / "store", "ours", array)
        np.testing.assert_array_equal(found, expected)
    assert stored.tolist() == labels.tolist()
    with pytest.raises(SourceError, match=r"holds mirrored, y, z: pass --latents-key"):
        import_latents(str(tmp_path / "npz"), str(tmp_path / "b"), options(**STATED))
    with pytest.raises(SourceError, match="expected an array x, found mirrored, y, z"):
        import_latents(str(tmp_path / "npz"), str(tmp_path / "b"), options({"latents_key": "x"}, **STATED))


@pytest.mark.parametrize("kind", ["parquet lists", "parquet fixed", "parquet bytes", "arrow"])
def test_columns_of_datasets(arrays, tmp_path, kind):
    values, labels = arrays
    folder = tmp_path / "data"
    folder.mkdir()
    keys = {"latents_key": "z", "label_key": "y"}
    if kind == "parquet bytes":
        values = values.astype(np.float16)
        column = pa.array([value.tobytes() for value in values])
        keys |= {"shape": (4, 4, 4), "dtype": "float16"}
    elif kind == "parquet fixed":
        flat = pa.array(values.reshape(-1))
        for size in (4, 4, 4):
            flat = pa.FixedSizeListArray.from_arrays(flat, size)
        column = flat
    else:
        nested = pa.list_(pa.list_(pa.list_(pa.float32())))
        column = pa.array(values.tolist(), nested)
    table = pa.table({"z": column, "y": labels})
    if kind == "arrow":
        with (
            pa.OSFile(str(folder / "data-00000-of-00001.arrow"), "wb") as sink,
            pa.ipc.new_stream(sink, table.schema) as writer,
        ):
            writer.write_table(table, max_chunksize=4)
        (folder / "state.json").write_text(
            json.dumps({"_data_files": [{"filename": "data-00000-of-00001.arrow"}], "_split": None})
        )
    else:
        pq.write_table(table.slice(0, 5), folder / "a.parquet", row_group_size=2)
        pq.write_table(table.slice(5), folder / "b.parquet")
    import_latents(str(folder), str(tmp_path / "store"), options(keys, **STATED))
    found, stored, _ = read(tmp_path / "store", "ours")
    np.testing.assert_array_equal(found, values)
    assert stored.tolist() == labels.tolist()
    with pytest.raises(SourceError, match="has no column x: expected one of z, y"):
        import_latents(str(folder), str(tmp_path / "b"), options(keys | {"latents_key": "x"}, **STATED))
    with pytest.raises(SourceError, match="has the columns z, y: pass --label-key"):
        import_latents(str(folder), str(tmp_path / "b"), options({"latents_key": "z"}, **STATED))


def test_ragged_lists_are_refused(tmp_path):
    (tmp_path / "data").mkdir()
    rows = [[[[1.0, 2.0, 3.0]]], [[[1.0, 2.0, 3.0, 4.0, 5.0]]]]
    pq.write_table(pa.table({"z": rows, "y": [0, 1]}), tmp_path / "data" / "a.parquet")
    keys = {"latents_key": "z", "label_key": "y"}
    with pytest.raises(SourceError, match=r"rows have different sizes|expected latents"):
        import_latents(str(tmp_path / "data"), str(tmp_path / "store"), options(keys, **STATED))


def test_images_give_keys_classes_and_encoders(arrays, tmp_path):
    values, labels = arrays
    write_npy(tmp_path / "npy", values, labels, by_class=True)
    rng = np.random.default_rng(1)
    for row, label in enumerate(labels):
        path = tmp_path / "images" / f"name{label}" / f"{row}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8)).save(path)
    store = str(tmp_path / "store")
    import_latents(str(tmp_path / "npy"), store, options(**STATED, data_dir=str(tmp_path / "images")))
    with open_store(store) as opened:
        assert opened.manifest.class_names == ("name0", "name1", "name2")
        assert opened.samples["key"][0].as_py() == "name0/0.png"
    settings = {"resolution": 32, "device": "cpu", "vae": "ours", "encoder": ("efficientnet-lite0",)}
    encode.run(EncodeConfig(source=str(tmp_path / "images"), store=store, **settings))
    run = {"store": store, "output_dir": str(tmp_path / "exps"), "model": "SiT-T/2", "batch_size": 4}
    train.run(TrainConfig(**run, max_train_steps=1, mixed_precision="fp32", report_to="none"))
    (tmp_path / "images" / "name0" / "0.png").rename(tmp_path / "images" / "name1" / "0.png")
    with pytest.raises(SourceError, match=r"differ for 1 of 9 images, first for name1/0\.png"):
        import_latents(str(tmp_path / "npy"), str(tmp_path / "b"), options(**STATED, data_dir=str(tmp_path / "images")))


def test_an_import_with_another_scale_is_refused(arrays, tmp_path):
    write_npy(tmp_path / "npy", *arrays, by_class=True)
    store = str(tmp_path / "store")
    import_latents(str(tmp_path / "npy"), store, options(**STATED))
    with pytest.raises(StoreError, match=r"latents/ours was imported with scale \[0.5"):
        import_latents(str(tmp_path / "npy"), store, options(**STATED | {"latents_scale": 0.6}))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--latents-scale", "0"], "--latents-scale is 0.0: expected a number other than 0"),
        (["--latents-shape", "4,4"], "--latents-shape is 4,4: expected three sizes, such as 32,16,16"),
        (["--latents-dtype", "int8"], "--latents-dtype is int8: expected float32 or float16"),
        (["--images", "0"], "--images is 0: expected at least 1"),
        ([], "holds no latents: expected latents_rank*_shard*.safetensors (LightningDiT)"),
    ],
)
def test_wrong_options_are_one_line(run_cli, tmp_path, words, message):
    (tmp_path / "empty").mkdir()
    code, _, errors = run_cli("store", "import", tmp_path / "empty", tmp_path / "store", "--vae", "ours", *words)
    assert code == 2
    assert message in errors
    assert not (tmp_path / "store").exists()
