"""A plug-in source that hangs: read by the tests through `--source-kind faulty_source:FaultySource`."""

import os
import time
from pathlib import Path

from repa_pipe.sources.image_folder import FolderSource


class FaultySource(FolderSource):
    """The folder's images, each `FAULTY_SLOW` seconds late; the first read of the key `FAULTY_HANGS` never ends."""

    def read_bytes(self, record):
        time.sleep(float(os.environ.get("FAULTY_SLOW", "0")))
        if record.key == os.environ.get("FAULTY_HANGS"):
            marker = Path(os.environ["FAULTY_MARKER"])
            if not marker.exists():
                marker.touch()
                time.sleep(3600)
        return super().read_bytes(record)
