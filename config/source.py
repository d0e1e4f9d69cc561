"""The settings of commands that read a source of images."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from .base import DATA, Config, option
from .paths import PathKind, absolute, plain

if TYPE_CHECKING:
    from ..sources import SourceOptions

CLASS_ORDERS = ("name", "natural")  # other values are files
PLUG_IN_HELP = (
    "Name of the installed source plug-in that reads the images of a store that was encoded with one. Default: the "
    "recorded built-in kind."
)


def names_plug_in(source_kind: str | None) -> bool:
    """Return whether a kind of source is that of a plug-in, which only the command line may name: it is code."""
    from ..sources.opening import KINDS

    return source_kind is not None and source_kind not in KINDS


@dataclass(frozen=True, kw_only=True)
class SourceConfig(Config):
    """Settings of commands that read a source of images."""

    source: str | None = None
    source_kind: str | None = option(
        DATA,
        "Kind of source: folder, zip, tar, parquet, arrow, or the name of an installed plug-in. Default: inferred from "
        "--source.",
        None,
        affects_result=False,
    )
    split: str | None = option(
        DATA, "Split to read, such as train, if the source contains several. Default: the only one.", None
    )
    image_column: str | None = option(
        DATA, "Column of images in parquet and Arrow files. Default: inferred from metadata and types.", None
    )
    label_column: str | None = option(
        DATA,
        "Column of class numbers or class names in parquet and Arrow files. Default: inferred from metadata and types; "
        "class names have to be specified.",
        None,
    )
    unlabeled: bool = option(
        DATA, "Ignore labels and class folders: all images become one class, called images.", False
    )
    class_order: str = option(
        DATA,
        "Order of class folders, which defines their labels: name (as in torchvision), natural (numbers by value), or "
        "a text file with one class folder per line.",
        "name",
    )

    def absolute(self) -> Self:
        """Return the config with absolute paths. What a plug-in gets as its path stays."""
        texts = {"source": self.source, "class_order": self.class_order}
        if names_plug_in(self.source_kind):
            del texts["source"]
        if self.class_order in CLASS_ORDERS:
            del texts["class_order"]
        found: dict[str, Any] = {
            name: absolute(plain(text, PathKind.PATH), PathKind.PATH) for name, text in texts.items() if text
        }
        return dataclasses.replace(super().absolute(), **found)

    @property
    def source_options(self) -> SourceOptions:
        """The options with which the source is opened."""
        from ..sources import SourceOptions

        return SourceOptions(
            split=self.split,
            image_column=self.image_column,
            label_column=self.label_column,
            unlabeled=self.unlabeled,
            class_order=self.class_order,
        )
