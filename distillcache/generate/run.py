"""A run: prompts to a teacher, every answer on disk before it counts, then filtered into JSONL.

Starting again on the same folder asks only for what is missing; nothing is asked again that was answered.
Knows no vendor, and draws nothing: progress and the estimate go to the functions it is given.
"""

import asyncio
from collections.abc import Callable
from typing import Any

from distillcache.errors import TeacherError
from distillcache.generate.answers import RunFolder
from distillcache.generate.asking import Asking
from distillcache.generate.batches import Batches
from distillcache.generate.config import GenerateConfig
from distillcache.generate.estimate import Estimate, estimate
from distillcache.generate.keys import Key, find_key
from distillcache.generate.ledger import Ledger
from distillcache.generate.own_prompts import read_prompts
from distillcache.generate.prices import Price, find_price
from distillcache.generate.progress import Progress
from distillcache.generate.prompts import Prompt, make_prompts, prompt_bytes
from distillcache.generate.report import finish
from distillcache.generate.state import State
from distillcache.generate.teacher import Teacher

__all__ = ["Declined", "generate", "prompts_of"]


class Declined(Exception):
    """The estimate was not confirmed; nothing was asked."""


def prompts_of(config: GenerateConfig) -> list[Prompt]:
    """The prompts of a run, made or read; the same for the same settings. Raises `ConfigError`."""
    if config.prompts is not None:
        return read_prompts(config.prompts, config.system)
    assert config.count is not None
    return make_prompts(
        config.count,
        seed=config.seed,
        templates=config.templates,
        code=config.code,
        categories=config.categories,
        languages=config.languages,
        difficulties=config.difficulties,
        system=config.system,
    )


def generate(
    config: GenerateConfig,
    *,
    confirm: Callable[[Estimate], bool],
    progress: Callable[[Progress], None] = lambda _: None,
    stop: Callable[[], bool] = lambda: False,
) -> dict[str, Any]:
    """Ask for what is missing, filter everything, write `data.jsonl`, `rejected.jsonl` and `report.json`.

    `confirm` is shown the estimate before the first request, if there is one to make. `stop` is looked at
    before each request: when true, those under way are waited for, and the rest is left for another start.
    Returns the report. Raises `ConfigError` for settings, `Declined`, and `TeacherError` when the teacher
    refuses all questions; the report is written in that case too.
    """
    price = find_price(
        config.vendor,
        config.model,
        file=config.prices,
        input=config.price_input,
        output=config.price_output,
        other_server=config.base_url is not None,
        unknown=config.price_unknown,
    )
    key = _key(config)
    prompts = prompts_of(config)
    with RunFolder(config.out, config.kept(), prompts, key) as folder:
        ledger = Ledger(price, config.cost_limit)
        state = State(prompts, folder.events, ledger, folder.note)
        shown = _estimate(config, state, ledger, price)
        try:
            if (shown.requests or state.batches) and not _spent(config, state, ledger):
                if not confirm(shown):
                    raise Declined
                asyncio.run(_ask(config, key, folder, state, ledger, progress, stop))
        finally:
            report = finish(config, folder, state, ledger, shown)
    if state.fatal is not None:
        raise TeacherError(
            f"{config.teacher}: {state.fatal}; answers so far are in {config.out}, start again to go on"
        )
    return report


def _estimate(config: GenerateConfig, state: State, ledger: Ledger, price: Price | None) -> Estimate:
    missing = state.missing()
    ceilings = [ledger.ceiling(prompt_bytes(p), config.max_tokens, batch=config.batch) for p in missing]
    spent = ledger.total.cost + ledger.unsettled
    total = sum(ceilings, start=ledger.total.cost * 0)
    return estimate(
        missing, price, max_tokens=config.max_tokens, batch=config.batch, ceiling=total, spent=spent
    )


def _spent(config: GenerateConfig, state: State, ledger: Ledger) -> bool:
    """Whether the budget has no room for any request that is missing, and nothing is under way."""
    ceilings = [
        ledger.ceiling(prompt_bytes(p), config.max_tokens, batch=config.batch) for p in state.missing()
    ]
    if state.batches or not ceilings or ledger.fits(min(ceilings)):
        return False
    state.stopped = f"--max-cost of {config.max_cost:g} US dollars"
    return True


def _key(config: GenerateConfig) -> Key:
    if config.vendor == "local":
        return Key("")
    return find_key(config.vendor, base_url=config.base_url, key_file=config.key_file, key_env=config.key_env)


def _teacher(config: GenerateConfig, key: Key) -> Teacher:
    # Imported here: a vendor's client takes a second to import, torch more, and only one of them is needed.
    if config.vendor == "local":
        from distillcache.generate.local_teacher import LocalTeacher

        return LocalTeacher(config.model)
    how: dict[str, Any] = {
        "base_url": config.base_url,
        "seconds": config.request_seconds,
        "stream": config.stream,
    }
    if config.vendor == "openai":
        from distillcache.generate.openai_teacher import OpenAITeacher

        return OpenAITeacher(config.model, key, **how)
    from distillcache.generate.anthropic_teacher import AnthropicTeacher

    return AnthropicTeacher(config.model, key, **how)


async def _ask(
    config: GenerateConfig,
    key: Key,
    folder: RunFolder,
    state: State,
    ledger: Ledger,
    progress: Callable[[Progress], None],
    stop: Callable[[], bool],
) -> None:
    teacher = _teacher(config, key)
    try:
        if config.batch:
            await Batches(config, teacher, folder, state, ledger, progress, stop).run()  # type: ignore[arg-type]
        else:
            await Asking(config, teacher, folder, state, ledger, progress, stop).run()
    finally:
        await teacher.close()
