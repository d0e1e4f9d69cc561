"""A slow or hanging plug-in source, which tests use as `--source-kind faulty`."""

import os
import time
from pathlib import Path

from repa_pipe.sources.image_folder import FolderSource


class FaultySource(FolderSource):
    """An image folder. Every read takes `FAULTY_SLOW` seconds, and the first read of the key `FAULTY_HANGS` hangs."""

    def read_bytes(self, record):
        time.sleep(float(os.environ.get("FAULTY_SLOW", "0")))
        if record.key == os.environ.get("FAULTY_HANGS"):
            marker = Path(os.environ["FAULTY_MARKER"])
            if not marker.exists():
                marker.touch()
                time.sleep(3600)
        return super().read_bytes(record)
