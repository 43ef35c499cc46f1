"""What a teacher behind an API must do: answer one question, or say why not and whether it may have been paid
for.

The vendors' clients live in one module each; everything else knows only this page.
"""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from distillcache.generate.prices import Usage

__all__ = ["Answer", "AskError", "BatchState", "BatchTeacher", "Question", "Teacher"]

Finish = Literal["stop", "length", "refusal", "other"]


@dataclass(frozen=True)
class Question:
    """One request: `max_tokens` bounds the answer, None leaves `temperature` to the server."""

    id: str
    prompt: str
    system: str | None
    max_tokens: int
    temperature: float | None


@dataclass(frozen=True)
class Answer:
    """One answer. `usage` is None when the API reported none that can be counted; `odd_usage` says what was
    wrong.
    """

    text: str
    finish: Finish
    usage: Usage | None
    model: str
    odd_usage: str | None = None


class AskError(Exception):
    """No answer.

    `retry`: trying again may help. `fatal`: no other question will fare better. `maybe_billed`: the request
    reached
    the server and its end is unknown, so it may be on the bill. `retry_after`: seconds the server asks to
    wait.
    """

    def __init__(
        self,
        reason: str,
        *,
        retry: bool = False,
        fatal: bool = False,
        maybe_billed: bool = False,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(reason)
        self.reason = reason
        self.retry = retry
        self.fatal = fatal
        self.maybe_billed = maybe_billed
        self.retry_after = retry_after


class Teacher(Protocol):
    """Answers questions, many at once."""

    async def ask(self, question: Question) -> Answer:
        """Raises `AskError`; never any other exception for what the server does."""

    async def close(self) -> None:
        """Give connections back."""


@dataclass(frozen=True)
class BatchState:
    """Where a batch stands: `ended` when its results can be collected, `note` in the vendor's words."""

    id: str
    ended: bool
    note: str


class BatchTeacher(Teacher, Protocol):
    """A teacher with a batch interface."""

    async def submit(self, questions: Sequence[Question], tag: str) -> str:
        """Hand in questions under a tag of this run; returns the batch's id."""

    async def find(self, tag: str, at_most: int) -> list[str]:
        """Ids of batches of at most so many requests handed in under this tag, from this machine or another.

        Raises `AskError` to be asked again while a batch is under way that may be one of them.
        """

    async def look(self, batch: str) -> BatchState:
        """Where the batch stands."""

    def collect(self, batch: str) -> AsyncIterator[tuple[str, Answer | AskError]]:
        """Question ids with answers or reasons, in any order, once the batch has ended."""
