"""The pace of a run and the table of faults, by themselves."""

import asyncio
import email.utils
import time

import pytest

from distillcache.generate.asking import backoff_seconds
from distillcache.generate.faults import connection_fault, retry_after_seconds, status_fault, timeout_fault
from distillcache.generate.keys import Key
from distillcache.generate.limits import Pace

KEY = Key("sk-secret")


def test_tokens_a_minute_push_the_next_request_back_and_are_corrected() -> None:
    """6,000 tokens a minute are 100 a second: 50 make the next wait half a second, unless fewer were used."""

    async def gap(used: int) -> float:
        pace = Pace(None, 6_000)
        await pace.take(50)
        pace.correct(used - 50)
        begun = time.monotonic()
        await pace.take(1)
        return time.monotonic() - begun

    assert asyncio.run(gap(50)) >= 0.49
    assert asyncio.run(gap(1)) < 0.4


def test_a_pause_holds_requests_that_wait_already() -> None:
    """One that was about to go waits for the pause as well."""

    async def waited() -> float:
        pace = Pace(1200, None)
        await pace.take(1)
        begun = time.monotonic()
        waiting = asyncio.create_task(pace.take(1))
        await asyncio.sleep(0.01)
        pace.pause(0.12)
        await waiting
        return time.monotonic() - begun

    assert asyncio.run(waited()) >= 0.125


@pytest.mark.parametrize(
    ("status", "retry", "fatal", "billed"),
    [
        (400, False, False, False),
        (401, False, True, False),
        (403, False, True, False),
        (404, False, True, False),
        (408, True, False, True),
        (409, True, False, False),
        (422, False, False, False),
        (429, True, False, False),
        (500, True, False, False),
        (503, True, False, False),
        (504, True, False, True),
        (529, True, False, False),
    ],
)
def test_each_status_means_what_the_table_says(status: int, retry: bool, fatal: bool, billed: bool) -> None:
    """Tried again, given up, or the end of the run; perhaps on the bill or not."""
    fault = status_fault(status, {}, "message", KEY)
    assert (fault.retry, fault.fatal, fault.maybe_billed) == (retry, fatal, billed)


def test_an_empty_account_ends_the_run() -> None:
    """A 429 that says the money is gone will say so again."""
    fault = status_fault(429, {}, "You exceeded your quota insufficient_quota", KEY)
    assert fault.fatal and not fault.retry


def test_a_connection_never_made_is_not_on_the_bill_a_broken_one_may_be() -> None:
    """By the client's own exception."""
    import httpx2

    assert not connection_fault(httpx2.ConnectError("no route"), KEY).maybe_billed
    assert connection_fault(httpx2.ReadError("reset"), KEY).maybe_billed
    assert timeout_fault(3).maybe_billed and timeout_fault(3).retry


def test_reasons_are_one_short_line_without_the_key() -> None:
    """Whatever a server sends."""
    fault = status_fault(500, {}, "a\nb sk-secret " + "x" * 1000, KEY)
    assert "\n" not in fault.reason and "sk-secret" not in fault.reason and len(fault.reason) < 350


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "2"}, 2.0),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after": "-3"}, 0.0),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "inf"}, None),
        ({"retry-after-ms": "250", "retry-after": "9"}, 0.25),
    ],
)
def test_retry_after_is_read_in_every_form(headers: dict[str, str], seconds: float | None) -> None:
    """Seconds, milliseconds, or nonsense."""
    assert retry_after_seconds(headers) == seconds


def test_retry_after_may_be_a_date() -> None:
    """Ten seconds from now."""
    date = email.utils.formatdate(time.time() + 10, usegmt=True)
    assert 8 <= (retry_after_seconds({"retry-after": date}) or 0) <= 10


def test_backoff_doubles_with_jitter_up_to_a_minute() -> None:
    """Between half and all of base times two to the number of tries."""
    for attempt in range(1, 12):
        whole = min(0.5 * 2 ** (attempt - 1), 60)
        waits = [backoff_seconds(0.5, attempt) for _ in range(50)]
        assert whole / 2 <= min(waits) < max(waits) <= whole


def test_a_key_shows_itself_nowhere() -> None:
    """Not in repr, str, a format, a pickle; and it is struck out of JSON too."""
    import json
    import pickle

    key = Key('a"b\\c')
    assert 'a"b' not in f"{key!r} {key} {[key]}"
    with pytest.raises(TypeError):
        pickle.dumps(key)
    assert key.strike(json.dumps({"x": 'a"b\\c'})) == '{"x": "[key]"}'
    assert Key("").strike("text") == "text"
