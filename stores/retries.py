"""Which failed requests to a server are repeated, and for how long.

obstore repeats a request itself for `BURST_S` seconds after an error of the server or of the connection, but neither
after an answer that breaks off nor with renewed credentials. Above it, `Retries` repeats the call with the same limits
for every kind of error.
"""

from __future__ import annotations

import logging
import random
import re
import threading
import time
from collections.abc import Callable
from enum import Enum, auto
from typing import TypeVar

from ..errors import RemoteError, first_line

logger = logging.getLogger(__name__)
Result = TypeVar("Result")

RETRY_S = 120.0  # from the first failure of a request until the last attempt starts
FIRST_ANSWER_S = 30.0  # the same for a server that has never answered: its name or port is probably wrong
BURST_S = 10.0  # obstore's own attempts, within these
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 5.0
LOG_AFTER_S, LOG_EVERY_S = 10.0, 30.0

_STATUS = re.compile(r"status code: (\d{3})([^:\n]*)")
_CODE = re.compile(r"<Code>([\w.]+)</Code>|\"(?:code|error)\": ?\"([\w.]+)\"")
_STATISTICS = re.compile(r" in [\d.]+[µnm]?s(, after \d+ retries, max_retries: \d+, retry_timeout: \S+)?\s*")
_TRANSIENT = (408, 429, 500, 502, 503, 504)
# codes of S3, its imitations, and Azure, for credentials that were valid before
_EXPIRED = ("Expired", "InvalidToken", "InvalidAccessKeyId", "AuthenticationFailed", "InvalidAuthenticationInfo")
_BROKEN = {  # what the debug output of obstore contains → in words
    "ConnectionRefused": "connection refused",
    "ConnectionReset": "connection reset",
    "dns error": "unknown host",
    "TimedOut": "no answer in time",
    "kind: Timeout": "no answer in time",
    "IncompleteMessage": "the answer broke off",
    "kind: Interrupted": "the answer broke off",
}


class Fault(Enum):
    """The kinds of errors of a request."""

    FINAL = auto()  # the same request would fail again
    BUSY = auto()  # the server answers that it cannot answer now
    BROKEN = auto()  # no answer, or a part of one
    EXPIRED = auto()  # the credentials were valid, or say that they have expired


def fault_of(error: BaseException) -> Fault:
    """Return the kind of an error of obstore."""
    text = str(error)
    status = _STATUS.search(text)
    if any(name in text for name in _EXPIRED) or type(error).__name__ == "UnauthenticatedError":
        return Fault.EXPIRED
    if status:
        return Fault.BUSY if int(status[1]) in _TRANSIENT or "NoSuchUpload" in text else Fault.FINAL
    return Fault.BROKEN if "HttpError {" in text and "builder error" not in text else Fault.FINAL


def reason_of(error: BaseException) -> str:
    """Return an error of obstore in a few words: the status and code of the server, or what happened instead."""
    text = str(error)
    if status := _STATUS.search(text):
        code = _CODE.search(text)
        return f"{status[1]}{status[2]}".strip() + (f" {code[1] or code[2]}" if code else "")
    words = next((words for found, words in _BROKEN.items() if found in text), "")
    return words or _STATISTICS.sub(" ", first_line(error)).strip()


class Retries:
    """Repeats the requests to one URL. Thread-safe."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._answered = self._succeeded = False
        self._logged_at = float("-inf")

    def call(self, request: Callable[[], Result], renew: Callable[[], None], given_up: threading.Event) -> Result:
        """Return the result of a request, repeated while that may help.

        Args:
            request: the request.
            renew: called before the next attempt when credentials have expired.
            given_up: ends the attempts early.

        Raises:
            RemoteError: what happened, and for how long it was repeated.
            OSError: the file does not exist.
        """
        from obstore.exceptions import BaseError

        start, pause = time.monotonic(), FIRST_PAUSE_S
        while True:
            try:
                result = request()
            except BaseError as error:
                elapsed = time.monotonic() - start
                fault = fault_of(error)
                self._answered |= fault is not Fault.BROKEN
                limit = RETRY_S if self._answered else FIRST_ANSWER_S
                if not self._may_help(fault, error) or elapsed + pause > limit or given_up.is_set():
                    raise RemoteError(_failure(fault, error, elapsed)) from error
                self._log(error, elapsed, limit)
                given_up.wait(pause * random.uniform(0.5, 1))
                pause = min(2 * pause, LONGEST_PAUSE_S)
                if fault is Fault.EXPIRED:
                    renew()
            except OSError:
                self._answered = self._succeeded = True
                raise
            else:
                self._answered = self._succeeded = True
                return result

    def _may_help(self, fault: Fault, error: BaseException) -> bool:
        """Return whether another attempt may succeed: not with wrong credentials, nor for what does not exist."""
        if fault is Fault.EXPIRED:
            return self._succeeded or "Expired" in str(error)
        return fault is not Fault.FINAL

    def _log(self, error: BaseException, elapsed: float, limit: float) -> None:
        now = time.monotonic()
        if elapsed >= LOG_AFTER_S and now - self._logged_at >= LOG_EVERY_S:
            self._logged_at = now
            logger.warning("%s: %s for %.0f s; retrying until %.0f s", self._url, reason_of(error), elapsed, limit)


def _failure(fault: Fault, error: BaseException, elapsed: float) -> str:
    retried = f", retried for {elapsed:.0f} s" if fault is not Fault.FINAL and elapsed >= 1 else ""
    remedy = {
        Fault.BUSY: "the server is overloaded or down: re-run the same command later",
        Fault.BROKEN: "check the URL and the network, then re-run the same command",
        Fault.EXPIRED: "renew the credentials and re-run the same command; a running process reads them again from "
        "files, not from its environment (docs/stores.md)",
        Fault.FINAL: "check the URL, and the credentials in the environment (docs/stores.md)",
    }[fault]
    return f"({reason_of(error)}{retried}): {remedy}"
