"""Which types of columns can hold encoded images, class numbers and class names."""

import pyarrow as pa


def is_image(kind: pa.DataType) -> bool:
    """Return whether a column of this type can hold encoded images: a struct with binary `bytes`, or binary."""
    if pa.types.is_struct(kind):
        return any(field.name == "bytes" and _is_binary(field.type) for field in kind)
    return _is_binary(kind)


def is_number(kind: pa.DataType) -> bool:
    """Return whether a column of this type can hold class numbers."""
    return bool(pa.types.is_integer(_value_type(kind)))


def is_text(kind: pa.DataType) -> bool:
    """Return whether a column of this type can hold class names."""
    return bool(pa.types.is_string(_value_type(kind)) or pa.types.is_large_string(_value_type(kind)))


def has_path(kind: pa.DataType) -> bool:
    """Return whether a column of images also holds their file names."""
    return bool(pa.types.is_struct(kind)) and any(field.name == "path" and is_text(field.type) for field in kind)


def _is_binary(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _value_type(kind: pa.DataType) -> pa.DataType:
    return kind.value_type if pa.types.is_dictionary(kind) else kind
