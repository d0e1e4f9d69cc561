"""The allocator's one arena: its limit counts only for threads that start later, so it has to come first."""

import subprocess
import sys

import pytest

ARENAS_AFTER_THREADS = """
import ctypes, threading
from repa_pipe import cli
cli.cli = lambda **_: None
{first}
cli.main()
import pyarrow.parquet
for _ in range(8):
    thread = threading.Thread(target=lambda: [bytes(100) for _ in range(100)])
    thread.start()
    thread.join(0)
libc = ctypes.CDLL(None)
libc.fopen.restype = ctypes.c_void_p
file = ctypes.c_void_p(libc.fopen(b"/proc/self/fd/1", b"w"))
libc.malloc_info(0, file)
libc.fclose(file)
"""


def arenas(first: str) -> int:
    command = [sys.executable, "-c", ARENAS_AFTER_THREADS.format(first=first)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.count("<heap nr")


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_the_command_line_has_all_threads_share_one_arena():
    assert arenas("") == 1
    assert arenas("cli.share_one_arena = lambda: None") > 1
