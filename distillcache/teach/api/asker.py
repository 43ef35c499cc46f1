"""Every question asked once: what is missing goes to the API, what was said is on the disk before it counts.

Pace, retries, prices, the ledger and the folder of answers are those of `generate`.
Knows nothing of tokens or rows.
"""

import asyncio
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

from distillcache.errors import ConfigError, TeacherError
from distillcache.generate.answers import Event, RunFolder
from distillcache.generate.asking import Asking
from distillcache.generate.estimate import Estimate, estimate
from distillcache.generate.keys import Key, find_key
from distillcache.generate.ledger import Ledger
from distillcache.generate.openai_logprobs import LogprobServer
from distillcache.generate.prices import find_price
from distillcache.generate.progress import Progress
from distillcache.generate.prompts import Prompt, prompt_bytes
from distillcache.generate.state import State, usage_of
from distillcache.generate.teacher import Answer, Question
from distillcache.teach.api.store import SaidStore
from distillcache.teach.config import TeachConfig

__all__ = ["Confirm", "Heard", "ask_all", "folder_of"]

Confirm = Callable[[Estimate], bool]


@dataclass(frozen=True)
class Heard:
    """All that was said, by the id of its question.

    `references` into the store, `prompt_tokens` as reported, reasons of what `failed`, names of the `models`.
    """

    store: SaidStore
    references: dict[str, str]
    prompt_tokens: dict[str, int]
    failed: dict[str, str]
    models: tuple[str, ...]
    ledger: dict[str, Any]


def folder_of(config: TeachConfig) -> Path:
    """The folder that keeps what was said: beside the cache, whose bytes are not to depend on it."""
    cache = config.cache if config.cache.name else config.cache.absolute()
    return config.answers or cache.with_name(f"{cache.name}.answers")


def ask_all(
    config: TeachConfig,
    prompts: Sequence[Prompt],
    *,
    settled: bool,
    confirm: Confirm,
    progress: Callable[[Progress], None],
) -> Heard:
    """Ask what has no answer yet, and return all answers, those of earlier starts too.

    `settled`: the cache's plan is made, so that nothing is asked any more; what was given up stays so.
    Raises ConfigError, and TeacherError when the API refuses all questions, when the budget is spent or the
    estimate is not confirmed; then nothing is lost, and the next start asks for the rest.
    """
    asking = config.asking()
    price = find_price(
        asking.vendor,
        asking.model,
        file=asking.prices,
        input=asking.price_input,
        output=asking.price_output,
        other_server=asking.base_url is not None,
        unknown=asking.price_unknown,
    )
    key = Key("") if settled else find_key(
        asking.vendor, base_url=asking.base_url, key_file=asking.key_file, key_env=asking.key_env
    )  # fmt: skip
    folder = folder_of(config)
    # The folder is of no set of questions: each answer is known by its question, whatever else was asked.
    with RunFolder(folder, _kept(config), [], key) as run:
        store = SaidStore(folder)
        ledger = Ledger(price, asking.cost_limit)
        state = State(prompts, run.events, ledger, run.note)
        if settled:
            state.failed |= _given_up(config, run.events, state)
        elif missing := state.missing():
            ceilings = [ledger.ceiling(prompt_bytes(each), asking.max_tokens) for each in missing]
            ceiling = sum(ceilings, start=Decimal(0))
            shown = estimate(
                missing,
                price,
                max_tokens=asking.max_tokens,
                batch=False,
                ceiling=ceiling,
                spent=ledger.total.cost + ledger.unsettled,
            )
            if (price is None or ceiling > 0) and not confirm(shown):
                raise TeacherError(f"{config.teacher}: the estimate was not confirmed; nothing was asked")
            server = LogprobServer(
                asking.model,
                key,
                base_url=asking.base_url,
                seconds=asking.request_seconds,
                top=config.row_k,
                token_ids=config.token_ids,
            )
            teacher = _Asker(server, store, config)
            asyncio.run(_run(Asking(asking, teacher, run, state, ledger, progress, lambda: False), teacher))
        if state.fatal is not None or state.stopped is not None:
            why = state.fatal or f"stopped at {state.stopped}"
            done = f"{len(state.answers)} of {len(state.prompts)} answers are kept in {folder}"
            raise TeacherError(f"{config.teacher}: {why}; {done}, and the next start asks for the others")
        usages = {id: usage_of(each) for id, each in state.answers.items()}
        return Heard(
            store,
            {id: str(each["text"]) for id, each in state.answers.items()},
            {id: usage.prompt_tokens for id, usage in usages.items() if usage is not None},
            dict(state.failed),
            tuple(sorted({str(each["model"]) for each in state.answers.values()})),
            ledger.as_json(),
        )


def _kept(config: TeachConfig) -> dict[str, object]:
    """The settings that shape what is said: others on the same folder are refused."""
    answers = config.ask == "answers"
    return {
        "teacher": config.teacher,
        "base_url": config.base_url,
        "ask": config.ask,
        "top_logprobs": config.row_k,
        "token_ids": config.token_ids,
        "max_tokens": config.max_tokens if answers else None,
        "temperature": config.temperature,
    }


def _given_up(config: TeachConfig, events: Sequence[Event], state: State) -> dict[str, str]:
    """Reasons of the questions that have no answer. Raises ConfigError if one was never asked."""
    reasons = {str(each["id"]): str(each["reason"]) for each in events if each["kind"] == "failed"}
    missing = [each.id for each in state.missing()]
    unknown = sum(id not in reasons for id in missing)
    if unknown:
        raise ConfigError(
            f"{config.cache}: was made without {unknown} of the {len(state.prompts)} questions that the "
            f"corpus makes now; give it the corpus it was made from and the answers in {folder_of(config)}, "
            "or name another cache folder"
        )
    return {id: reasons[id] for id in missing}


class _Asker:
    """A teacher as `Asking` knows it, whose answers are references into the store."""

    def __init__(self, server: LogprobServer, store: SaidStore, config: TeachConfig) -> None:
        self._server, self._store = server, store
        self._by, self._temperature = config.ask, config.temperature

    async def ask(self, question: Question) -> Answer:
        """One request. Raises `AskError`."""
        asked = json.loads(question.prompt)
        if "messages" in asked:
            reply = await self._server.answer(asked["messages"], asked["max_tokens"], self._temperature)
        elif "tokens" in asked:
            reply = await self._server.score(asked["tokens"], len(asked["tokens"]), self._by)
        else:
            reply = await self._server.score(asked["text"], asked["num_tokens"], self._by)
        reference = await self._store.keep(reply.said.pack())
        return Answer(reference, "other", reply.usage, reply.model, reply.odd_usage)

    async def close(self) -> None:
        """Close the connections."""
        await self._server.close()


async def _run(asking: Asking, teacher: _Asker) -> None:
    try:
        await asking.run()
    finally:
        await teacher.close()
