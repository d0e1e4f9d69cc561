"""How to read a source whose files allow several readings."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from ..converter import shown, structure, unstructure
from ..errors import SourceError
from .names import LISTING, listing_versions

BY_NAME, NATURAL = "name", "natural"
"""Values of `class_order`; any other value is the path of a file."""

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
        listing: version of the rules that decide which files are images. Not an option of commands: a store keeps the
            rules that it was created with.
    """

    split: str | None = None
    image_column: str | None = None
    label_column: str | None = None
    unlabeled: bool = False
    class_order: str = BY_NAME
    listing: int = LISTING

    def __post_init__(self) -> None:
        if self.listing not in listing_versions():
            raise SourceError(
                f"rules of listing {self.listing}, expected 1 to {LISTING}: install the version of repa-pipe that "
                "created the store, or a later one"
            )
        if self.unlabeled and self.class_order != BY_NAME:
            raise SourceError(f"--class-order {self.class_order} has no effect with --unlabeled: omit one of them")
        if self.split is not None and (self.split in ("", ".", "..") or "/" in self.split):
            raise SourceError(f"--split {shown(self.split)} is not the name of a split: expected a name such as train")
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
        """Return the options that differ from those of version 0.1.0, which recorded none, as plain JSON values."""
        defaults = unstructure(OF_0_1_0)
        return {name: value for name, value in unstructure(self).items() if value != defaults[name]}

    def listed_as(self, recorded: Mapping[str, Any]) -> "SourceOptions":
        """Return these options with the rules of listing of a recorded source, the result of `Source.describe`."""
        options = recorded.get("options", {})
        return replace(self, listing=options.get("listing", OF_0_1_0.listing))

    @classmethod
    def from_json(cls, values: dict[str, Any], where: str) -> "SourceOptions":
        """Build options from the values of `as_json`; raise SourceError, naming `where`, for anything else."""
        return structure({"listing": OF_0_1_0.listing} | values, cls, where, SourceError)


DEFAULTS = SourceOptions()
OF_0_1_0 = SourceOptions(listing=1)
