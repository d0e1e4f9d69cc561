"""The store that `encode` creates from a source with options."""

from pathlib import Path

import pytest

from repa_pipe.config import EncodeConfig
from repa_pipe.errors import StoreError
from repa_pipe.pipeline.encoding.work import open_or_create
from repa_pipe.sources import index_digest, open_recorded
from repa_pipe.stores import open_store

GENUINE = Path(__file__).parents[2] / "data/hf_arrow"


def config_of(source, store, **options):
    return EncodeConfig(source=str(source), store=str(store), encoder=("efficientnet-lite0",), **options)


def test_a_store_records_how_its_source_was_read(tmp_path):
    config = config_of(GENUINE / "two_labels", tmp_path / "store", label_column="coarse_label")
    for _ in range(2):  # the second time, the store exists
        open_or_create(config).close()
    with open_store(str(tmp_path / "store")) as store:
        assert store.manifest.class_names == ("animal", "plant", "thing")
        assert store.manifest.source["options"] == {"label_column": "coarse_label", "listing": 2}
        assert index_digest(open_recorded(store.manifest.source).index()) == store.manifest.index_digest
    with pytest.raises(StoreError, match="was made from something else"):
        open_or_create(config_of(GENUINE / "two_labels", tmp_path / "store", label_column="fine_label"))


def test_splits_become_different_stores(tmp_path):
    open_or_create(config_of(GENUINE / "two_splits", tmp_path / "store", split="train")).close()
    with pytest.raises(StoreError, match="number of images: expected 2, found 4"):
        open_or_create(config_of(GENUINE / "two_splits", tmp_path / "store", split="test"))
