import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from repa_pipe.pipeline.runtime.signals import (
    INTERRUPTED,
    STOP_SIGNALS,
    collected_signals,
    kept_handlers,
    signals_as_interrupt,
    stop_requests,
)

CLI_PAGE = Path(__file__).parents[3] / "docs/cli.md"


def handlers():
    return [signal.getsignal(number) for number in STOP_SIGNALS]


def send(number):
    os.kill(os.getpid(), number)  # Python runs the handler before kill returns, in the main thread


def test_the_documented_signals_stop_a_command():
    (sentence,) = re.findall(r"^(SIG.*) stop every command with code 130", CLI_PAGE.read_text(), re.MULTILINE)
    assert [number.name for number in STOP_SIGNALS] == re.findall(r"SIG\w+", sentence)


def test_signals_are_collected_in_order():
    with collected_signals() as received:
        assert received == []
        for number in STOP_SIGNALS:
            send(number)
        send(signal.SIGTERM)
        assert received == [*STOP_SIGNALS, signal.SIGTERM]


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_every_stop_signal_raises_keyboard_interrupt(number):
    with pytest.raises(KeyboardInterrupt), signals_as_interrupt():
        send(number)
        pytest.fail("the signal had no effect")


@pytest.mark.parametrize("context", [collected_signals, signals_as_interrupt])
def test_handlers_are_restored(context):
    before, wakeup = handlers(), signal.set_wakeup_fd(-1)
    with context():
        assert not set(handlers()) & set(before)
    assert handlers() == before
    with pytest.raises(RuntimeError, match="a step failed"), context():
        raise RuntimeError("a step failed")
    assert (handlers(), signal.set_wakeup_fd(wakeup)) == (before, -1)


def test_an_inner_context_restores_the_handlers_of_the_outer_one():
    with collected_signals() as received:
        with signals_as_interrupt():
            pass
        send(signal.SIGTERM)
    assert received == [signal.SIGTERM]


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_a_request_to_stop_is_noticed_between_blocks_and_ends_one_that_takes_too_long(number):
    with stop_requests(0.2) as is_stopped:
        assert not is_stopped()
        send(number)
        assert is_stopped()
        send(number)  # torchrun sends SIGTERM twice
    time.sleep(0.3)  # a block that has ended is not interrupted
    with pytest.raises(KeyboardInterrupt), stop_requests(0.2):
        send(number)
        time.sleep(5)
        pytest.fail("the block was not ended")


def test_handlers_that_a_library_installs_are_replaced_by_those_from_before():
    with collected_signals() as received:
        with kept_handlers():
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        send(signal.SIGTERM)
    assert received == [signal.SIGTERM]


def test_a_signal_that_is_ignored_stays_ignored_as_below_nohup():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with collected_signals() as received, signals_as_interrupt():
            send(signal.SIGHUP)
        assert received == []
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("context", [collected_signals, signals_as_interrupt, kept_handlers])
def test_nothing_changes_outside_the_main_thread(context):
    before, found = handlers(), []

    def enter():
        with context():
            found.append(handlers())
        found.append(handlers())

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert found == [before, before]


# the main thread waits in a call of C, in which Python runs no handlers: the lock is never released
STUCK = """
import ctypes, sys
from repa_pipe.pipeline.runtime.signals import collected_signals
libc = ctypes.CDLL(None)
lock = ctypes.create_string_buffer(64)
libc.pthread_mutex_lock(lock)
with collected_signals():
    print("ready", flush=True)
    libc.pthread_mutex_lock(lock)
"""


def test_a_second_ctrl_c_ends_a_process_that_is_stuck_but_the_same_one_passed_on_does_not():
    process = subprocess.Popen([sys.executable, "-c", STUCK], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "ready\n"
        for _ in range(2):  # one Ctrl-C, from the terminal and from a launcher
            process.send_signal(signal.SIGINT)
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        time.sleep(0.6)
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=5)
        assert process.returncode == INTERRUPTED
        assert errors == "interrupted again: ended at once; re-run the same command to resume\n"
    finally:
        process.kill()
