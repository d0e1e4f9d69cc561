"""How to read a source whose files allow several readings."""

from dataclasses import dataclass
from typing import Any

from ..converter import structure, unstructure
from ..errors import SourceError

FLAGS = {
    "split": "--split",
    "image_column": "--image-column",
    "label_column": "--label-column",
    "unlabeled": "--unlabeled",
    "class_order": "--class-order",
}
"""The flag of each option."""


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

    def __post_init__(self) -> None:
        if self.split is not None and (self.split in ("", ".", "..") or "/" in self.split):
            raise SourceError(f"--split {self.split!r} is not the name of a split: expected a name such as train")
        if self.unlabeled and self.label_column is not None:
            raise SourceError(
                f"--unlabeled ignores labels, and --label-column {self.label_column} reads them: pass one"
            )

    def require_only(self, kind: str, path: str, allowed: frozenset[str]) -> None:
        """Raise SourceError for an option that is set but has no meaning for sources of this kind.

        Args:
            kind: the kind of the source.
            path: its path, for the error.
            allowed: the names of the fields that the kind applies.
        """
        given = [name for name in FLAGS if getattr(self, name) != getattr(DEFAULTS, name)]
        wrong = [FLAGS[name] for name in given if name not in allowed]
        if wrong:
            applied = ", ".join(flag for name, flag in FLAGS.items() if name in allowed) or "none"
            raise SourceError(
                f"{wrong[0]} does not apply to {path}, a source of kind {kind}, whose options are: {applied}; remove it"
            )

    def as_json(self) -> dict[str, Any]:
        """Return the options that differ from their defaults, as plain JSON values."""
        return {name: value for name, value in unstructure(self).items() if value != getattr(DEFAULTS, name)}

    @classmethod
    def from_json(cls, values: dict[str, Any], where: str) -> "SourceOptions":
        """Build options from the values of `as_json`; raise SourceError, naming `where`, for anything else."""
        return structure(values, cls, where, SourceError)


DEFAULTS = SourceOptions()
