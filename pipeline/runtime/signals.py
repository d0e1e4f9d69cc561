"""Signals that ask a command to stop: collected for the end of a training step, or raised as KeyboardInterrupt.

Batch systems, launchers and terminals send different ones, and all mean the same: save what is worth saving, end with
exit code `INTERRUPTED`. A second Ctrl-C ends the process at once, whatever it is waiting for.

A signal that the parent process has set to be ignored stays ignored, as SIGHUP below `nohup`. Outside the main thread,
where Python cannot install signal handlers, nothing is changed.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import FrameType

INTERRUPTED = 130  # exit code of a command that was stopped by any of these signals: run it again to resume
STOP_SIGNALS = (
    signal.SIGINT,  # Ctrl-C
    signal.SIGTERM,  # torchrun, Kubernetes, scancel, a shutdown
    signal.SIGHUP,  # a terminal or connection that was closed
    signal.SIGUSR1,  # Slurm's --signal, as batch scripts usually set it
    signal.SIGUSR2,
    signal.SIGXCPU,  # a limit of CPU time
)
SAME_CTRL_C_S = 0.5  # a launcher may pass on a Ctrl-C that the terminal has sent to its children as well

Handler = Callable[[int, FrameType | None], object]


@contextmanager
def collected_signals() -> Iterator[list[int]]:
    """Collect the numbers of STOP_SIGNALS in the returned list, instead of interrupting a training step."""
    received: list[int] = []
    with _handled(lambda number, _: received.append(number)):
        yield received


@contextmanager
def stop_requests(grace_s: float) -> Iterator[Callable[[], bool]]:
    """Yield a function that returns whether a signal has asked the command to stop.

    If the block has not ended `grace_s` seconds after the signal, KeyboardInterrupt is raised in it.
    """
    asked, is_late = threading.Event(), threading.Event()

    def end_block() -> None:
        is_late.set()
        signal.pthread_kill(main, signal.SIGTERM)  # the handler runs in the main thread, whose waiting ends

    main = threading.main_thread().ident or 0
    timer = threading.Timer(grace_s, end_block)
    timer.daemon = True

    def handle(number: int, frame: FrameType | None) -> None:
        if is_late.is_set():
            raise KeyboardInterrupt
        if not asked.is_set():
            asked.set()
            timer.start()

    with _handled(handle):
        try:
            yield asked.is_set
        finally:
            timer.cancel()


@contextmanager
def signals_as_interrupt() -> Iterator[None]:
    """Raise KeyboardInterrupt on all of STOP_SIGNALS, so that every stop takes the path of Ctrl-C."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    with _handled(interrupt):
        yield


@contextmanager
def kept_handlers() -> Iterator[None]:
    """Restore the handlers of STOP_SIGNALS afterwards; a library such as Ray replaces them when it is started."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _handled(handler: Handler) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    with ExitStack() as stack:
        for number in STOP_SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:
                stack.callback(signal.signal, number, signal.signal(number, handler))
        stack.enter_context(_second_interrupt_ends())
        yield


@contextmanager
def _second_interrupt_ends() -> Iterator[None]:
    """End the process at the second Ctrl-C from a thread, even while the main thread waits in code that is not Python.

    Python runs handlers between instructions of the main thread, so none runs during a collective call or a read from
    a server that does not answer. The numbers of signals arrive in the wakeup descriptor at once.
    """
    numbers, wakeup = os.pipe()
    os.set_blocking(wakeup, False)
    before = signal.set_wakeup_fd(wakeup, warn_on_full_buffer=False)
    thread = threading.Thread(target=_end_at_second_interrupt, args=(numbers,), name="second Ctrl-C", daemon=True)
    thread.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before, warn_on_full_buffer=False)
        os.close(wakeup)  # the thread reads the end of the file
        thread.join()
        os.close(numbers)


def _end_at_second_interrupt(numbers: int) -> None:
    first: float | None = None
    while number := os.read(numbers, 1):
        if number[0] != signal.SIGINT:
            continue
        now = time.monotonic()
        if first is not None and now - first > SAME_CTRL_C_S:
            line = b"interrupted again: ended at once; re-run the same command to resume\n"
            os.write(2, b"\n" * os.isatty(2) + line)  # a terminal may show a progress line
            os._exit(INTERRUPTED)
        first = now if first is None else first
