"""Finding out in seconds whether a Ray cluster answers at an address, and accepts the token of this process.

`ray.init` tries a dead address for more than ten minutes, and a refused token for 20 seconds without naming it.
"""

from __future__ import annotations

import os
import socket
from contextlib import suppress

from ...errors import ConfigError, first_line

VARIABLE = "RAY_ADDRESS"
CLIENT = "ray://"
CLIENT_PORT = 10001
TIMEOUT_S = 10.0  # for the connection, and for the answer

# Every gRPC server answers the preface of HTTP/2 and an empty SETTINGS frame with a SETTINGS frame (RFC 9113, 3.4).
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\x04\0\0\0\0\0"
_HEADER_BYTES = 9
_HEADERS, _SETTINGS = 1, 4

# A call of Ray's that needs nothing but the token, and how a server refuses it (status 16, UNAUTHENTICATED).
_CALL = {
    b":method": b"POST",
    b":scheme": b"http",
    b":path": b"/ray.rpc.NodeInfoGcsService/GetClusterId",
    b":authority": b"ray",
    b"content-type": b"application/grpc",
    b"te": b"trailers",
}
_STATUS = b"grpc-status"
_REFUSED = b"grpc-status\x0216"


def require_cluster(address: str, origin: str) -> None:
    """Raise ConfigError unless a Ray cluster answers, or if it refuses the token of this process or its lack.

    Args:
        address: `auto`, HOST:PORT or ray://HOST:PORT.
        origin: where the address comes from, for the message.
    """
    where = f"{origin} is {address!r}"
    authorization = None if address.startswith(CLIENT) else _authorization(where)
    try:
        host, port = _endpoint(address)
        refused = _require_grpc(host, port, authorization)
    except (OSError, ValueError, OverflowError) as error:
        if "://" in address and not address.startswith(CLIENT):
            remedy = "expected auto, HOST:PORT or ray://HOST:PORT"
        else:
            remedy = "start the cluster, correct the address, or use --ray-address local to run on this machine"
        raise ConfigError(f"{where}: no Ray cluster answers ({first_line(error)}); {remedy}") from error
    if refused:
        raise ConfigError(
            f"{where}: the cluster refuses the token of this process: set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN or "
            "the file ~/.ray/auth_token as on the head node (docs/cluster.md)"
        )


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


def _authorization(where: str) -> bytes | None:
    """Return the header with the token of this process; empty if it has none, None if this version of Ray has none.

    Raises:
        ConfigError: a token is required, but there is none.
    """
    try:
        from ray._raylet import AuthenticationTokenLoader  # type: ignore[attr-defined]
    except ImportError:
        return None
    from ray.exceptions import AuthenticationError

    try:
        headers = AuthenticationTokenLoader.instance().get_token_for_http_header()
    except AuthenticationError as error:
        raise ConfigError(
            f"{where}: RAY_AUTH_MODE is token, but there is no token: set RAY_AUTH_TOKEN, or create the file "
            "~/.ray/auth_token (docs/cluster.md)"
        ) from error
    return str(headers.get("authorization", "")).encode()


def _require_grpc(host: str, port: int, authorization: bytes | None) -> bool:
    """Return whether a server at the port refuses a call with this header; None makes no call.

    With TLS, only the connection is tried.

    Raises:
        OSError: no server at the port speaks gRPC.
    """
    with socket.create_connection((host, port), timeout=TIMEOUT_S) as connection:
        if os.environ.get("RAY_USE_TLS", "0") != "0":
            return False
        connection.sendall(_PREFACE)
        header = connection.recv(_HEADER_BYTES, socket.MSG_WAITALL)
        if len(header) < _HEADER_BYTES or header[3] != _SETTINGS:
            raise ConnectionError(f"{host}:{port} belongs to another program")
        return authorization is not None and _refuses(connection, authorization)


def _refuses(connection: socket.socket, authorization: bytes) -> bool:
    """Return whether the server refuses a call with this header; no answer is no refusal."""
    fields = _CALL | ({b"authorization": authorization} if authorization else {})
    headers = b"".join(b"\0" + _text(name) + _text(value) for name, value in fields.items())  # RFC 7541, 6.2.2
    connection.sendall(_frame(_HEADERS, 4, headers) + _frame(0, 1, bytes(5)))  # the whole header, an empty message
    answer = b""
    with suppress(OSError):
        while _STATUS not in answer[: -len(_REFUSED)] and (more := connection.recv(4096)):
            answer += more
    return _REFUSED in answer


def _text(text: bytes) -> bytes:
    """Return a text after its length, whose first byte has 7 bits, as have all others (RFC 7541, 5.1 and 5.2)."""
    if len(text) < 127:
        return bytes([len(text)]) + text
    rest = len(text) - 127
    length = b"\x7f"
    while rest >= 128:
        length += bytes([rest % 128 + 128])
        rest //= 128
    return length + bytes([rest]) + text


def _frame(kind: int, flags: int, content: bytes) -> bytes:
    """Return a frame of stream 1 (RFC 9113, 4.1)."""
    return len(content).to_bytes(3) + bytes([kind, flags]) + (1).to_bytes(4) + content
