"""Log-probabilities over OpenAI's protocol: those of an answer, or those of a text that is given.

    answer            /chat/completions with `logprobs` and `top_logprobs`
    prompt_logprobs   /completions with a prompt of token ids and vLLM's `prompt_logprobs`
    echo, echo_text   /completions with `echo` and `logprobs`, a prompt of token ids or of text

A server that leaves out in silence what it was asked for is told by its first reply, and not asked again.
Knows nothing of tokenizers.
"""

import asyncio
import json
import math
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from distillcache.generate.faults import reply_fault
from distillcache.generate.keys import Key
from distillcache.generate.logprobs import Entry, Position, Said
from distillcache.generate.openai_teacher import FINISH, Faults, OpenAITeacher, reported_usage
from distillcache.generate.prices import Usage
from distillcache.generate.teacher import AskError

__all__ = ["LogprobReply", "LogprobServer"]

_AS_ID = re.compile(r"token_id:(\d+)")
# OpenAI's older interface spells what is no whole character as `bytes:\xe2\x80`.
_AS_BYTES = re.compile(r"bytes:((?:\\x[0-9a-f]{2}|[ -~])+)")
_TOO_LARGE_ID = 1 << 31


@dataclass(frozen=True)
class LogprobReply:
    """What was said, and what the server reported of it, as in `Answer`."""

    said: Said
    usage: Usage | None
    model: str
    odd_usage: str | None


class LogprobServer(OpenAITeacher):
    """One model behind one server that gives `top` log-probabilities a token.

    `token_ids`: ask a server that is not OpenAI's to name tokens by their ids, in vLLM's way.
    """

    def __init__(
        self, model: str, key: Key, *, base_url: str | None, seconds: float, top: int, token_ids: bool
    ) -> None:
        super().__init__(model, key, base_url=base_url, seconds=seconds, stream=False)
        self._top = top
        named = base_url is not None and token_ids
        self._extra: dict[str, Any] = {"return_tokens_as_token_ids": True} if named else {}

    async def answer(
        self, messages: Sequence[Mapping[str, str]], max_tokens: int, temperature: float | None
    ) -> LogprobReply:
        """An answer to a chat, token by token. Raises `AskError`."""
        limit = "max_tokens" if self._own_server else "max_completion_tokens"
        body: dict[str, Any] = {
            "model": self._model,
            "messages": list(messages),
            limit: max_tokens,
            "logprobs": True,
            "top_logprobs": self._top,
            "extra_body": self._extra,
        }
        if temperature is not None:
            body["temperature"] = temperature
        reply, choice = await self._chosen(self._client.chat.completions.with_raw_response.create, body)
        return self._reply(reply, max_tokens, self._chat(choice))

    async def score(self, prompt: Sequence[int] | str, num_tokens: int, by: str) -> LogprobReply:
        """Log-probabilities of a given text of about so many tokens. Raises `AskError`."""
        # One token is generated, and thrown away: many servers refuse to generate none.
        body: dict[str, Any] = {"model": self._model, "prompt": prompt, "max_tokens": 1}
        if by == "prompt_logprobs":
            body["extra_body"] = {"prompt_logprobs": self._top}
        else:
            body |= {"echo": True, "logprobs": self._top, "extra_body": self._extra}
        reply, choice = await self._chosen(self._client.completions.with_raw_response.create, body)
        by_id = by == "prompt_logprobs"
        positions = self._prompt_logprobs(choice) if by_id else self._echo(choice, num_tokens)
        text = choice.get("text") if body.get("echo") else None
        return self._reply(reply, 1, Said(self._struck(text) or "", "stop", positions))

    async def _chosen(
        self, create: Callable[..., Awaitable[Any]], body: dict[str, Any]
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """The reply to a request, and its one choice."""
        async with Faults(self._key, self._seconds), asyncio.timeout(self._seconds):
            raw = await create(**body)
            reply = json.loads(raw.content)
        choices = reply.get("choices") if isinstance(reply, dict) else None
        choice = choices[0] if isinstance(choices, list) and choices else None
        if not isinstance(choice, dict):
            raise reply_fault("no `choices`", self._key)
        return reply, choice

    def _reply(self, reply: dict[str, Any], max_tokens: int, said: Said) -> LogprobReply:
        usage, odd = reported_usage(reply.get("usage"), max_tokens)
        return LogprobReply(said, usage, str(reply.get("model") or self._model), odd)

    def _chat(self, choice: dict[str, Any]) -> Said:
        message = choice.get("message")
        if not isinstance(message, dict):
            raise reply_fault("no `choices` with a message", self._key)
        text, refusal = message.get("content") or "", message.get("refusal")
        if refusal or not isinstance(text, str):
            return Said(self._key.strike(str(refusal or "")), "refusal", ())
        logprobs = choice.get("logprobs")
        content = logprobs.get("content") if isinstance(logprobs, dict) else None
        if not isinstance(content, list):
            content = []
        if text and not content:
            raise _ignored("`logprobs`", "an answer without any")
        positions = tuple(
            Position(self._entry(each), tuple(self._entry(other) for other in each.get("top_logprobs") or ()))
            for each in content
            if isinstance(each, dict)
        )
        if positions and not any(each.top for each in positions):
            raise _ignored("`top_logprobs`", "an answer with none but its own tokens'")
        finish = FINISH.get(str(choice.get("finish_reason")), "other")
        return Said(self._key.strike(text), finish, positions)

    def _prompt_logprobs(self, choice: dict[str, Any]) -> tuple[Position, ...]:
        found = choice.get("prompt_logprobs")
        if not isinstance(found, list):
            raise _ignored("`prompt_logprobs`", "no such field in its reply", "; try --ask echo")
        return tuple(self._scored(each) for each in found)

    def _scored(self, each: object) -> Position:
        """One position of `prompt_logprobs`: who knows the prompt knows which is its own."""
        if each is None:
            return Position(None, ())
        if not isinstance(each, dict):
            raise reply_fault("`prompt_logprobs` hold no object", self._key)
        top = []
        for number, about in each.items():
            if not isinstance(about, dict) or not str(number).isdigit() or int(number) >= _TOO_LARGE_ID:
                raise reply_fault("`prompt_logprobs` are not by token id", self._key)
            text = about.get("decoded_token")
            top.append(Entry(_number(about.get("logprob")), int(number), self._struck(text), None))
        return Position(None, tuple(top))

    def _echo(self, choice: dict[str, Any], num_tokens: int) -> tuple[Position, ...]:
        found = choice.get("logprobs")
        if not isinstance(found, dict):
            raise _ignored("`logprobs`", "no such field in its reply")
        tokens, tops = found.get("tokens"), found.get("top_logprobs")
        values = found.get("token_logprobs")
        if tokens is None:
            # llama.cpp gives those of a chat here, of what it wrote itself.
            raise _ignored("`echo`", "`logprobs` without `tokens`")
        if not isinstance(tokens, list) or not isinstance(values, list) or len(values) != len(tokens):
            raise reply_fault("`logprobs` without `tokens` and `token_logprobs`", self._key)
        if len(tokens) < 2 < num_tokens:
            raise _ignored("`echo`", "only what it wrote itself")
        if not isinstance(tops, list) or len(tops) != len(tokens) or not any(tops):
            raise _ignored("`logprobs`", "none but the tokens' own")
        positions = []
        for token, value, top in zip(tokens, values, tops, strict=True):
            others = top.items() if isinstance(top, dict) else ()
            positions.append(
                Position(self._named(token, value), tuple(self._named(name, lp) for name, lp in others))
            )
        return tuple(positions)

    def _entry(self, each: object) -> Entry:
        """One entry of a chat's `logprobs`."""
        if not isinstance(each, dict):
            raise reply_fault("`logprobs` hold no object", self._key)
        named = self._named(each.get("token"), each.get("logprob"))
        number, spelled = each.get("id"), each.get("bytes")
        if named.id is not None:
            # The bytes are of the words `token_id:N` then.
            return named
        known = isinstance(number, int) and not isinstance(number, bool) and 0 <= number < _TOO_LARGE_ID
        if not isinstance(spelled, list) or not all(isinstance(b, int) and 0 <= b < 256 for b in spelled):
            spelled = None
        return Entry(
            named.logprob,
            number if known else None,
            named.text,
            named.spelled if spelled is None else bytes(spelled),
        )

    def _named(self, token: object, logprob: object) -> Entry:
        if not isinstance(token, str):
            raise reply_fault("`logprobs` without a token", self._key)
        if (match := _AS_ID.fullmatch(token)) and int(match[1]) < _TOO_LARGE_ID:
            return Entry(_number(logprob), int(match[1]), None, None)
        if "\\x" in token and (match := _AS_BYTES.fullmatch(token)):
            spelled = re.sub(r"\\x([0-9a-f]{2})", lambda found: chr(int(found[1], 16)), match[1])
            return Entry(_number(logprob), None, None, spelled.encode("latin-1"))
        return Entry(_number(logprob), None, self._struck(token), None)

    def _struck(self, text: object) -> str | None:
        return self._key.strike(text) if isinstance(text, str) else None


def _number(value: object) -> float:
    """A log-probability; where there is none, or the -9999 that stands for none, minus infinity."""
    if not isinstance(value, int | float) or isinstance(value, bool) or math.isnan(value) or value <= -9999:
        return -math.inf
    return float(value)


def _ignored(field: str, found: str, remedy: str = "") -> AskError:
    return AskError(
        f"the server ignores {field}: it sent {found}{remedy}; use a server that gives log-probabilities, "
        "or let it write text by `distillcache generate`, and train by `distillcache learn --type output`",
        fatal=True,
        maybe_billed=True,
    )
