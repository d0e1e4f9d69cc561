"""One name for every spelling of the path of a model's folder."""

from __future__ import annotations

import os
from pathlib import Path


def canonical_name(model: str) -> str:
    """Return the name of a model: an absolute path without links for a folder, else the name without `./` or a final /.

    Names of models that are not folders, such as `sd-vae-ft-mse` and `owner/name`, remain the same.
    """
    folder = Path(model).expanduser()
    if not model:
        return model
    return str(folder.resolve()) if folder.is_dir() else os.path.normpath(model)
