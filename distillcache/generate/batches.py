"""Questions handed in as batches: half the price, hours later.

Submit, look, collect; what a batch did not answer goes into the next one.
A batch is found again by the run's tag, so a start from another machine, with the same settings and an empty
folder,
collects what the first one handed in instead of paying again.
Knows nothing of how a vendor is spoken to.
"""

from collections import Counter
from collections.abc import Awaitable, Callable
from decimal import Decimal
from typing import TypeVar

from distillcache.generate.answers import Event, RunFolder
from distillcache.generate.asking import backoff_seconds, patient_sleep, question_of
from distillcache.generate.config import GenerateConfig
from distillcache.generate.ledger import Ledger
from distillcache.generate.progress import Progress
from distillcache.generate.prompts import Prompt, prompt_bytes
from distillcache.generate.state import State, answer_event
from distillcache.generate.teacher import Answer, AskError, BatchTeacher

__all__ = ["Batches"]

_T = TypeVar("_T")


class Batches:
    """Asks all that is missing in `state` by batches; `run` returns when nothing is left or the run must
    stop.
    """

    def __init__(
        self,
        config: GenerateConfig,
        teacher: BatchTeacher,
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
        self._handed_in: Counter[str] = Counter()
        self._spent: str | None = None
        self._reserved: dict[str, list[Decimal]] = {}

    async def run(self) -> None:
        """Until all are answered or failed."""
        try:
            for batch, ids in self._state.batches.items():
                self._reserve(batch, [self._state.prompts[id] for id in ids])
            if self._state.missing() and self._config.look_for_batches:
                await self._find()
            while not self._halted():
                # A batch found by its tag may hold anything: hand in nothing until it is collected.
                while all(self._state.batches.values()) and not self._halted() and await self._submit():
                    pass
                if not self._state.batches:
                    self._state.stopped = self._state.stopped or self._spent
                    return
                await self._look()
        except AskError as fault:
            self._state.fatal = fault.reason

    def _halted(self) -> bool:
        if self._state.stopped is None and self._stop():
            self._state.stopped = "asked to stop"
        return self._state.stopped is not None

    async def _find(self) -> list[str]:
        """Batches of this run that the folder does not know, from another machine or a stop at a bad
        moment.
        """
        while not self._halted():
            try:
                found = await self._patiently(
                    lambda: self._teacher.find(self._folder.tag, len(self._state.prompts)), once=True
                )
            except AskError as fault:
                if not fault.retry:
                    raise
                self._tell(f"waiting: {fault.reason}; --no-look-for-batches goes on without")
                await patient_sleep(self._config.poll_seconds, self._halted)
                continue
            new = [
                batch
                for batch in found
                if batch not in self._state.batches | dict.fromkeys(self._state.collected)
            ]
            for batch in new:
                await self._keep({"kind": "batch", "batch": batch, "ids": []})
                self._tell(f"found batch {batch}, handed in before")
            return new
        return []

    async def _submit(self) -> bool:
        """Hand in what is missing, as far as the budget goes; False when there is nothing to hand in."""
        tries = self._config.max_attempts
        self._spent = None
        missing = [
            p
            for p in self._state.missing()
            if self._handed_in[p.id] < tries and p.id not in self._state.failed
        ]
        if not missing:
            return False
        chunk: list[Prompt] = []
        total = Decimal(0)
        for prompt in missing:
            if len(chunk) < self._config.batch_requests and self._ledger.fits(total + self._ceiling(prompt)):
                total += self._ceiling(prompt)
                chunk.append(prompt)
        if not chunk:
            self._spent = f"--max-cost of {self._config.max_cost:g} US dollars"
            return False
        questions = [question_of(prompt, self._config) for prompt in chunk]
        for attempt in range(1, tries + 1):
            try:
                batch = await self._teacher.submit(questions, self._folder.tag)
                break
            except AskError as fault:
                if not fault.retry or attempt == tries:
                    raise
                wait = fault.retry_after or backoff_seconds(self._config.retry_seconds, attempt)
                await patient_sleep(wait, self._halted)
                # The request may have arrived although its answer did not: look before handing in twice.
                if self._halted() or (fault.maybe_billed and await self._find()):
                    return True
        self._handed_in.update(prompt.id for prompt in chunk)
        await self._keep({"kind": "batch", "batch": batch, "ids": [prompt.id for prompt in chunk]})
        self._reserve(batch, chunk)
        self._tell(f"batch {batch} handed in with {len(chunk)} requests")
        return True

    async def _look(self) -> None:
        """Collect what has ended; wait when nothing has."""
        ended = 0
        for batch in list(self._state.batches):
            state = await self._patiently(lambda batch=batch: self._teacher.look(batch))  # type: ignore[misc]
            self._tell(f"batch {batch}: {state.note}")
            if state.ended:
                ended += 1
                await self._collect(batch)
        if not ended:
            await patient_sleep(self._config.poll_seconds, self._halted)

    async def _collect(self, batch: str) -> None:
        async def read() -> list[tuple[str, Answer | AskError]]:
            return [result async for result in self._teacher.collect(batch)]

        for id, result in await self._patiently(read):
            prompt = self._state.prompts.get(id)
            if prompt is None or id in self._state.answers:
                continue
            if isinstance(result, AskError):
                ceiling = str(self._ceiling(prompt))
                kind = "lost" if result.maybe_billed else "refused"
                self._note({"kind": kind, "id": id, "reason": result.reason, "ceiling": ceiling})
                if not result.retry or self._handed_in[id] >= self._config.max_attempts:
                    self._note({"kind": "failed", "id": id, "reason": result.reason})
                continue
            cost = self._ledger.cost(result.usage, batch=True)
            event = answer_event(prompt, result, cost, self._ceiling(prompt), batch=batch)
            self._folder.note(event)
            self._state.apply(event)
        # One sync for all: until it is done the batch counts as not collected, and is collected again.
        await self._keep({"kind": "collected", "batch": batch})
        for ceiling_usd in self._reserved.pop(batch, []):
            self._ledger.release(ceiling_usd)
        self._tell(f"batch {batch} collected")

    def _reserve(self, batch: str, prompts: list[Prompt]) -> None:
        for prompt in prompts:
            self._ledger.commit(self._ceiling(prompt))
            self._reserved.setdefault(batch, []).append(self._ceiling(prompt))

    def _ceiling(self, prompt: Prompt) -> Decimal:
        return self._ledger.ceiling(prompt_bytes(prompt), self._config.max_tokens, batch=True)

    async def _patiently(self, call: Callable[[], Awaitable[_T]], *, once: bool = False) -> _T:
        """A call that costs nothing, tried again where that helps."""
        attempt = 1
        while True:
            try:
                return await call()
            except AskError as fault:
                if once or not fault.retry or attempt >= self._config.max_attempts or self._halted():
                    raise
                wait = fault.retry_after or backoff_seconds(self._config.retry_seconds, attempt)
                await patient_sleep(wait, self._halted)
                attempt += 1

    async def _keep(self, event: Event) -> None:
        await self._folder.keep(event)
        self._state.apply(event)

    def _note(self, event: Event) -> None:
        self._folder.note(event)
        self._state.apply(event)

    def _tell(self, note: str) -> None:
        spent = self._ledger.total.cost if self._ledger.priced else None
        state = self._state
        self._progress(Progress(len(state.answers), len(state.failed), len(state.prompts), spent, note))
