"""The number of requests in flight, found with servers whose throughput is known."""

import pytest

from repa_pipe.stores.concurrency import GAIN, LEVELS, SETTLED, START, TRIALS, Concurrency


def run(concurrency, throughput, measurements):
    """Record measurements of a server; return the limits that were used."""
    limits = []
    for _ in range(measurements):
        limits.append(concurrency.limit)
        concurrency.record(concurrency.limit, throughput(concurrency.limit))
    return limits


def server(latency, bandwidth):
    """Return the requests per second of a server as a function of the requests in flight."""
    return lambda in_flight: min(in_flight / latency, bandwidth)


@pytest.mark.parametrize(
    ("latency", "bandwidth", "expected"),
    [(0.001, 500, 64), (0.1, 1000, 128), (0.1, 1e9, 256), (0.1, 500, 64)],
)
def test_requests_in_flight_grow_while_the_throughput_grows(latency, bandwidth, expected):
    concurrency = Concurrency()
    limits = run(concurrency, server(latency, bandwidth), len(LEVELS) * TRIALS)
    assert limits[:TRIALS] == [LEVELS[START]] * TRIALS
    assert concurrency.limit == expected
    assert set(run(concurrency, server(latency, bandwidth), SETTLED // 2)) == {expected}


def test_requests_in_flight_follow_a_server_that_becomes_slower_or_faster():
    concurrency = Concurrency()
    run(concurrency, server(0.1, 1e9), 2 * SETTLED)
    assert concurrency.limit == 256
    run(concurrency, server(0.001, 500), 5 * SETTLED)
    assert concurrency.limit == 32
    run(concurrency, server(0.1, 1e9), 5 * SETTLED)
    assert concurrency.limit == 256


def test_a_measurement_with_another_limit_is_ignored():
    """Two batches are read at the same time, and one may end after the other has changed the limit."""
    concurrency = Concurrency()
    for _ in range(TRIALS):  # as many as would move it
        concurrency.record(LEVELS[-1], 1e9)
    assert concurrency.limit == LEVELS[START]


def test_one_slow_measurement_does_not_end_the_search():
    concurrency = Concurrency()
    rates = server(0.1, 1e9)
    for number in range(len(LEVELS) * TRIALS):
        slow = GAIN * 2 if number >= TRIALS and number % TRIALS == 0 else 1
        concurrency.record(concurrency.limit, rates(concurrency.limit) / slow)
    assert concurrency.limit == LEVELS[-1]
