"""Questions asked at once, some under way at any time: paced, tried again where that helps, within the
budget.

Knows nothing of how a vendor is spoken to.
"""

import asyncio
import random
from collections.abc import Callable, Iterator
from decimal import Decimal

from distillcache.generate.answers import RunFolder
from distillcache.generate.config import GenerateConfig
from distillcache.generate.estimate import expected_tokens
from distillcache.generate.ledger import Ledger, dollars
from distillcache.generate.limits import Pace
from distillcache.generate.progress import Progress
from distillcache.generate.prompts import Prompt, prompt_bytes
from distillcache.generate.state import State, answer_event
from distillcache.generate.teacher import Answer, AskError, Question, Teacher

__all__ = ["Asking", "backoff_seconds", "patient_sleep", "question_of"]

# A server that asks for more than this is down for today; better to say so than to hang.
_LONGEST_WAIT_SECONDS = 900.0
_LONGEST_BACKOFF_SECONDS = 60.0
# So many prompts failing one after another are not the prompts' fault.
_FAILURES_IN_A_ROW = 20


class Asking:
    """Asks all that is missing in `state`; `run` returns when all are answered, failed, or the run must
    stop.
    """

    def __init__(
        self,
        config: GenerateConfig,
        teacher: Teacher,
        folder: RunFolder,
        state: State,
        ledger: Ledger,
        progress: Callable[[Progress], None],
        stop: Callable[[], bool],
    ) -> None:
        self._config = config
        self._teacher = teacher
        self._folder = folder
        self._state = state
        self._ledger = ledger
        self._progress = progress
        self._stop = stop
        self._pace = Pace(config.requests_per_minute, config.tokens_per_minute)
        self._failed_in_a_row = 0

    async def run(self) -> None:
        """Ask with as many workers as requests may be under way."""
        missing = self._state.missing()
        queue = iter(missing)
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(min(self._config.concurrency, len(missing))):
                    group.create_task(self._worker(queue))
        except BaseExceptionGroup as faults:
            # A full disk stops every worker alike: one of them says it.
            raise faults.exceptions[0] from None

    async def _worker(self, queue: Iterator[Prompt]) -> None:
        for prompt in queue:
            if self._halted():
                return
            await self._one(prompt)

    def _halted(self) -> bool:
        if self._state.stopped is None and self._stop():
            self._state.stopped = "asked to stop"
        return self._state.stopped is not None or self._state.fatal is not None

    async def _one(self, prompt: Prompt) -> None:
        question = question_of(prompt, self._config)
        ceiling = self._ledger.ceiling(prompt_bytes(prompt), question.max_tokens)
        for attempt in range(1, self._config.max_attempts + 1):
            if not await self._ledger.reserve(ceiling):
                self._state.stopped = (
                    self._state.stopped or f"--max-cost of {self._config.max_cost:g} US dollars"
                )
                return
            try:
                tokens = expected_tokens(prompt, question.max_tokens)
                await self._pace.take(tokens)
                if self._halted():
                    return
                fault = await self._attempt(prompt, question, ceiling, tokens)
            finally:
                self._ledger.release(ceiling)
            if fault is None:
                self._failed_in_a_row = 0
                self._tell()
                return
            if fault.fatal or (fault.retry_after or 0) > _LONGEST_WAIT_SECONDS:
                self._state.fatal = fault.reason
            if not fault.retry or attempt == self._config.max_attempts or self._state.fatal == fault.reason:
                self._fail(prompt, fault.reason)
                return
            if fault.retry_after is not None:
                self._pace.pause(fault.retry_after)
            await patient_sleep(backoff_seconds(self._config.retry_seconds, attempt), self._halted)
            if self._halted():
                return

    async def _attempt(
        self, prompt: Prompt, question: Question, ceiling: Decimal, tokens: int
    ) -> AskError | None:
        """One request, its beginning and its end on disk; None when it was answered."""
        self._note({"kind": "sent", "id": prompt.id, "ceiling": dollars(ceiling)})
        try:
            answer = await self._teacher.ask(question)
        except AskError as fault:
            kind = "lost" if fault.maybe_billed else "refused"
            self._note({"kind": kind, "id": prompt.id, "reason": fault.reason, "ceiling": dollars(ceiling)})
            return fault
        await self._keep(prompt, answer, ceiling)
        if answer.usage is not None:
            self._pace.correct(answer.usage.prompt_tokens + answer.usage.output_tokens - tokens)
        return None

    async def _keep(self, prompt: Prompt, answer: Answer, ceiling: Decimal) -> None:
        event = answer_event(prompt, answer, self._ledger.cost(answer.usage), ceiling)
        await self._folder.keep(event)
        self._state.apply(event)

    def _note(self, event: dict[str, object]) -> None:
        self._folder.note(event)
        self._state.apply(event)

    def _fail(self, prompt: Prompt, reason: str) -> None:
        self._note({"kind": "failed", "id": prompt.id, "reason": reason})
        self._failed_in_a_row += 1
        if self._failed_in_a_row >= max(_FAILURES_IN_A_ROW, 2 * self._config.concurrency):
            self._state.fatal = (
                self._state.fatal or f"{self._failed_in_a_row} prompts in a row failed, last: {reason}"
            )
        self._tell()

    def _tell(self) -> None:
        spent = self._ledger.total.cost if self._ledger.priced else None
        state = self._state
        self._progress(Progress(len(state.answers), len(state.failed), len(state.prompts), spent))


def question_of(prompt: Prompt, config: GenerateConfig) -> Question:
    """The request for a prompt."""
    return Question(prompt.id, prompt.text, prompt.system, config.max_tokens, config.temperature)


def backoff_seconds(base: float, attempt: int) -> float:
    """Pause after the `attempt`-th try: doubling, between half and all of it by chance, at most a minute."""
    return min(base * 2.0 ** (attempt - 1), _LONGEST_BACKOFF_SECONDS) * random.uniform(0.5, 1.0)


async def patient_sleep(seconds: float, halted: Callable[[], bool]) -> None:
    """Sleep, but wake soon after `halted` becomes true."""
    end = asyncio.get_running_loop().time() + seconds
    while (left := end - asyncio.get_running_loop().time()) > 0 and not halted():
        await asyncio.sleep(min(left, 0.2))
