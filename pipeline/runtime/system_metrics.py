"""Load of this machine by this process: CPU, memory, reads from disks, and the GPU. Nothing here waits for a GPU."""

from __future__ import annotations

import os
import resource
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

_MEMORY = Path("/proc/self/statm")  # proc(5): in pages; the second number is what is in memory
_IO = Path("/proc/self/io")
NAMES = ("cpu_cores", "process_gib", "disk_read_mib_per_s", "gpu_memory_gib", "gpu_utilization", "gpu_celsius")


class SystemMetrics:
    """Reads the load since the last call. What this machine does not tell is left out.

    Args:
        device: the device of the model.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._has_nvml = device.type == "cuda"
        self._at, self._counters = time.perf_counter(), _counters()

    def read(self) -> dict[str, float]:
        """Return the values of `NAMES`; rates are means since the last call.

        `cpu_cores`: CPU time of this process and its threads per second, without child processes. `process_gib`: its
        memory, resident. `disk_read_mib_per_s`: what it read from disks, without the page cache and the network.
        `gpu_memory_gib`: used by all processes. `gpu_utilization`: fraction of the last sampling period of NVML in
        which a kernel ran.
        """
        now, counters = time.perf_counter(), _counters()
        seconds = max(now - self._at, 1e-9)
        rates = {name: (value - self._counters[name]) / seconds for name, value in counters.items()}
        self._at, self._counters = now, counters
        return rates | _process_memory() | self._gpu()

    def _gpu(self) -> dict[str, float]:
        if self._device.type != "cuda":
            return {}
        import torch

        free, total = torch.cuda.mem_get_info(self._device)
        found = {"gpu_memory_gib": (total - free) / 2**30}
        if self._has_nvml:
            try:
                found["gpu_utilization"] = torch.cuda.utilization(self._device) / 100
                found["gpu_celsius"] = float(torch.cuda.temperature(self._device))
            except (ImportError, RuntimeError):  # without nvidia-ml-py, or a driver that does not tell
                self._has_nvml = False
        return found


def _counters() -> dict[str, float]:
    """Return counters that only grow: seconds of CPU time, and MiB read from disks (Linux, if it may be read)."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    counters = {"cpu_cores": usage.ru_utime + usage.ru_stime}
    try:
        lines = _IO.read_text(encoding="ascii").splitlines()
    except OSError:
        return counters
    values = dict(line.split(": ") for line in lines)
    return counters | {"disk_read_mib_per_s": int(values["read_bytes"]) / 2**20}


def _process_memory() -> dict[str, float]:
    try:
        pages = int(_MEMORY.read_text(encoding="ascii").split()[1])
    except OSError:  # not Linux
        return {}
    return {"process_gib": pages * os.sysconf("SC_PAGE_SIZE") / 2**30}
