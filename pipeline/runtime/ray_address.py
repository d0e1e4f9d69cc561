"""Finding out in seconds whether a Ray cluster answers at an address. `ray.init` tries for more than ten minutes."""

from __future__ import annotations

import os
import socket

from ...errors import ConfigError, first_line

VARIABLE = "RAY_ADDRESS"
CLIENT = "ray://"
CLIENT_PORT = 10001
TIMEOUT_S = 10.0  # for the connection, and for the answer

# Every gRPC server answers the preface of HTTP/2 and an empty SETTINGS frame with a SETTINGS frame (RFC 9113, 3.4).
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\x04\0\0\0\0\0"
_HEADER_BYTES = 9
_SETTINGS = 4


def require_cluster(address: str, origin: str) -> None:
    """Raise ConfigError unless a Ray cluster answers.

    Args:
        address: `auto`, HOST:PORT or ray://HOST:PORT.
        origin: where the address comes from, for the message.
    """
    where = f"{origin} is {address!r}"
    try:
        host, port = _endpoint(address)
        _require_grpc(host, port)
    except (OSError, ValueError, OverflowError) as error:
        if "://" in address and not address.startswith(CLIENT):
            remedy = "expected auto, HOST:PORT or ray://HOST:PORT"
        else:
            remedy = "start the cluster, correct the address, or use --ray-address local to run on this machine"
        raise ConfigError(f"{where}: no Ray cluster answers ({first_line(error)}); {remedy}") from error


def given_address(requested: str | None) -> tuple[str, str]:
    """Return the address of the cluster, `local` for none, and where it comes from."""
    variable = os.environ.get(VARIABLE)
    if requested is not None and not (requested == "auto" and variable):
        return requested, "--ray-address"
    return variable or "local", f"${VARIABLE}"


def _endpoint(address: str) -> tuple[str, int]:
    """Return host and port; ValueError or ConnectionError for an address that has none."""
    if address.startswith(CLIENT):
        host, _, port = address.removeprefix(CLIENT).partition("/")[0].partition(":")
        return host, int(port or CLIENT_PORT)
    from ray._private.services import canonicalize_bootstrap_address  # what ray.init resolves `auto` with

    found = canonicalize_bootstrap_address(address)
    host, _, port = str(found).rpartition(":")
    return host.strip("[]"), int(port)


def _require_grpc(host: str, port: int) -> None:
    """Raise OSError unless a server at the port speaks gRPC. With TLS, only the connection is tried."""
    with socket.create_connection((host, port), timeout=TIMEOUT_S) as connection:
        if os.environ.get("RAY_USE_TLS", "0") != "0":
            return
        connection.sendall(_PREFACE)
        header = connection.recv(_HEADER_BYTES, socket.MSG_WAITALL)
        if len(header) < _HEADER_BYTES or header[3] != _SETTINGS:
            raise ConnectionError(f"{host}:{port} belongs to another program")
