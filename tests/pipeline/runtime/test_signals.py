import os
import signal
import threading

import pytest

from repa_pipe.pipeline.runtime.signals import collected_signals, sigterm_as_interrupt

HANDLED = (signal.SIGINT, signal.SIGTERM)


def handlers():
    return [signal.getsignal(number) for number in HANDLED]


def send(number):
    os.kill(os.getpid(), number)  # Python runs the handler before kill returns, in the main thread


def test_signals_are_collected_in_order():
    with collected_signals() as received:
        assert received == []
        send(signal.SIGTERM)
        send(signal.SIGINT)
        send(signal.SIGTERM)
        assert received == [signal.SIGTERM, signal.SIGINT, signal.SIGTERM]


def test_sigterm_raises_keyboard_interrupt():
    with pytest.raises(KeyboardInterrupt), sigterm_as_interrupt():
        send(signal.SIGTERM)
        pytest.fail("the signal had no effect")


def test_sigterm_as_interrupt_leaves_sigint_alone():
    before = signal.getsignal(signal.SIGINT)
    with sigterm_as_interrupt():
        assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize("context", [collected_signals, sigterm_as_interrupt])
def test_handlers_are_restored(context):
    before = handlers()
    with context():
        assert handlers() != before
    assert handlers() == before
    with pytest.raises(RuntimeError, match="a step failed"), context():
        raise RuntimeError("a step failed")
    assert handlers() == before


def test_an_inner_context_restores_the_handlers_of_the_outer_one():
    with collected_signals() as received:
        with sigterm_as_interrupt():
            pass
        send(signal.SIGTERM)
    assert received == [signal.SIGTERM]


@pytest.mark.parametrize("context", [collected_signals, sigterm_as_interrupt])
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
