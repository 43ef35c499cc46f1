"""Where a run stands, told by its events: which prompts are answered, which failed, what is under way
elsewhere.

Events of earlier starts are replayed into the ledger; new ones are applied as they are written.
Knows nothing of the network.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict
from decimal import Decimal

from distillcache.generate.answers import Event
from distillcache.generate.ledger import Ledger, dollars
from distillcache.generate.prices import Usage
from distillcache.generate.prompts import Prompt
from distillcache.generate.teacher import Answer

__all__ = ["State", "answer_event"]


class State:
    """`answers` and `failed` by prompt id; `batches` handed in and not collected, with the ids in them."""

    def __init__(
        self,
        prompts: Sequence[Prompt],
        events: Sequence[Event],
        ledger: Ledger,
        note: Callable[[Event], None],
    ) -> None:
        self.prompts = {prompt.id: prompt for prompt in prompts}
        self.answers: dict[str, Event] = {}
        self.failed: dict[str, str] = {}
        self.batches: dict[str, list[str]] = {}
        self.collected: set[str] = set()
        self.events: Counter[str] = Counter()
        self.fatal: str | None = None
        self.stopped: str | None = None
        self._ledger = ledger
        open_requests: dict[str, Event] = {}
        for event in events:
            id = str(event.get("id"))
            if event["kind"] == "sent":
                open_requests[id] = event
            elif event["kind"] in ("answer", "refused", "lost"):
                open_requests.pop(id, None)
            self.apply(event)
        # What earlier starts failed at is asked again: that is what starting again is for.
        self.failed.clear()
        for id, event in open_requests.items():
            lost = {
                "kind": "lost",
                "id": id,
                "reason": "stopped while under way",
                "ceiling": event["ceiling"],
            }
            note(lost)
            self.apply(lost)

    def missing(self) -> list[Prompt]:
        """Prompts without an answer and not in a batch under way, in order."""
        away = {id for ids in self.batches.values() for id in ids}
        return [p for p in self.prompts.values() if p.id not in self.answers and p.id not in away]

    def apply(self, event: Event) -> None:
        """Count an event, in memory and in the ledger."""
        kind, id = str(event["kind"]), str(event.get("id"))
        self.events[kind] += 1
        if kind == "answer":
            if id in self.answers or id not in self.prompts:
                return
            self.answers[id] = event
            self.failed.pop(id, None)
            self._ledger.book(self.prompts[id].category, usage_of(event), Decimal(str(event["cost_usd"])))
            if "ceiling" in event:
                self._ledger.lose(Decimal(str(event["ceiling"])))
        elif kind == "lost":
            self._ledger.lose(Decimal(str(event["ceiling"])))
        elif kind == "failed":
            self.failed[id] = str(event["reason"])
        elif kind == "batch":
            ids = event["ids"]
            assert isinstance(ids, list)
            self.batches[str(event["batch"])] = ids
        elif kind == "collected":
            self.batches.pop(str(event["batch"]), None)
            self.collected.add(str(event["batch"]))


def answer_event(
    prompt: Prompt, answer: Answer, cost: Decimal, ceiling: Decimal, *, batch: str | None = None
) -> Event:
    """The event of an answer, with everything the API reported about it; without usage, the most it can have
    cost.
    """
    event: Event = {
        "kind": "answer",
        "id": prompt.id,
        # Half a character, as a cut-off answer may end with, cannot be written as UTF-8.
        "text": answer.text.encode("utf-16", "surrogatepass").decode("utf-16", "replace"),
        "finish": answer.finish,
        "model": answer.model,
        "usage": None if answer.usage is None else asdict(answer.usage),
        "cost_usd": dollars(cost),
    }
    if answer.usage is None:
        event["ceiling"] = dollars(ceiling)
    if answer.odd_usage is not None:
        event["odd_usage"] = answer.odd_usage
    if batch is not None:
        event["batch"] = batch
    return event


def usage_of(event: Event) -> Usage | None:
    """The usage in an answer's event."""
    usage = event["usage"]
    return Usage(**usage) if isinstance(usage, dict) else None
