"""What a model writes behind prompts: many at once, greedy or sampled, up to where a text of its own ends.

Knows nothing of problems or programs.

B prompts of a batch, T tokens of the longest.
"""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel, StoppingCriteria, StoppingCriteriaList

from distillcache.quiet import quiet_transformers
from distillcache.teach.teacher import Teacher

__all__ = ["Writing", "complete", "encode_chat", "encode_text"]

# A stop of ours is within the last of so many tokens, however short they are.
TAIL_TOKENS = 16


@dataclass(frozen=True)
class Writing:
    """How a model writes."""

    max_new_tokens: int
    temperature: float | None  # None: greedy
    top_p: float | None
    stops: tuple[str, ...]
    batch_size: int
    seed: int = 0


def encode_text(model: Teacher, text: str) -> list[int]:
    """A text as the tokenizer begins one."""
    ids: list[int] = model.tokenizer(text)["input_ids"]
    return ids


def encode_chat(model: Teacher, question: str) -> list[int]:
    """A question as the chat template puts it. The tokenizer must have one."""
    messages = [{"role": "user", "content": question}]
    text = model.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    ids: list[int] = model.tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


@torch.inference_mode()
def complete(
    model: Teacher, prompts: Sequence[Sequence[int]], writing: Writing
) -> Iterator[tuple[int, str | None]]:
    """The number of each prompt and what the model writes behind it, in the order they are done.

    None where the prompt leaves no room in the model's positions. Longest prompts first, so that what does
    not fit into memory does so at once.
    Texts may go on behind a stop, by what came in the same token.
    """
    positions = model.num_positions
    room = None if positions is None else positions - 1
    for number, prompt in enumerate(prompts):
        if room is not None and len(prompt) > room:
            yield number, None
    order = sorted(
        (n for n, prompt in enumerate(prompts) if room is None or len(prompt) <= room),
        key=lambda n: -len(prompts[n]),
    )
    for start in range(0, len(order), writing.batch_size):
        batch = order[start : start + writing.batch_size]
        texts = _batch(model, [prompts[n] for n in batch], writing, writing.seed + start)
        yield from zip(batch, texts, strict=True)


def _batch(model: Teacher, prompts: list[Sequence[int]], writing: Writing, seed: int) -> list[str]:
    tokenizer = model.tokenizer
    longest = max(map(len, prompts))
    ids_BT = torch.zeros(len(prompts), longest, dtype=torch.long)
    mask_BT = torch.zeros_like(ids_BT)
    for b, prompt in enumerate(prompts):
        ids_BT[b, longest - len(prompt) :] = torch.tensor(prompt)
        mask_BT[b, longest - len(prompt) :] = 1
    most = writing.max_new_tokens
    if model.num_positions is not None:
        most = min(most, model.num_positions - longest)
    stops = _Stops(tokenizer, writing.stops, longest)
    devices = [model.device] if model.device.type == "cuda" else []
    with _own_generation_config(model.model, tokenizer, writing), torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        written_BT = model.model.generate(  # type: ignore[operator]
            input_ids=ids_BT.to(model.device),
            attention_mask=mask_BT.to(model.device),
            max_new_tokens=most,
            stopping_criteria=StoppingCriteriaList([stops]),
        )
    return [
        _text_behind(tokenizer, prompt, written_T[longest:].tolist())
        for prompt, written_T in zip(prompts, written_BT, strict=True)
    ]


def _text_behind(tokenizer: Any, prompt: Sequence[int], written: list[int]) -> str:
    """The text of new tokens. Decoded alone, some decoders would drop their first blank."""
    before, both = (
        tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        for ids in (list(prompt), [*prompt, *written])
    )
    if both.startswith(before):
        return str(both[len(before) :])
    return str(tokenizer.decode(written, skip_special_tokens=True, clean_up_tokenization_spaces=False))


class _Stops(StoppingCriteria):
    """Which texts of a batch have one of our stops among the tokens they were just given."""

    def __init__(self, tokenizer: Any, stops: tuple[str, ...], num_prompt: int) -> None:
        self.tokenizer, self.stops, self.num_prompt = tokenizer, stops, num_prompt

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        start = max(self.num_prompt, input_ids.shape[1] - TAIL_TOKENS)
        tails = self.tokenizer.batch_decode(input_ids[:, start:].tolist())
        found = [any(stop in tail for stop in self.stops) for tail in tails]
        return torch.tensor(found, device=input_ids.device)


@contextlib.contextmanager
def _own_generation_config(model: PreTrainedModel, tokenizer: Any, writing: Writing) -> Iterator[None]:
    """The model's defaults of generation are ours inside: those it came with may sample, or forbid tokens."""
    theirs: Any = model.generation_config
    ends = getattr(theirs, "eos_token_id", None)
    ends = set(ends if isinstance(ends, list) else [ends]) | {tokenizer.eos_token_id}
    ends = sorted(each for each in ends if each is not None)
    sampled = writing.temperature is not None
    ours = GenerationConfig(  # type: ignore[no-untyped-call]
        do_sample=sampled,
        temperature=writing.temperature if sampled else None,
        top_p=(writing.top_p or 1.0) if sampled else None,
        top_k=0 if sampled else None,
        eos_token_id=ends or None,
        pad_token_id=next(
            (each for each in (tokenizer.pad_token_id, *ends) if each is not None), 0
        ),  # behind a text that has ended
    )
    try:
        model.generation_config = ours
        with quiet_transformers():
            yield
    finally:
        model.generation_config = theirs
