"""The limit of one malloc arena. It applies only to threads that start later, so it must be set first."""

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


def count_arenas(first: str) -> int:
    """Return the number of arenas in a process in which `cli.main` has run after the statement `first`."""
    command = [sys.executable, "-c", ARENAS_AFTER_THREADS.format(first=first)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.count("<heap nr")


@pytest.mark.skipif(sys.platform != "linux", reason="needs glibc's allocator")
def test_all_threads_of_the_command_line_share_one_arena():
    assert count_arenas("") == 1
    assert count_arenas("cli.share_one_arena = lambda: None") > 1
