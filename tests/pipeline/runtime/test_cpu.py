"""The flags of the CPU, and the limits that users set for torch and oneDNN."""

import pytest

from repa_pipe.pipeline.runtime import cpu

SAPPHIRE_RAPIDS = "fpu sse4_1 avx avx2 avx_vnni avx512f avx512_vnni avx512_bf16 avx512_fp16 amx_bf16 amx_tile amx_int8"


@pytest.fixture(autouse=True)
def _sapphire_rapids(monkeypatch, tmp_path):
    monkeypatch.delenv("ATEN_CPU_CAPABILITY", raising=False)
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    pretend(monkeypatch, tmp_path, SAPPHIRE_RAPIDS)


def pretend(monkeypatch, folder, flags):
    """Let `cpu` read a /proc/cpuinfo with these flags."""
    path = folder / "cpuinfo"
    path.write_text(f"processor\t: 0\nflags\t\t: {flags}\nbugs\t\t: none\n\nprocessor\t: 1\nflags\t\t: {flags}\n")
    monkeypatch.setattr(cpu, "CPUINFO", path)


def test_the_flags_are_those_of_the_first_processor():
    assert cpu.cpu_flags() == set(SAPPHIRE_RAPIDS.split())


def test_a_system_without_cpuinfo_has_no_flags(monkeypatch, tmp_path):
    monkeypatch.setattr(cpu, "CPUINFO", tmp_path / "none")
    assert cpu.cpu_flags() == frozenset()
    assert not cpu.has_bf16()


@pytest.mark.parametrize(
    ("flags", "has_bf16"),
    [
        ("avx2", False),
        ("avx2 avx512f avx512bw avx512_vnni", False),
        ("avx2 avx512f avx512_bf16", True),
        ("avx2 amx_tile amx_bf16", True),
        ("avx2 amx_tile amx_int8", False),
    ],
)
def test_bf16_needs_avx512_bf16_or_amx(monkeypatch, tmp_path, flags, has_bf16):
    pretend(monkeypatch, tmp_path, flags)
    assert cpu.has_bf16() == has_bf16


@pytest.mark.parametrize(
    ("variable", "value", "lacks", "has_bf16"),
    [
        ("ATEN_CPU_CAPABILITY", "default", {"avx", "avx2", "avx512f", "amx_bf16"}, False),
        ("ATEN_CPU_CAPABILITY", "avx2", {"avx512f", "avx512_bf16", "amx_bf16"}, False),
        ("ATEN_CPU_CAPABILITY", "avx512", set(), True),
        ("ONEDNN_MAX_CPU_ISA", "AVX2", {"avx_vnni", "avx512f", "amx_bf16"}, False),
        ("ONEDNN_MAX_CPU_ISA", "avx512_core_vnni", {"avx512_bf16", "amx_bf16"}, False),
        ("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_BF16", {"avx512_fp16", "amx_bf16", "amx_tile"}, True),
        ("ONEDNN_MAX_CPU_ISA", "ALL", set(), True),
    ],
)
def test_limits_of_torch_and_onednn_apply(monkeypatch, variable, value, lacks, has_bf16):
    monkeypatch.setenv(variable, value)
    assert not lacks & cpu.cpu_flags()
    assert "sse4_1" in cpu.cpu_flags()
    assert cpu.has_bf16() == has_bf16
    if not lacks:
        assert cpu.cpu_flags() == set(SAPPHIRE_RAPIDS.split())
