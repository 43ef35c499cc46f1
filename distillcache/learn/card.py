"""The model card of a student: README.md beside its weights.

Names teacher, cache, losses, scores and counts; no path and nothing else of the machine.
Knows nothing of models.
"""

from collections.abc import Mapping
from typing import Any

from distillcache.learn.config import LearnConfig
from distillcache.learn.objective import Objective
from distillcache.learn.result import LearnResult
from distillcache.learn.schedule import Schedule
from distillcache.learn.scores import Scores
from distillcache_shards.cache import Cache

__all__ = ["model_card", "score_words"]

SOFT = {
    "forward-kl": "forward KL",
    "reverse-kl": "reverse KL",
    "js": "Jensen-Shannon divergence",
    "renormalised": "forward KL to the kept ids, renormalised",
}


def model_card(
    name: str,
    student: str,
    cache: Cache,
    config: LearnConfig,
    schedule: Schedule,
    result: LearnResult,
    *,
    online: str | None,
) -> str:
    """The text of a card, Markdown. `name` is the model's, `student` what it was before.

    `online`: the teacher beside it, if it did not learn from rows.
    """
    teacher = online or teacher_name(cache.about)
    source = "from its logits" if online else "from a cache of its log-probabilities"
    facts = [
        ("teacher", teacher),
        ("student", f"{student}, {result.num_parameters:,} parameters"),
        ("cache", f"plan {cache.plan_sha256[:16]}, {cache.row_kind} rows, {cache.num_rows:,} of them"),
        ("trained on", f"{result.num_train:,} sequences, {_steps_words(result)}"),
        ("held out", f"{result.num_held_out:,} sequences"),
        ("loss", _loss_words(schedule)),
        *_adapter_facts(config),
        (
            "learning rate",
            f"{config.learning_rate:g}, {config.schedule}, {config.warmup_steps:,} steps of warm-up",
        ),
        ("seed", str(config.seed)),
    ]
    lines = [
        "---",
        "library_name: transformers",
        "pipeline_tag: text-generation",
        "tags: [distillcache, knowledge-distillation]",
        "---",
        "",
        f"# {name}",
        "",
        f"A student of {teacher}, distilled {source} by distillcache.",
        "",
        *_table(("", ""), facts),
    ]
    if result.before is not None and result.after is not None:
        lines += [
            "",
            "## On held-out records",
            "",
            *_table(("", "before", "after"), _before_and_after(result.before, result.after)),
            "",
            _kl_words(schedule.start),
        ]
    lines += [
        "",
        "## Use",
        "",
        "```python",
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        "tokenizer = AutoTokenizer.from_pretrained(folder)",
        "model = AutoModelForCausalLM.from_pretrained(folder)",
        'ids = tokenizer("The", return_tensors="pt")',
        "print(tokenizer.decode(model.generate(**ids, max_new_tokens=50)[0]))",
        "```",
        "",
    ]
    return "\n".join(lines)


def teacher_name(about: Mapping[str, Any]) -> str:
    """The teacher as the cache names it for people."""
    name, revision = about.get("teacher") or "an unnamed teacher", about.get("revision")
    return f"{name} at {str(revision)[:12]}" if revision else str(name)


def _steps_words(result: LearnResult) -> str:
    if result.best_step is None:
        return f"{result.num_steps:,} steps"
    return f"the best of {result.num_steps:,} steps, number {result.best_step:,}"


def _adapter_facts(config: LearnConfig) -> list[tuple[str, str]]:
    if config.lora_rank is None:
        return []
    layers = ", ".join(config.lora_targets) or "all linear layers but the output head"
    return [("LoRA, merged", f"rank {config.lora_rank}, on {layers}")]


def _loss_words(schedule: Schedule) -> str:
    first, last = schedule.start, schedule.at(schedule.num_steps - 1)
    if first.soft_loss is None:
        return "cross-entropy with the text"
    soft = SOFT[first.soft_loss]
    if first.alpha == last.alpha:
        words = f"{first.alpha:g} cross-entropy + {1 - first.alpha:g} {soft}"
    else:
        words = f"alpha cross-entropy + (1 - alpha) {soft}, alpha from {first.alpha:g} to {last.alpha:g}"
    if first.temperature == last.temperature:
        return f"{words}, temperature {first.temperature:g}"
    return f"{words}, temperature from {first.temperature:g} to {last.temperature:g}"


def _kl_words(objective: Objective) -> str:
    if objective.row_kind == "topk":
        return "KL to the teacher in nats a token, at temperature 1, the ids not kept in one bucket."
    return (
        f"KL to the teacher in nats a token, at temperature {objective.row_temperature:g}: "
        "estimated without bias from sampled rows."
    )


def _before_and_after(before: Scores, after: Scores) -> list[tuple[str, str, str]]:
    pairs = zip(score_words(before), score_words(after), strict=True)
    return [(name, first, last) for (name, first), (_, last) in pairs]


def score_words(scores: Scores) -> list[tuple[str, str]]:
    """Each score with its name, for a table; "-" where the rows do not tell."""

    def share(value: float | None) -> str:
        return "-" if value is None else f"{100 * value:.1f} %"

    low, high = share(scores.acceptance_min), share(scores.acceptance_max)
    bits = scores.bits_per_byte
    return [
        ("KL to the teacher, nats", f"{scores.kl:.4f}"),
        ("cross-entropy, nats", f"{scores.hard_loss:.4f}"),
        ("perplexity", f"{scores.perplexity:,.2f}"),
        ("bits a byte", "-" if bits is None else f"{bits:.4f}"),
        ("same most likely token", share(scores.top1_agreement)),
        ("calibration error", share(scores.calibration_error)),
        ("acceptance", low if low == high else f"{low.removesuffix(' %')} to {high}"),
    ]


def _table(headings: tuple[str, ...], rows: list[Any]) -> list[str]:
    def line(cells: tuple[str, ...]) -> str:
        return "| " + " | ".join(cells) + " |"

    return [line(headings), line(("---",) * len(headings)), *(line(row) for row in rows)]
