"""Recognizing the layout of a folder of latents."""

from __future__ import annotations

from pathlib import Path

from ....errors import SourceError
from ....sources.saved_dataset import is_saved_dataset
from .folder import FolderOptions, LatentFolder
from .lightningdit import LightningDiTFolder, is_lightningdit
from .numpy_files import NpyFolder, NpzFolder

LAYOUTS = (
    "latents_rank*_shard*.safetensors (LightningDiT), one .h5 file (REPA-E), .npy or .npz files, or a dataset of "
    "Hugging Face (parquet files, or as save_to_disk writes it)"
)


def open_folder(path: str, options: FolderOptions) -> LatentFolder:
    """Open a folder of latents.

    Raises:
        SourceError: its layout is unknown, or it is damaged.
        ConfigError: a package is missing.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise SourceError(f"{folder} is no folder: expected one with {LAYOUTS}")
    if is_lightningdit(folder):
        return LightningDiTFolder(folder, options)
    if any(folder.glob("*.h5")):
        from .hdf5 import Hdf5Folder

        return Hdf5Folder(folder, options)
    if is_saved_dataset(path) or next(folder.rglob("*.parquet"), None):
        from .tables import TableFolder

        return TableFolder(folder, options)
    for ending, kind in ((".npy", NpyFolder), (".npz", NpzFolder)):
        if next(folder.rglob(f"*{ending}"), None):
            return kind(folder, options)
    raise SourceError(f"{folder} holds no latents: expected {LAYOUTS}")
