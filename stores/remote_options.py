"""How requests to servers are made: time limits, options from the environment, and credentials from AWS's file.

obstore reads keys from the environment, from a web identity token and from the metadata service of the machine, but not
from the credentials file, which is the only one of them that a person can renew while a process runs.
"""

from __future__ import annotations

import configparser
import datetime
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ..errors import StoreError

CONNECT_S = 10  # seconds to connect to a server
READ_S = 30  # seconds for one read request, from the connection to the last byte
WRITE_S = 120  # seconds for one upload request: a slow line carries many parts at a time
CREDENTIALS_S = 600  # seconds after which the credentials file is read again

_PREFIXES = {"s3": "AWS", "s3a": "AWS", "gs": "GOOGLE", "az": "AZURE"}
_CLIENT_OPTIONS = ("allow_http", "allow_invalid_certificates", "proxy_url", "proxy_ca_certificate", "proxy_excludes")
_ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")
_OWN_CREDENTIALS = ("AWS_ACCESS_KEY_ID", "AWS_SKIP_SIGNATURE", "AWS_WEB_IDENTITY_TOKEN_FILE")


def client_options(url: str, request_s: float) -> dict[str, Any]:
    """Return obstore's options of the connections to `url`, whose requests may take `request_s` seconds.

    They replace those that obstore reads from the environment, which are therefore read here.

    Raises:
        StoreError: the endpoint is plain HTTP, which was not allowed.
    """
    scheme = urlsplit(url).scheme
    prefix = _PREFIXES.get(scheme)
    found = {name: os.environ.get(f"{prefix}_{name.upper()}") for name in _CLIENT_OPTIONS} if prefix else {}
    options: dict[str, Any] = {name: value for name, value in found.items() if value}
    if scheme == "http":
        options["allow_http"] = True
    endpoint = _endpoint()
    if prefix == "AWS" and endpoint.startswith("http://") and not _is_true(options.get("allow_http", "")):
        raise StoreError(f"{url}: the endpoint {endpoint} is plain HTTP: set AWS_ALLOW_HTTP=true, or use https://")
    limits = {"connect_timeout": min(CONNECT_S, request_s), "timeout": request_s}
    return options | {name: datetime.timedelta(seconds=seconds) for name, seconds in limits.items()}


def endpoint_hint(url: str) -> str:
    """Return a remedy for requests that look for the bucket in the wrong part of the address, else an empty text."""
    parts = urlsplit(url)
    if _PREFIXES.get(parts.scheme) != "AWS" or not _endpoint():
        return ""
    in_host = (urlsplit(_endpoint()).hostname or "").startswith(f"{parts.hostname}.")
    variable = "AWS_VIRTUAL_HOSTED_STYLE_REQUEST"
    if _is_true(os.environ.get(variable, "")) and not in_host:
        return f"; {variable} is set, but the endpoint {_endpoint()} lacks the bucket: add it, or unset the variable"
    if not _is_true(os.environ.get(variable, "")) and in_host:
        return f"; the endpoint {_endpoint()} contains the bucket: remove it, or set {variable}=true"
    return ""


def file_credentials(url: str) -> Callable[[], dict[str, Any]] | None:
    """Return a provider that reads AWS's credentials file again and again; None if other credentials apply.

    The order is that of AWS's own programs: the environment, then a web identity, then the file, then the machine's.
    """
    if _PREFIXES.get(urlsplit(url).scheme) != "AWS" or any(map(os.environ.get, _OWN_CREDENTIALS)):
        return None
    path = Path(os.environ.get("AWS_SHARED_CREDENTIALS_FILE") or "~/.aws/credentials").expanduser()
    profile = os.environ.get("AWS_PROFILE") or "default"

    def read() -> dict[str, Any]:
        parser = configparser.RawConfigParser()
        parser.read(path)
        keys = parser[profile]
        return {
            "access_key_id": keys["aws_access_key_id"],
            "secret_access_key": keys["aws_secret_access_key"],
            "token": keys.get("aws_session_token"),
            "expires_at": datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=CREDENTIALS_S),
        }

    try:
        read()
    except (KeyError, OSError, configparser.Error):
        return None  # such as a profile of another kind
    return read


def _endpoint() -> str:
    return next(filter(None, map(os.environ.get, _ENDPOINTS)), "")


def _is_true(text: object) -> bool:
    return str(text).lower() in ("true", "1", "yes", "on", "y")  # as obstore reads it
