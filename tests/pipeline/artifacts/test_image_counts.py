"""Counts of images: the same in the result of encode, `store info` and the report."""

import pytest

from repa_pipe.errors import StoreError
from repa_pipe.pipeline.artifacts.image_counts import count_images
from repa_pipe.pipeline.artifacts.images import open_images
from repa_pipe.pipeline.reporting.store import describe_store
from repa_pipe.pipeline.store_tools import export, inspection
from repa_pipe.stores import open_store
from repa_pipe.stores.manifest import Quarantined
from repa_pipe.stores.trainable import trainable_rows

REASONS = ("its JPEG data is truncated or damaged (3 bytes (of 9) missing)", "1 x 1 pixels: too small")


def bad(indices):
    return tuple(
        Quarantined(index=index, key=f"{index:04d}.png", reason=REASONS[index % 2].replace("3", str(index)))
        for index in indices
    )


def test_images_are_counted_by_what_became_of_them(make_store):
    path, _ = make_store(quarantined=bad([0, 2, 3]))
    counts = count_images(open_store(path))
    assert (counts.found, counts.encoded, counts.skipped) == (50, 47, None)
    assert [(each.reason, each.count, each.example) for each in counts.quarantined] == [
        ("its JPEG data is truncated or damaged", 2, "0000.png"),
        ("1 x 1 pixels: too small", 1, "0003.png"),
    ]
    assert counts.encoded + sum(each.count for each in counts.quarantined) == counts.found


def test_reasons_that_differ_only_by_numbers_are_counted_together(make_store):
    reasons = ["a JPEG2000 with 4 bits", "a JPEG2000 with 5 bits", "its format is PDF", "fewer than 3 pixels"]
    path, _ = make_store(
        quarantined=tuple(Quarantined(index=i, key=f"{i}.png", reason=reason) for i, reason in enumerate(reasons))
    )
    assert [(each.reason, each.count) for each in count_images(open_store(path)).quarantined] == [
        ("a JPEG2000 with N bits", 2),
        ("fewer than 3 pixels", 1),
        ("its format is PDF", 1),
    ]


def test_images_of_missing_shards_are_not_counted_as_encoded(make_store):
    path, _ = make_store(quarantined=bad([0]))
    (path / "commits/latents/tiny/00001.json").unlink()
    assert count_images(open_store(path)).encoded == 50 - 16 - 1
    (path / "commits/latents/tiny/00000.json").unlink()
    assert count_images(open_store(path)).encoded == 50 - 16 - 16


def test_info_and_report_show_the_same_counts(make_store):
    path, _ = make_store(quarantined=bad([0, 2, 3]))
    info = inspection.info(str(path))
    assert "  images found: 50 in 3 classes (cat, dog, owl)" in info
    assert "  encoded: 47" in info
    assert "  quarantined: 3: its JPEG data is truncated or damaged (2, such as 0000.png); 1 x 1 pixels" in info
    assert "  skipped: not recorded (the store was created by an earlier version)" in info
    properties = dict(describe_store(open_store(path)).properties)
    for heading, text in count_images(open_store(path)).properties():
        assert properties[heading] == text


@pytest.fixture
def broken(make_store):
    path, _ = make_store(quarantined=bad(range(50)))
    return path


@pytest.mark.parametrize(
    "use",
    [
        lambda path: open_store(path).valid_indices(["latents/tiny"]),
        lambda path: inspection.stats(str(path), "tiny", write=False),
        lambda path: export.export(str(path), str(path / "out"), "safetensors", ("latents/tiny",), None),
        lambda path: export.export(str(path), str(path / "out"), "repa", ("latents/tiny",), None),
        lambda path: open_images(str(path), 4, str(path.parent)),
        lambda path: trainable_rows(open_store(path), ["latents/tiny"], batch_size=4),
    ],
    ids=["indices", "stats", "export", "export for REPA", "reference of evaluate", "train"],
)
def test_a_store_without_a_good_image_is_refused(broken, use):
    (broken.parent / "a.png").write_bytes(b"")
    with pytest.raises(StoreError, match=r"none of the 50 images of .* could be decoded .*create a new store"):
        use(broken)
    assert "encoded: 0" in inspection.info(str(broken))
