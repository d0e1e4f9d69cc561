"""Finds images, labels and class names in the schema of a parquet file."""

import json
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from ..errors import SourceError

_MAX_ROW_GROUP_BYTES = 1 << 29  # of images; an entire row group is held in memory


@dataclass(frozen=True, slots=True)
class ImageColumns:
    """The columns to read."""

    image: str  # a struct with the binary field "bytes"
    label: str  # an integer
    has_path: bool  # whether the image struct also contains the file name
    class_names: tuple[str, ...] | None  # from Hugging Face's metadata


def image_columns(path: str, schema: pa.Schema) -> ImageColumns:
    """Find the image and label columns: those of Hugging Face's metadata, else the columns `image` and `label`.

    Raises:
        SourceError: there are no such columns, or their types are wrong.
    """
    features = _features(schema)
    image = _column_of(features, "Image", "image")
    label = _column_of(features, "ClassLabel", "label")
    types: dict[str, Any] = {field.name: field.type for field in schema}
    image_type, label_type = types.get(image, pa.null()), types.get(label, pa.null())
    fields = {field.name: field.type for field in image_type} if pa.types.is_struct(image_type) else {}
    bytes_type = fields.get("bytes", pa.null())
    is_bytes = pa.types.is_binary(bytes_type) or pa.types.is_large_binary(bytes_type)
    if not is_bytes or not pa.types.is_integer(label_type):
        raise SourceError(
            f"{path} has the columns {_types(schema)}: expected image: struct<bytes: binary, path: string> and "
            "label: int64, as in Hugging Face's image datasets"
        )
    names = features.get(label, {}).get("names")
    return ImageColumns(image, label, "path" in fields, tuple(names) if names else None)


def row_group_lengths(path: str, metadata: Any, column: str) -> list[int]:
    """Return the number of rows of each row group.

    Raises:
        SourceError: a row group is too large to hold in memory.
    """
    lengths = []
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        chunks = [group.column(i) for i in range(group.num_columns)]
        size = sum(chunk.total_uncompressed_size for chunk in chunks if chunk.path_in_schema == column)
        if size > _MAX_ROW_GROUP_BYTES:
            raise SourceError(
                f"{path} has a row group of {size >> 20:,} MiB of images: expected at most "
                f"{_MAX_ROW_GROUP_BYTES >> 20} MiB; rewrite the file, for example with row_group_size=1000"
            )
        lengths.append(group.num_rows)
    return lengths


def _features(schema: pa.Schema) -> dict[str, dict[str, Any]]:
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
    except (KeyError, TypeError, ValueError):
        return {}
    return {name: feature for name, feature in features.items() if isinstance(feature, dict)}


def _column_of(features: dict[str, dict[str, Any]], kind: str, usual: str) -> str:
    """Return the only feature of a kind, or the usual name if there is not exactly one."""
    names = [name for name, feature in features.items() if feature.get("_type") == kind]
    return names[0] if len(names) == 1 else usual


def _types(schema: pa.Schema) -> str:
    return ", ".join(f"{field.name}: {field.type}" for field in schema)[:200]
