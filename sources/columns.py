"""Chooses the columns of images and labels of a table, from its schema and the options."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from ..errors import SourceError
from .column_types import has_path, is_image, is_number, is_text
from .options import SourceOptions

_EXPECTED_IMAGES = "one image per row as struct<bytes: binary, path: string> or binary"
_PANDAS_INDEX = "__index_level_0__"  # row numbers, which pandas adds when it writes a table


@dataclass(frozen=True, slots=True)
class Columns:
    """The columns to read."""

    image: str
    is_struct: bool  # with the binary field "bytes"; otherwise the column itself holds the bytes
    has_path: bool  # whether the struct also contains the file name
    label: str | None  # None: all images are one class
    is_text: bool  # whether labels are class names instead of class numbers
    class_names: tuple[str, ...] | None  # from Hugging Face's metadata

    @property
    def image_bytes(self) -> str:
        """The column of encoded images, as parquet spells nested columns."""
        return f"{self.image}.bytes" if self.is_struct else self.image

    def bytes_of(self, table: pa.Table | pa.RecordBatch) -> Any:
        """Return the encoded images of a table; null where a row has none."""
        column = table[self.image]
        return pc.struct_field(column, "bytes") if self.is_struct else column

    def paths_of(self, table: pa.Table | pa.RecordBatch) -> Any:
        """Return the file names of the images of a table, empty where a row has none; None if no row has one."""
        if not self.has_path:
            return None
        paths = pc.struct_field(table[self.image], "path")
        return pc.fill_null(paths.cast(pa.string()), "")

    def labels_of(self, table: pa.Table | pa.RecordBatch) -> Any:
        """Return the class numbers or class names of a table; None if labels are ignored."""
        if self.label is None:
            return None
        column = table[self.label]
        return column.cast(column.type.value_type) if pa.types.is_dictionary(column.type) else column


def choose_columns(path: str, schema: pa.Schema, options: SourceOptions) -> Columns:
    """Choose the columns of images and labels.

    Each is the column that the options specify, else the only one that Hugging Face's metadata declare as Image or
    ClassLabel, else the one called `image` or `label`, else the only one of a suitable type.

    Raises:
        SourceError: several columns are suitable or none is, or the chosen one has the wrong type.
    """
    table = _Schema(path, schema, _features(schema))
    repeated = [name for name in schema.names if schema.names.count(name) > 1]
    if repeated:
        raise SourceError(f"{path} has several columns called {repeated[0]}: rename all but one")
    image = table.image(options.image_column)
    label = None if options.unlabeled else table.label(options.label_column)
    kind = table.type_of(image)
    labels_are_text = label is not None and is_text(table.type_of(label))
    names = None if label is None or labels_are_text else table.features.get(label, {}).get("names")
    if names is not None and not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        raise SourceError(
            f"{path}: the class names of {label} in its metadata are no list of text: write the file again"
        )
    return Columns(
        image, bool(pa.types.is_struct(kind)), has_path(kind), label, labels_are_text, tuple(names) if names else None
    )


@dataclass(frozen=True, slots=True)
class _Schema:
    """The schema of one file."""

    path: str
    schema: pa.Schema
    features: dict[str, dict[str, Any]]  # of Hugging Face's metadata

    def image(self, chosen: str | None) -> str:
        """Return the column of images."""
        # Sounds and videos have the type of images.
        suitable = [name for name in self._of_type(is_image) if self._feature(name) in (None, "Image", "Value")]
        name = chosen or self._infer("Image", "image", suitable, "--image-column")
        if name is None:
            raise SourceError(f"{self.path} has no images among {self._types()}: expected {_EXPECTED_IMAGES}")
        self._require_exists(name, "--image-column")
        if not is_image(self.type_of(name)):
            raise SourceError(
                f"column {name} of {self.path} is {self.type_of(name)}: expected {_EXPECTED_IMAGES}; choose another "
                "column with --image-column"
            )
        return name

    def label(self, chosen: str | None) -> str:
        """Return the column of labels: text only if it is the chosen one, as its values need not be classes."""
        suitable = [name for name in self._of_type(is_number) if name != _PANDAS_INDEX]
        name = chosen or self._infer("ClassLabel", "label", suitable, "--label-column")
        if name is None:
            raise SourceError(
                f"{self.path} has no class numbers among {self._types()}: {self._text_remedy(self._of_type(is_text))}"
                "make all images one class with --unlabeled"
            )
        self._require_exists(name, "--label-column")
        kind = self.type_of(name)
        if not is_number(kind) and not (chosen and is_text(kind)):
            raise SourceError(
                f"column {name} of {self.path} is {kind}: expected class numbers; "
                f"{self._text_remedy([name]) if is_text(kind) else 'choose another column with --label-column, or '}"
                "make all images one class with --unlabeled"
            )
        return name

    def type_of(self, name: str) -> pa.DataType:
        return self.schema.field(name).type

    def _infer(self, feature: str, usual: str, suitable: Sequence[str], flag: str) -> str | None:
        declared: list[str] = [name for name in self.schema.names if self._feature(name) == feature]
        if len(declared) == 1:
            return declared[0]
        if usual in self.schema.names:
            return usual
        candidates = declared or suitable
        if len(candidates) > 1:
            raise SourceError(
                f"{self.path} has several columns that could be the {usual} ({', '.join(candidates)}): choose one with "
                f"{flag}, such as {flag} {candidates[0]}"
            )
        return candidates[0] if candidates else None

    def _require_exists(self, name: str, flag: str) -> None:
        if name not in self.schema.names:
            raise SourceError(f"{self.path} has no column {name} ({flag}): expected one of {self._types()}")

    def _of_type(self, fits: Any) -> list[str]:
        return [field.name for field in self.schema if fits(field.type)]

    def _feature(self, name: str) -> str | None:
        kind: str | None = self.features.get(name, {}).get("_type")
        return kind

    def _text_remedy(self, columns: Sequence[str]) -> str:
        return f"use text as class names with --label-column {' or '.join(columns)}, or " if columns else ""

    def _types(self) -> str:
        text = ", ".join(f"{field.name}: {field.type}" for field in self.schema)
        return f"its columns ({text[:200] + '...' if len(text) > 200 else text})"


def _features(schema: pa.Schema) -> dict[str, dict[str, Any]]:
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
    except (KeyError, TypeError, ValueError, RecursionError):
        return {}
    if not isinstance(features, dict):
        return {}
    return {name: feature for name, feature in features.items() if isinstance(feature, dict)}
