"""`store stats --encoder`: exact statistics of stored tokens, stopped and resumed; imported ones; damaged files."""

import dataclasses

import numpy as np
import pytest
import torch

from repa_pipe.errors import ConfigError, StoreError, WeightsError
from repa_pipe.pipeline.store_tools import inspection, statistics, token_statistics
from repa_pipe.pipeline.store_tools.statistics import StatsOptions
from repa_pipe.stores import open_store
from repa_pipe.stores.codecs import make_codec
from repa_pipe.stores.layout import FLIPPED, ArraySpec, GroupSpec
from repa_pipe.stores.manifest import Quarantined
from repa_pipe.stores.metadata_writer import set_attributes
from repa_pipe.stores.statistics import read_statistics, statistics_file
from repa_pipe.stores.tensor_statistics import TensorStatistics
from repa_pipe.stores.tokens import read_tokens
from repa_pipe.stores.verify import verify_store
from repa_pipe.stores.writer import ShardWriter, create_group

ENC = "features/enc"
AXES = {"channel": (0, 2, 3), "position": (0,), "all": (0, 1, 2, 3)}


def options(**changes):
    return StatsOptions(**{"encoder": "enc", "per": "position", "write": True} | changes)


def recorded(path, per="position", group=ENC):
    with open_store(path) as store:
        return read_statistics(store, group, per)


def on_grid(tokens):
    return tokens.astype(np.float64).transpose(0, 2, 1).reshape(len(tokens), tokens.shape[2], 4, 4)


def write_tokens(path, name, arrays, attributes):
    """Add a group of these arrays `{name: [50, …]}` to a store of 50 samples."""
    specs = tuple(
        ArraySpec(name=key, sample_shape=each.shape[1:], dtype=str(each.dtype)) for key, each in arrays.items()
    )
    shape = {"num_tokens": 16, "width": 24, "encoder": name, "fingerprint": {"name": name}}
    spec = GroupSpec(path=f"features/{name}", arrays=specs, attributes=shape | attributes)
    with open_store(path) as store:
        manifest = store.manifest
    create_group(path, manifest, spec)
    for shard in range(4):
        with ShardWriter(path, manifest, spec, shard) as writer:
            rows = writer.samples
            writer.append({key: each[rows.start : rows.stop] for key, each in arrays.items()})
            writer.commit(np.arange(len(rows), dtype=np.uint32), ())


@pytest.mark.parametrize("per", AXES)
def test_statistics_are_those_of_all_images_but_the_quarantined(make_store, per):
    bad = Quarantined(index=20, key="20.png", reason="broken")
    path, contents = make_store(quarantined=(bad,))
    text = statistics.run(str(path), options(per=per))
    latents = np.delete(on_grid(contents[f"{ENC}/tokens"]), 20, axis=0)
    found = recorded(path, per)
    np.testing.assert_allclose(found.mean, latents.mean(AXES[per]).reshape(found.mean.shape), rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(found.var, latents.var(AXES[per]).reshape(found.var.shape), rtol=1e-12)
    assert found.mean.shape == {"channel": (24, 1, 1), "position": (24, 4, 4), "all": (1, 1, 1)}[per]
    assert f"statistics per {per}, exact over 49 images, written to the store" in text
    assert f"statistics per {per}: exact over 49 images" in inspection.info(str(path))
    assert verify_store(path).ok


def test_some_shards_are_measured(make_store):
    path, contents = make_store()
    statistics.run(str(path), options(shards=(1, 3)))
    found = recorded(path)
    np.testing.assert_allclose(found.mean, on_grid(contents[f"{ENC}/tokens"])[16:48].mean(0), rtol=1e-12, atol=1e-15)
    assert found.record.describe() == "exact over 32 images, shards 1:3"


@pytest.mark.parametrize("codec", ["int8", "int4"])
def test_statistics_of_quantized_tokens_are_those_of_the_restored_ones(make_store, codec):
    path, contents = make_store()
    made = make_codec(codec, 16, 24)
    write_tokens(path, "q", made.encode(torch.from_numpy(contents[f"{ENC}/tokens"])), {"codec": made.attributes})
    statistics.run(str(path), options(encoder="q"))
    with open_store(path) as store:
        restored = on_grid(read_tokens(store, "features/q", np.arange(50)).numpy())
    found = recorded(path, group="features/q")
    np.testing.assert_allclose(found.mean, restored.mean(0), rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(found.var, restored.var(0), rtol=1e-6)


def test_flipped_views_are_measured_with_flip(make_store):
    path, _ = make_store()
    rng = np.random.default_rng(0)
    arrays = {name: rng.standard_normal((50, 16, 24)).astype(np.float16) for name in ("tokens", f"tokens{FLIPPED}")}
    write_tokens(path, "f", arrays, {"codec": {"name": "float16", "width": 24}})
    statistics.run(str(path), options(encoder="f", flip=True))
    both = on_grid(np.concatenate(list(arrays.values())))
    found = recorded(path, group="features/f")
    np.testing.assert_allclose(found.var, both.var(0), rtol=1e-12)
    assert found.record.describe() == "exact over 50 images, with flips"
    with pytest.raises(StoreError, match=r"features/enc has no flipped views"):
        statistics.run(str(path), options(flip=True))


@pytest.mark.parametrize("saved_every_s", [0.0, 30.0])
def test_a_stopped_measurement_continues_to_the_same_bits(make_store, monkeypatch, saved_every_s):
    path, _ = make_store()
    statistics.run(str(path), options())
    expected = recorded(path)
    (path / statistics_file(ENC, "position")).unlink()
    monkeypatch.setattr(token_statistics, "SAVE_S", saved_every_s)
    measured, in_order = [], token_statistics._in_order

    def stop_after(count):
        def parts(measurement, rows, shards):
            for number, part in enumerate(in_order(measurement, rows, shards)):
                if number == count:
                    raise KeyboardInterrupt
                measured.append(part)
                yield part

        monkeypatch.setattr(token_statistics, "_in_order", parts)

    for count in (2, 1):
        stop_after(count)
        with pytest.raises(KeyboardInterrupt):
            statistics.run(str(path), options())
        assert recorded(path) is None
    stop_after(-1)
    statistics.run(str(path), options())
    found = recorded(path)
    assert len(measured) == 4  # no shard twice
    assert found.mean.tobytes() == expected.mean.tobytes()
    assert found.var.tobytes() == expected.var.tobytes()
    assert found.record.samples == 50
    assert [file.name for file in (path / "statistics" / ENC).iterdir()] == ["position.safetensors"]


def test_another_measurement_does_not_continue_a_stopped_one(make_store, monkeypatch):
    path, contents = make_store()
    in_order = token_statistics._in_order

    def one_shard(measurement, rows, shards):
        yield next(in_order(measurement, rows, shards))
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(token_statistics, "_in_order", one_shard)
        with pytest.raises(KeyboardInterrupt):
            statistics.run(str(path), options())
    statistics.run(str(path), options(shards=(2, 4)))
    np.testing.assert_allclose(
        recorded(path).mean, on_grid(contents[f"{ENC}/tokens"])[32:].mean(0), rtol=1e-12, atol=1e-15
    )


def test_without_write_the_store_is_not_changed(make_store):
    path, _ = make_store()
    statistics.run(str(path), options(write=False))
    assert not (path / "statistics").exists()


@pytest.mark.parametrize(("shape", "per"), [((24, 4, 4), "position"), ((1, 24, 1, 1), "channel"), ((24,), "channel")])
def test_published_statistics_are_imported_and_named(make_store, tmp_path, shape, per):
    path, _ = make_store()
    mean, var = torch.randn(shape), torch.rand(shape)
    torch.save({"mean": mean, "var": var}, tmp_path / "stat.pt")
    text = statistics.run(str(path), options(write=False, from_file=tmp_path / "stat.pt", note="momentum average"))
    assert f"statistics per {per}, imported from stat.pt, momentum average, written to the store" in text
    found = recorded(path, per)
    assert np.array_equal(found.mean.ravel(), mean.double().numpy().ravel())
    assert np.array_equal(found.var.ravel(), var.double().numpy().ravel())
    assert found.record.kind == "imported"


def test_an_imported_file_without_variances_stands_for_ones(make_store, tmp_path):
    path, _ = make_store()
    torch.save({"mean": torch.zeros(24, 4, 4)}, tmp_path / "stat.pt")
    statistics.run(str(path), options(from_file=tmp_path / "stat.pt"))
    assert (recorded(path).var == 1).all()


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        ({"mean": torch.zeros(23)}, ConfigError, r"holds mean \[23\]: expected statistics of latents \[24, 4, 4\]"),
        ({"mean": torch.zeros(24), "var": torch.zeros(1)}, ConfigError, r"mean \[24\], var \[1\]"),
        ({"mean": torch.zeros(24), "var": -torch.ones(24)}, ConfigError, "variances of at least 0"),
        ({"mean": torch.full((24,), torch.nan)}, ConfigError, "finite means"),
        ({"mean": torch.zeros(24, dtype=torch.int64)}, WeightsError, "tensor of floating-point numbers"),
        ({"other": torch.zeros(24)}, WeightsError, "expected tensors mean and var, found other"),
    ],
)
def test_other_files_are_not_imported(make_store, tmp_path, content, error, message):
    path, _ = make_store()
    torch.save(content, tmp_path / "stat.pt")
    with pytest.raises(error, match=message):
        statistics.run(str(path), options(from_file=tmp_path / "stat.pt"))
    assert not (path / "statistics").exists()


@pytest.mark.parametrize("place", [60, -9])  # in the header, and in the variances
def test_a_damaged_file_is_found(make_store, place):
    path, _ = make_store()
    statistics.run(str(path), options())
    file = path / statistics_file(ENC, "position")
    data = bytearray(file.read_bytes())
    data[place] ^= 1
    file.write_bytes(data)
    with pytest.raises(StoreError, match=r"position.safetensors.*: delete the file, and run 'repa-pipe store stats"):
        recorded(path)
    report = verify_store(path)
    assert [problem.array for problem in report.problems] == [statistics_file(ENC, "position")]
    assert report.bad_shards == []
    assert "delete the file" in inspection.info(str(path))


def test_statistics_of_other_tokens_are_refused(make_store):
    path, _ = make_store()
    statistics.run(str(path), options())
    set_attributes(path, ENC, {"fingerprint": {"name": "another encoder"}})
    with pytest.raises(StoreError, match="computed from tokens of another encoder or precision than features/enc"):
        recorded(path)


def test_statistics_are_written_into_a_bucket(make_store, bucket):
    path, _ = make_store()
    for file in path.rglob("*"):
        if file.is_file():
            bucket.upload_file(str(file), f"small/{file.relative_to(path)}")
    statistics.run("s3://stores/small", options())
    statistics.run(str(path), options())
    found, expected = recorded("s3://stores/small"), recorded(path)
    assert found.mean.tobytes() == expected.mean.tobytes()
    assert dataclasses.replace(found.record, time="") == dataclasses.replace(expected.record, time="")
    assert "statistics per position: exact over 50 images" in inspection.info("s3://stores/small")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "expected either --vae or --encoder"),
        (["--vae", "tiny-kl-f8", "--encoder", "enc"], "expected either --vae or --encoder"),
        (["--encoder", "enc", "--shards", "3"], "--shards is '3': expected FIRST:STOP, such as 0:100"),
        (["--encoder", "enc", "--shards", "2:9"], "--shards is 2:9: expected shards from 0 to 4"),
        (["--encoder", "enc", "--shards", "2:2"], "expected shards from 0 to 4, the first before the last"),
        (["--encoder", "other"], "features/other"),
        (["--encoder", "enc", "--from-file", "missing.pt"], "missing.pt"),
    ],
)
def test_impossible_commands_are_one_line(run_cli, make_store, words, message):
    path, _ = make_store()
    code, out, errors = run_cli("store", "stats", path, *words)
    assert (code, out, errors.count("\n")) == (2, "", 1)
    assert message in errors


def test_any_split_gives_the_same_statistics():
    values = np.random.default_rng(0).normal(1e4, 1e-3, (101, 5))
    parts, whole = TensorStatistics(), TensorStatistics()
    whole.append(values)
    for part in np.split(values, [0, 1, 40, 41]):
        parts.append(part)
    for found in (parts, whole):
        np.testing.assert_allclose(found.mean, values.mean(0), rtol=1e-15)
        np.testing.assert_allclose(found.var, values.var(0), rtol=1e-6)  # the mean is 10^7 times as large
