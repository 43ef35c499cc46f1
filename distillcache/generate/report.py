"""The end of a run: answers judged, `data.jsonl` and `rejected.jsonl` written, and a report of it all.

Knows nothing of the network.
"""

import json
from collections.abc import Mapping
from typing import Any

from distillcache.generate.answers import Event, RunFolder
from distillcache.generate.config import GenerateConfig
from distillcache.generate.estimate import Estimate
from distillcache.generate.filters import FILTERS, Filters
from distillcache.generate.ledger import Ledger, dollars
from distillcache.generate.prompts import Prompt
from distillcache.generate.state import State, usage_of

__all__ = ["finish"]

_FAILURES_SHOWN = 20


def finish(
    config: GenerateConfig, folder: RunFolder, state: State, ledger: Ledger, shown: Estimate
) -> dict[str, Any]:
    """Write the three files of the folder and return the report."""
    filters = Filters(
        min_response_chars=config.min_response_chars,
        min_code_chars=config.min_code_chars,
        near_duplicate=config.near_duplicate,
        leak_share=config.leak_share,
        parse=config.parse,
    )
    kept: list[str] = []
    rejected: list[str] = []
    counts: dict[str, dict[str, Any]] = {name: {"count": 0, "sample": None} for name in FILTERS}
    for prompt in state.prompts.values():
        answer = state.answers.get(prompt.id)
        if answer is None:
            continue
        record = _record(config, prompt, answer, ledger.priced)
        rejection = filters.judge(prompt, str(answer["text"]), str(answer["finish"]))
        if rejection is None:
            kept.append(_line(record))
            continue
        record |= {"rejected": rejection.filter, "detail": rejection.detail}
        rejected.append(_line(record))
        counts[rejection.filter]["count"] += 1
        if counts[rejection.filter]["sample"] is None:
            sample = {"id": prompt.id, "detail": rejection.detail, "response": str(answer["text"])[:300]}
            counts[rejection.filter]["sample"] = sample
    folder.write("data.jsonl", kept)
    folder.write("rejected.jsonl", rejected)
    report = _report(config, state, ledger, shown, len(kept), len(rejected), counts)
    folder.write("report.json", [json.dumps(report, indent=2, ensure_ascii=False)])
    return report


def _line(record: dict[str, object]) -> str:
    """One line of JSON for every reader: some take these characters for the end of a line."""
    return json.dumps(record, ensure_ascii=False).translate(
        {0x85: "\\u0085", 0x2028: "\\u2028", 0x2029: "\\u2029"}
    )


def _record(config: GenerateConfig, prompt: Prompt, answer: Event, priced: bool) -> dict[str, object]:
    usage = usage_of(answer)
    record: dict[str, object] = {
        "prompt": prompt.text,
        "response": answer["text"],
        "system": prompt.system,
        "category": prompt.category,
        "language": prompt.language,
        "difficulty": prompt.difficulty,
        "prompt_tokens": None if usage is None else usage.prompt_tokens,
        "response_tokens": None if usage is None else usage.output_tokens,
        "tokens": None if usage is None else usage.prompt_tokens + usage.output_tokens,
        "cost_usd": float(str(answer["cost_usd"])) if priced and usage is not None else None,
        "finish_reason": answer["finish"],
        "teacher": config.teacher,
        "model": answer["model"],
        "id": prompt.id,
        "origin": prompt.origin,
        "mutation": prompt.mutation,
    }
    return {
        key: value for key, value in record.items() if value is not None or key.endswith(("tokens", "usd"))
    }


def _report(
    config: GenerateConfig,
    state: State,
    ledger: Ledger,
    shown: Estimate,
    kept: int,
    rejected: int,
    filters: Mapping[str, object],
) -> dict[str, Any]:
    odd = [event for event in state.answers.values() if "odd_usage" in event]
    failed = [{"id": id, "reason": reason} for id, reason in state.failed.items()]
    return {
        "teacher": config.teacher,
        "prompts": len(state.prompts),
        "answered": len(state.answers),
        "kept": kept,
        "rejected": rejected,
        "failed": {"count": len(failed), "first": failed[:_FAILURES_SHOWN]},
        "not_asked": len(state.prompts) - len(state.answers) - len(failed),
        "stopped": state.fatal or state.stopped,
        "batches_under_way": list(state.batches),
        "filters": filters,
        "requests": {kind: state.events[kind] for kind in ("sent", "answer", "refused", "lost")},
        "odd_usage": {"count": len(odd), "first": [{"id": e["id"], "what": e["odd_usage"]} for e in odd[:3]]},
        "ledger": ledger.as_json(),
        "estimate": {
            "requests": shown.requests,
            "prompt_tokens": shown.prompt_tokens,
            "answer_tokens": shown.answer_tokens,
            "cost_usd": None if shown.cost_usd is None else [dollars(cost) for cost in shown.cost_usd],
        },
    }
