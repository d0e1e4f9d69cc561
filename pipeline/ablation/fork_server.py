"""A process that has imported what the commands of a run need, and forks one child per command.

Importing takes several seconds of CPU time, a fork milliseconds. A child is a process of its own: it writes to the log
of its run, and can fail or be killed without affecting anything else. The end of the sweep does not kill a child; the
server ends after it.

The server must not use CUDA, which does not survive a fork, so sweeps use it only on machines without a GPU.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

from ..runtime.gpu import has_gpu
from ..runtime.memory import share_one_arena

CLI = "repa_pipe.cli"
PRELOADED = (
    "repa_pipe.pipeline.training.trainer",
    "repa_pipe.pipeline.sampling.blocks",
    "repa_pipe.pipeline.evaluation.comparison",
    "diffusers.models.autoencoders.autoencoder_kl",
    "timm",
)
_MESSAGE = 1 << 20  # bytes; far more than a command line


class ForkedCommand:
    """A running command, with the interface of `subprocess.Popen` as far as a sweep needs it."""

    def __init__(self, connection: socket.socket, pid: int) -> None:
        self._connection, self._pid = connection, pid
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """Return the exit code, negative for a signal, or None while the command runs."""
        return self._receive(socket.MSG_DONTWAIT)

    def wait(self) -> int | None:
        """Wait for the end of the command and return its exit code."""
        return self._receive(0)

    def terminate(self) -> None:
        """Send SIGTERM. The server keeps the process ID reserved until its end has been received."""
        if self.poll() is None:
            with suppress(ProcessLookupError):
                os.kill(self._pid, signal.SIGTERM)

    def _receive(self, flags: int) -> int | None:
        if self.returncode is None:
            with suppress(BlockingIOError):
                # an empty message: the server was killed, and the fate of the command is unknown
                message = self._connection.recv(_MESSAGE, flags)
                self.returncode = json.loads(message) if message else -signal.SIGKILL
        return self.returncode


class ForkServer:
    """The server as a sweep sees it. It is started for the first command, and again if it was killed."""

    def __init__(self, modules: Sequence[str] = PRELOADED) -> None:
        self._modules = tuple(modules)
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: socket.socket

    def _start(self) -> None:
        self._connection, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        command = [sys.executable, "-c", f"from {__name__} import serve; serve({theirs.fileno()}, {self._modules!r})"]
        null = subprocess.DEVNULL
        with theirs:
            self._process = subprocess.Popen(command, stdin=null, stdout=null, pass_fds=(theirs.fileno(),))

    def start(self, args: Sequence[str], log: int) -> ForkedCommand:
        """Start `repa-pipe ARGS` with its output in the file `log`."""
        if self._process is not None and self._process.poll() is not None:
            self._stop()
        if self._process is None:
            self._start()
        socket.send_fds(self._connection, [json.dumps(list(args)).encode()], [log])
        answer = self._connection.recv(_MESSAGE)
        if not answer:
            raise ChildProcessError("the process that starts the commands of the sweep ended unexpectedly")
        return ForkedCommand(self._connection, json.loads(answer))

    def _stop(self) -> None:
        if self._process is not None:
            self._connection.close()
            self._process.wait()
            self._process = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()


def fork_server() -> ForkServer | None:
    """Return a new server, or None where commands cannot be forks: with a GPU, and on systems other than Linux."""
    return None if sys.platform != "linux" or has_gpu() else ForkServer()


def serve(descriptor: int, modules: Sequence[str]) -> None:
    """Import modules, then serve one command after the other until the sweep closes the connection."""
    import importlib

    share_one_arena()  # before imports start threads
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the command and for the sweep
    for module in modules:
        with suppress(ImportError):  # the command that needs it reports what is missing
            importlib.import_module(module)
    with socket.socket(fileno=descriptor) as connection:
        while True:
            message, descriptors, _, _ = socket.recv_fds(connection, _MESSAGE, 1)
            if not message:
                return
            pid = os.fork()
            if pid == 0:
                connection.close()
                _run(json.loads(message), descriptors[0])
            for inherited in descriptors:
                os.close(inherited)
            with suppress(BrokenPipeError):  # the sweep was killed
                connection.send(json.dumps(pid).encode())
                connection.send(json.dumps(_exit_code(pid)).encode())
            os.waitpid(pid, 0)  # now that the sweep will not send a signal anymore


def _exit_code(pid: int) -> int:
    """Wait for the end of a child and return its exit code, negative for a signal, without releasing its ID."""
    ended: Any = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    return int(ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status)


def _run(args: list[str], log: int) -> None:
    """Run a command in the child and end it, as `python -m repa_pipe.cli ARGS` does."""
    import runpy

    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)
    code = 1
    try:
        sys.argv = [CLI, *args]
        runpy.run_module(CLI, run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:  # as the interpreter would report it
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
