"""Addresses without a Ray cluster are refused within seconds, in one line."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import ExitStack, closing, suppress
from pathlib import Path

import pytest
import ray

from repa_pipe.errors import ConfigError
from repa_pipe.pipeline import train
from repa_pipe.pipeline.runtime import ray_address
from repa_pipe.pipeline.runtime.ray_address import given_address, require_cluster

SETTINGS = b"\0\0\0\x04\0\0\0\0\0"


@pytest.fixture
def server(monkeypatch):
    """A server on a port of this machine that sends fixed bytes to everyone, or nothing."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray_address, "TIMEOUT_S", 0.5)
    with ExitStack() as stack:
        listening = stack.enter_context(socket.create_server(("", 0)))

        def serve(answer):
            def accept():
                with suppress(OSError):  # closed
                    while True:
                        connection, _ = listening.accept()
                        stack.enter_context(connection).sendall(answer)

            thread = threading.Thread(target=accept)
            thread.start()
            stack.callback(thread.join)
            stack.callback(listening.shutdown, socket.SHUT_RDWR)
            return listening.getsockname()[1]

        yield serve


def free_port():
    with closing(socket.create_server(("", 0))) as listening:
        return listening.getsockname()[1]


@pytest.mark.parametrize("form", ["127.0.0.1:{}", "localhost:{}", "ray://127.0.0.1:{}", "ray://127.0.0.1:{}/namespace"])
@pytest.mark.parametrize(
    ("answer", "reason"),
    [(None, "refused"), (b"", "timed out"), (b"HTTP/1.1 400 Bad Request\r\n", "belongs to another program")],
    ids=["dead", "silent", "another program"],
)
def test_an_address_without_a_cluster_is_refused_in_one_line(server, form, answer, reason):
    address = form.format(free_port() if answer is None else server(answer))
    start = time.monotonic()
    with pytest.raises(ConfigError, match=f"^--ray-address is '{address}': no Ray cluster answers .*{reason}.*local"):
        require_cluster(address, "--ray-address")
    assert time.monotonic() - start < 30


@pytest.mark.parametrize("form", ["127.0.0.1:{}", "ray://localhost:{}"])
def test_a_server_that_speaks_grpc_is_accepted(server, form):
    require_cluster(form.format(server(SETTINGS)), "--ray-address")


needs_tokens = pytest.mark.skipif(
    not hasattr(ray._raylet, "AuthenticationTokenLoader"), reason="Ray has tokens since 2.52"
)

REFUSAL = SETTINGS + b"\0\0\x7d\x01\x05\0\0\0\x01\x88@\x0ccontent-type\x10application/grpc\0\x0bgrpc-status\x0216"


@needs_tokens
def test_a_cluster_that_refuses_the_token_is_one_line(server):
    address = f"127.0.0.1:{server(REFUSAL)}"
    with pytest.raises(ConfigError, match=rf"^--ray-address is '{address}': the cluster refuses the token of [^\n]+$"):
        require_cluster(address, "--ray-address")


def start_head(port, **variables):
    """Start a head node without CPUs, with a process that ends with it."""
    command = [Path(sys.executable).with_name("ray"), "start", "--head", "--num-cpus=0", f"--port={port}", "--block"]
    return subprocess.Popen(
        [
            *command,
            "--include-dashboard=false",
            "--object-store-memory=100000000",
            f"--ray-client-server-port={free_port()}",
        ],
        env=os.environ | variables,
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


@needs_tokens
@pytest.mark.slow
def test_a_real_cluster_accepts_its_own_token_and_no_other(monkeypatch, tmp_path):
    """In one process per token, since Ray reads it once."""
    port = free_port()
    address = f"127.0.0.1:{port}"
    code = (
        "from repa_pipe.pipeline.runtime.ray_session import ray_session\n"
        "import sys\n"
        "with ray_session(sys.argv[1]): print('connected')\n"
    )

    def connect(**variables):
        environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        command = [sys.executable, "-c", code, address]
        start = time.monotonic()
        done = subprocess.run(
            command, check=False, env=environment | {"HOME": str(tmp_path)} | variables, capture_output=True, text=True
        )
        return done.stdout + done.stderr.strip().rpartition("\n")[2], time.monotonic() - start

    token = "a" * 64
    head = start_head(port, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=token)
    try:
        while not listens(port):
            assert head.poll() is None
            time.sleep(0.2)
        assert connect(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=token)[0].startswith("connected")
        for variables in ({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "b" * 200}, {"RAY_AUTH_MODE": "disabled"}, {}):
            line, seconds = connect(**variables)
            assert "the cluster refuses the token of this process: set RAY_AUTH_MODE=token" in line
            assert seconds < 30
        assert "RAY_AUTH_MODE is token, but there is no token" in connect(RAY_AUTH_MODE="token")[0]
    finally:
        end(head)


def end(head):
    """End the processes of a head node."""
    with suppress(ProcessLookupError):
        os.killpg(head.pid, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            head.wait(timeout=20)
        os.killpg(head.pid, signal.SIGKILL)
    head.wait()


def listens(port):
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


def test_with_tls_only_the_connection_is_tried(server, monkeypatch):
    monkeypatch.setenv("RAY_USE_TLS", "1")
    require_cluster(f"127.0.0.1:{server(b'')}", "--ray-address")


@pytest.mark.parametrize(
    "address", ["nowhere", "127.0.0.1:port", "http://127.0.0.1:8265", "ray://127.0.0.1:port", "a:b:c"]
)
def test_a_malformed_address_is_refused_in_one_line(monkeypatch, address):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(ConfigError, match=r"^\$RAY_ADDRESS is .*: no Ray cluster answers \([^\n]+$"):
        require_cluster(address, "$RAY_ADDRESS")


def test_the_cluster_that_ray_remembers_may_have_ended(monkeypatch, tmp_path):
    """`ray start` leaves its address in a file, which a killed cluster does not remove."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.setattr("ray._private.services.find_gcs_addresses", set)
    with pytest.raises(ConfigError, match=r"'auto': no Ray cluster answers .*Could not find any running Ray"):
        require_cluster("auto", "--ray-address")
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray" / "ray_current_cluster").write_text(f"127.0.0.1:{free_port()}")
    with pytest.raises(ConfigError, match=r"'auto': no Ray cluster answers \(.*refused"):
        require_cluster("auto", "--ray-address")


@pytest.mark.parametrize(
    ("requested", "variable", "expected"),
    [
        (None, None, ("local", "$RAY_ADDRESS")),
        (None, "", ("local", "$RAY_ADDRESS")),
        (None, "a:1", ("a:1", "$RAY_ADDRESS")),
        ("auto", "a:1", ("a:1", "$RAY_ADDRESS")),
        ("b:2", "a:1", ("b:2", "--ray-address")),
    ],
)
def test_messages_name_the_origin_of_the_address(monkeypatch, requested, variable, expected):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    if variable is not None:
        monkeypatch.setenv("RAY_ADDRESS", variable)
    assert given_address(requested) == expected


def test_commands_with_a_stale_address_end_in_one_line(config_of, reference, run_cli, tmp_path, monkeypatch):
    run = train.run(config_of(max_train_steps=1)).run
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{free_port()}")
    for command in (
        ["encode", reference, tmp_path / "new", "--vae", "tiny-kl-f8"],
        config_of(exp_name="other").command().split()[1:],
        ["sample", run],
    ):
        code, _, errors = run_cli(*command, "--ray")
        (line,) = [line for line in errors.splitlines() if line.startswith("error:")]
        assert (code, "$RAY_ADDRESS is" in line, "Traceback" in errors) == (2, True, False)
