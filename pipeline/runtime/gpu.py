"""Whether this machine has a GPU, found without torch where there is none."""

from __future__ import annotations

import sys
from pathlib import Path

# Device files of the drivers: Nvidia's, AMD's, and that of Windows for Linux.
_DEVICE_FILES = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")


def has_gpu() -> bool:
    """Return whether torch can use a GPU; imports torch only if the machine may have one."""
    if sys.platform == "linux" and not any(Path(name).exists() for name in _DEVICE_FILES):
        return False
    import torch

    return torch.cuda.is_available()
