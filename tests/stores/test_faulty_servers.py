"""What is ridden out of a server's faults, and how the rest is reported: real requests to a server that fails."""

import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from obstore.exceptions import GenericError

from repa_pipe.errors import RemoteError, StoreError
from repa_pipe.stores import open_store, remote_options, retries
from repa_pipe.stores.remote import RemoteFiles
from repa_pipe.stores.retries import FIRST_ANSWER_S, RETRY_S

URL = "s3://stores/small"
GROUPS = ["latents/tiny", "features/enc", "label"]
ROWS = [49, 0, 3, 3, 17]


@pytest.fixture
def uploaded(make_store, faulty_bucket):
    """A store on disk that is also in the bucket."""
    path, _ = make_store()
    for file in path.rglob("*"):
        if file.is_file():
            faulty_bucket.objects[f"small/{file.relative_to(path)}"] = file.read_bytes()
    return path


def assert_reads_the_same(store, path):
    with open_store(path) as local:
        for name, array in local.read(GROUPS, ROWS).items():
            np.testing.assert_array_equal(store.read(GROUPS, ROWS)[name], array)


def test_a_minute_of_slow_down_is_ridden_out_and_logged_now_and_then(uploaded, faulty_bucket, short_limits, caplog):
    with open_store(URL) as store:
        faulty_bucket.slow_down(60 / short_limits)
        assert_reads_the_same(store, uploaded)
    assert 1 <= len(caplog.messages) <= 3
    assert caplog.messages[0].startswith(f"{URL}: 503 Service Unavailable SlowDown for ")
    assert caplog.messages[0].endswith(f" s; retrying until {RETRY_S / short_limits:.0f} s")


def test_a_server_that_is_overloaded_from_the_start_is_ridden_out(uploaded, faulty_bucket, short_limits):
    """It answers, so the shorter limit for wrong addresses does not apply."""
    faulty_bucket.slow_down(60 / short_limits)
    with open_store(URL) as store:
        assert_reads_the_same(store, uploaded)


@pytest.mark.slow
def test_sixty_real_seconds_of_slow_down_are_ridden_out(uploaded, faulty_bucket):
    with open_store(URL) as store:
        faulty_bucket.slow_down(60)
        start = time.monotonic()
        assert_reads_the_same(store, uploaded)
        assert time.monotonic() - start > 60


def test_a_server_that_stays_overloaded_is_given_up_after_the_stated_time(uploaded, faulty_bucket, short_limits):
    with open_store(URL) as store:
        faulty_bucket.slow_down(3600)
        start = time.monotonic()
        with pytest.raises(
            RemoteError, match=rf"^{URL} cannot be read \(503 .* SlowDown, retried for \d s\): the serv"
        ):
            store.read(GROUPS, ROWS)
    assert 0.75 * RETRY_S / short_limits < time.monotonic() - start < 2 * RETRY_S / short_limits


def test_thirty_percent_of_random_errors_are_ridden_out_by_reads_and_writes(uploaded, faulty_bucket, tmp_path):
    faulty_bucket.fail_randomly(0.3)
    large = tmp_path / "large"
    large.write_bytes(np.random.default_rng(0).bytes(12 << 20))  # three parts
    files = RemoteFiles(URL)
    files.put({"large": large, "small": uploaded / "zarr.json"})
    assert faulty_bucket.objects["small/large"] == large.read_bytes()
    assert faulty_bucket.objects["small/small"] == (uploaded / "zarr.json").read_bytes()
    with (tmp_path / "copy").open("w+b") as copy:
        files.download("large", copy.fileno())
        assert copy.read() == large.read_bytes()
    files.close()
    with open_store(URL) as store:
        assert_reads_the_same(store, uploaded)


def test_many_ranges_of_one_file_are_read_from_a_server_that_breaks_off(uploaded, faulty_bucket):
    """In one call, a tenth of the answers that break off would fail a hundred ranges in nearly every attempt."""
    faulty_bucket.objects["small/file"] = data = np.random.default_rng(0).bytes(200 << 20)
    faulty_bucket.fail_randomly(0.2)
    files = RemoteFiles(URL)
    ranges = [("file", start, 1000) for start in range(0, len(data), 2 << 20)]
    assert [bytes(part) for part in files.get_ranges(ranges)] == [data[s : s + n] for _, s, n in ranges]
    files.close()


@pytest.mark.parametrize("fault", ["say_nothing", "stall"])
def test_a_server_that_never_answers_is_one_line_within_the_stated_time(uploaded, faulty_bucket, short_limits, fault):
    getattr(faulty_bucket, fault)()
    limit = {"say_nothing": FIRST_ANSWER_S + 30, "stall": RETRY_S + 30}[fault] / short_limits
    start = time.monotonic()
    with pytest.raises(RemoteError, match=rf"^{URL} cannot be read \(no answer in time.*check the URL and the network"):
        open_store(URL)
    assert time.monotonic() - start < limit + 1


def test_a_server_that_falls_silent_after_it_has_answered_is_retried_longer(uploaded, faulty_bucket, short_limits):
    with open_store(URL) as store:
        faulty_bucket.say_nothing()
        start = time.monotonic()
        with pytest.raises(RemoteError, match="no answer in time"):
            store.read(GROUPS, ROWS)
    assert time.monotonic() - start > 2 * FIRST_ANSWER_S / short_limits


def test_what_does_not_pass_is_not_retried(uploaded, faulty_bucket):
    with open_store(URL) as store:
        faulty_bucket.fault = lambda request: request.refuse(403, "AccessDenied")
        start = time.monotonic()
        with pytest.raises(RemoteError, match=r"\(403 Forbidden AccessDenied\): check the URL, and the credentials"):
            store.read(GROUPS, ROWS)
    assert time.monotonic() - start < 1


@pytest.fixture
def credentials_file(tmp_path, monkeypatch):
    """Write AWS's credentials file with an access key."""
    path = tmp_path / "credentials"
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(path))

    def write(access_key, profile="default"):
        path.write_text(f"[{profile}]\naws_access_key_id = {access_key}\naws_secret_access_key = s\n")

    return write


def test_expired_credentials_are_read_again_from_their_file(uploaded, faulty_bucket, credentials_file, monkeypatch):
    monkeypatch.setattr("repa_pipe.stores.remote.REOPEN_S", 0.05)
    monkeypatch.setenv("AWS_PROFILE", "training")
    credentials_file("first", "training")
    faulty_bucket.access_key = "first"
    with open_store(URL) as store, ThreadPoolExecutor() as pool:
        assert_reads_the_same(store, uploaded)
        faulty_bucket.access_key = "second"
        reading = pool.submit(assert_reads_the_same, store, uploaded)
        time.sleep(0.3)
        credentials_file("second", "other")  # as while the file is rewritten
        time.sleep(0.3)
        assert not reading.done()
        credentials_file("second", "training")
        reading.result(timeout=20)


def test_credentials_that_stay_expired_are_reported(uploaded, faulty_bucket, credentials_file, short_limits):
    credentials_file("first")
    with open_store(URL) as store:
        faulty_bucket.access_key = "second"
        with pytest.raises(RemoteError, match=r"\(400 Bad Request ExpiredToken, retried for \d s\): renew the cred"):
            store.read(GROUPS, ROWS)


def test_keys_that_were_never_valid_are_reported_at_once(uploaded, faulty_bucket):
    faulty_bucket.fault = lambda request: request.refuse(403, "InvalidAccessKeyId")
    start = time.monotonic()
    with pytest.raises(RemoteError, match=r"\(403 Forbidden InvalidAccessKeyId\): renew the credentials"):
        open_store(URL)
    assert time.monotonic() - start < 1


def test_a_plain_http_endpoint_must_be_allowed(uploaded, monkeypatch):
    monkeypatch.delenv("AWS_ALLOW_HTTP")
    with pytest.raises(StoreError, match=r"^s3://\S+: the endpoint http://\S+ is plain HTTP: set AWS_ALLOW_HTTP=true"):
        open_store(URL)


@pytest.mark.parametrize("variable", ["AWS_ENDPOINT", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"])
def test_the_endpoint_may_be_in_any_variable_that_obstore_reads(uploaded, faulty_bucket, monkeypatch, variable):
    monkeypatch.delenv("AWS_ENDPOINT")
    monkeypatch.setenv(variable, faulty_bucket.url)
    with open_store(URL) as store:
        assert_reads_the_same(store, uploaded)


def test_a_bucket_in_the_wrong_part_of_the_address_names_the_variable(
    uploaded, faulty_bucket, monkeypatch, short_limits
):
    monkeypatch.setenv("AWS_VIRTUAL_HOSTED_STYLE_REQUEST", "true")
    with pytest.raises(
        StoreError, match=r"AWS_VIRTUAL_HOSTED_STYLE_REQUEST is set, but the endpoint .* lacks the bucket"
    ):
        open_store(URL)
    monkeypatch.delenv("AWS_VIRTUAL_HOSTED_STYLE_REQUEST")
    monkeypatch.setenv("AWS_ENDPOINT", faulty_bucket.url.replace("127.0.0.1", "stores.localhost"))
    faulty_bucket.objects = {}
    with pytest.raises(
        StoreError, match=r"contains the bucket: remove it, or set AWS_VIRTUAL_HOSTED_STYLE_REQUEST=true"
    ):
        open_store(URL)


def test_an_interrupted_read_ends_at_once(uploaded, faulty_bucket):
    """Not after the retries: Ctrl-C must end a command that waits for a server."""
    with open_store(URL) as store:
        faulty_bucket.slow_down(6)
        start = time.monotonic()
        threading.Timer(0.5, os.kill, [os.getpid(), signal.SIGINT]).start()
        with pytest.raises(KeyboardInterrupt):
            store.read(["features/enc"], [3])
    assert time.monotonic() - start < 3


def test_requests_that_are_given_up_are_not_repeated():
    given_up, requests = threading.Event(), []

    def request():
        requests.append(1)
        given_up.set()
        raise GenericError("Server returned non-2xx status code: 503 Service Unavailable: SlowDown")

    with pytest.raises(RemoteError, match="503 Service Unavailable"):
        retries.Retries(URL).call(request, lambda: None, given_up)
    assert len(requests) == 1


def test_the_documentation_states_these_times():
    pages = [Path(__file__).parents[2] / "docs" / name for name in ("stores.md", "troubleshooting.md", "cluster.md")]
    text = pages[0].read_text()
    assert (retries.RETRY_S, retries.FIRST_ANSWER_S) == (120, 30)
    assert (remote_options.CONNECT_S, remote_options.READ_S, remote_options.WRITE_S) == (10, 30, 120)
    for stated in ("120 seconds", "30 seconds", "10 seconds to connect"):
        assert stated in text
    assert all("two minutes" in page.read_text() for page in pages[1:])
