"""The instruction sets of the CPU, within the limits that the user has set for torch and oneDNN.

torch uses no instructions beyond `ATEN_CPU_CAPABILITY`, and oneDNN, which multiplies its matrices, none beyond
`ONEDNN_MAX_CPU_ISA`. With these variables a machine behaves like an older one, here too. Imports no torch.
"""

from __future__ import annotations

import os
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")
BF16_FLAGS = frozenset({"avx512_bf16", "amx_bf16"})

# By variable and value: the beginnings of the flags beyond the limit. Other values set no limit.
_UP_TO_AVX2 = ("avx512", "amx")
_BEYOND: dict[str, dict[str, tuple[str, ...]]] = {
    "ATEN_CPU_CAPABILITY": {"DEFAULT": ("avx", "amx"), "AVX2": _UP_TO_AVX2},
    "ONEDNN_MAX_CPU_ISA": {
        "SSE41": ("avx", "amx"),
        "AVX": ("avx2", "avx_", *_UP_TO_AVX2),
        "AVX2": ("avx_", *_UP_TO_AVX2),
        "AVX2_VNNI": _UP_TO_AVX2,
        "AVX2_VNNI_2": _UP_TO_AVX2,
        "AVX512_CORE": ("avx512_vnni", "avx512_bf16", "avx512_fp16", "amx"),
        "AVX512_CORE_VNNI": ("avx512_bf16", "avx512_fp16", "amx"),
        "AVX512_CORE_BF16": ("avx512_fp16", "amx"),
        "AVX512_CORE_FP16": ("amx",),
    },
}


def cpu_flags() -> frozenset[str]:
    """Return the flags of /proc/cpuinfo, such as `avx2`, that torch may use; none where the file does not list them."""
    try:
        lines = CPUINFO.read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        return frozenset()
    found = next((line.partition(":")[2].split() for line in lines if line.startswith("flags")), [])
    beyond = tuple(
        start for name, limits in _BEYOND.items() for start in limits.get(os.environ.get(name, "").upper(), ())
    )
    return frozenset(flag for flag in found if not flag.startswith(beyond))


def has_bf16() -> bool:
    """Return whether the CPU multiplies bf16 matrices itself.

    Elsewhere bf16 is emulated: a linear layer takes 25 to 300 times as long as in fp32 (pytorch issue 146508).
    """
    return not BF16_FLAGS.isdisjoint(cpu_flags())
