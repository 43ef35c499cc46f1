"""What went wrong with a request, and what follows from it: try again, give up, stop the run; on the bill or
not.

One table for all vendors. Knows of their clients only that each has four kinds of errors.
"""

import asyncio
import email.utils
import time
from collections.abc import Mapping
from typing import Any, ClassVar

import httpx2

from distillcache.generate.keys import Key
from distillcache.generate.teacher import AskError

__all__ = [
    "ClientFaults",
    "connection_fault",
    "reply_fault",
    "retry_after_seconds",
    "status_fault",
    "timeout_fault",
]

# A gateway that gave up waiting says nothing about the server behind it, which may have finished and billed.
_GATEWAY_TIMEOUTS = frozenset({408, 504, 524})
_RETRIED = frozenset({408, 409, 429})
# Wrong key, no money, no such model: the next question would fare no better.
_FATAL = frozenset({401, 402, 403, 404})
_OUT_OF_MONEY = ("insufficient_quota", "billing_hard_limit_reached", "credit balance is too low")
# The client never reached the server.
_NOT_SENT = frozenset({"ConnectError", "ConnectTimeout", "PoolTimeout", "UnsupportedProtocol", "ProxyError"})
_LONGEST = 300


def status_fault(status: int, headers: Mapping[str, str], message: str, key: Key) -> AskError:
    """The fault of an answer with a status of 400 or more."""
    message = _short(message, key)
    broke = any(sign in message for sign in _OUT_OF_MONEY)
    fatal = status in _FATAL or broke
    return AskError(
        f"status {status}: {message}",
        retry=not fatal and (status in _RETRIED or status >= 500),
        fatal=fatal,
        maybe_billed=status in _GATEWAY_TIMEOUTS,
        retry_after=retry_after_seconds(headers),
    )


def timeout_fault(seconds: float) -> AskError:
    """No answer within the time limit; the server may still have worked, and billed."""
    return AskError(f"no answer within {seconds:g} s", retry=True, maybe_billed=True)


def connection_fault(fault: BaseException, key: Key) -> AskError:
    """A connection that could not be made, or that broke before the answer was whole."""
    cause = fault.__cause__ or fault
    sent = type(cause).__name__ not in _NOT_SENT
    what = "connection broke" if sent else "no connection"
    return AskError(
        f"{what}: {_short(f'{type(cause).__name__} {cause}'.strip(), key)}", retry=True, maybe_billed=sent
    )


def reply_fault(what: str, key: Key) -> AskError:
    """An answer of status 200 that cannot be read: paid for, most likely, and so not asked again at once."""
    return AskError(f"unreadable answer: {_short(what, key)}", maybe_billed=True)


def retry_after_seconds(headers: Mapping[str, str]) -> float | None:
    """Seconds of `retry-after-ms` or `retry-after` (a number or a date); None when absent or not readable."""
    try:
        if (milliseconds := headers.get("retry-after-ms")) is not None:
            return max(0.0, float(milliseconds) / 1000)
        value = headers.get("retry-after")
        if value is None:
            return None
        if (date := email.utils.parsedate_tz(value)) is not None:
            return max(0.0, email.utils.mktime_tz(date) - time.time())
        seconds = float(value)
    except (ValueError, OverflowError):
        return None
    return max(0.0, seconds) if seconds < float("inf") else None


class ClientFaults:
    """Turns what a client raises into `AskError`, without its chain: a request's headers hold the key."""

    timeout: ClassVar[type[Exception]]
    status: ClassVar[type[Exception]]
    connection: ClassVar[type[Exception]]
    other: ClassVar[type[Exception]]  # the base of all that the client raises

    def __init__(self, key: Key, seconds: float) -> None:
        self._key, self._seconds = key, seconds

    def message_of(self, fault: Any) -> str:
        """What an answer with a bad status says."""
        return str(fault.message)

    async def __aenter__(self) -> None:
        return None

    async def __aexit__(self, kind: object, fault: BaseException | None, trace: object) -> None:
        if fault is None or isinstance(fault, AskError | asyncio.CancelledError):
            return
        if isinstance(fault, (TimeoutError, self.timeout, httpx2.TimeoutException)):
            cause = fault.__cause__ or fault
            if isinstance(cause, httpx2.ConnectTimeout | httpx2.PoolTimeout):
                raise connection_fault(fault, self._key) from None
            raise timeout_fault(self._seconds) from None
        if isinstance(fault, self.status):
            answer: Any = fault
            raise status_fault(
                answer.status_code, answer.response.headers, self.message_of(answer), self._key
            ) from None
        if isinstance(fault, (self.connection, httpx2.TransportError)):
            raise connection_fault(fault, self._key) from None
        if isinstance(fault, (self.other, ValueError, httpx2.HTTPError)):
            raise reply_fault(f"{type(fault).__name__} {fault}", self._key) from None


def _short(message: str, key: Key) -> str:
    message = key.strike(" ".join(message.split()))
    return message if len(message) <= _LONGEST else message[:_LONGEST] + "..."
