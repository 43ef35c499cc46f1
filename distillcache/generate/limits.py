"""The pace of a run: requests and tokens a minute, and pauses that the server asks for.

Even pacing without bursts: each request moves the moment at which the next may go.
Knows nothing of what is sent.
"""

import asyncio
from collections.abc import Callable

__all__ = ["Pace"]


class Pace:
    """`None` for a limit is none. `clock` gives seconds, as the event loop's own does."""

    def __init__(
        self,
        requests_per_minute: int | None,
        tokens_per_minute: int | None,
        clock: Callable[[], float] | None = None,
    ) -> None:
        self._request_seconds = 60 / requests_per_minute if requests_per_minute else 0.0
        self._token_seconds = 60 / tokens_per_minute if tokens_per_minute else 0.0
        self._clock = clock or (lambda: asyncio.get_running_loop().time())
        self._request_free = self._token_free = self._paused_until = float("-inf")

    async def take(self, tokens: int) -> None:
        """Wait until a request of about `tokens` tokens, prompt and answer, may go."""
        while (wait := self._paused_until - self._clock()) > 0:
            await asyncio.sleep(wait)
        now = self._clock()
        start = max(now, self._request_free, self._token_free)
        self._request_free = start + self._request_seconds
        self._token_free = start + tokens * self._token_seconds
        if start > now:
            await asyncio.sleep(start - now)
        while (wait := self._paused_until - self._clock()) > 0:
            await asyncio.sleep(wait)

    def correct(self, tokens: int) -> None:
        """Count `tokens` more, or fewer, than `take` was told."""
        self._token_free += tokens * self._token_seconds

    def pause(self, seconds: float) -> None:
        """No request goes for this long: `retry-after` speaks for the account, not for one request."""
        self._paused_until = max(self._paused_until, self._clock() + seconds)
