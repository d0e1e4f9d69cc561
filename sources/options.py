"""How to read a source whose files allow several readings."""

from dataclasses import dataclass
from typing import Any

from ..converter import structure, unstructure
from ..errors import SourceError


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceOptions:
    """How to read a source whose files allow several readings. Every kind refuses the options that it cannot apply.

    Attributes:
        split: the split to read, such as `train`, of a source that holds several.
        image_column: the column of images. None: inferred from the metadata and types.
        label_column: the column of labels. None: inferred from the metadata and types.
        unlabeled: whether to ignore labels and class folders, and to make all images one class.
        class_order: order of class folders: `name` (that of torchvision), `natural` (numbers by value), or the path of
            a text file with one class folder per line.
    """

    split: str | None = None
    image_column: str | None = None
    label_column: str | None = None
    unlabeled: bool = False
    class_order: str = "name"

    def as_json(self) -> dict[str, Any]:
        """Return the options that differ from their defaults, as plain JSON values."""
        defaults = unstructure(SourceOptions())
        return {name: value for name, value in unstructure(self).items() if value != defaults[name]}

    @classmethod
    def from_json(cls, values: dict[str, Any], where: str) -> "SourceOptions":
        """Build options from the values of `as_json`; raise SourceError, naming `where`, for anything else."""
        return structure(values, cls, where, SourceError)


DEFAULTS = SourceOptions()
