"""What the tests of the format share."""

import threading
from collections.abc import Iterator

import pytest


@pytest.fixture
def no_thread_left() -> Iterator[None]:
    """Whatever threads a reader took are gone when the test ends; those of others are not counted."""
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) <= before
