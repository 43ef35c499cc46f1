"""Teachers that speak Anthropic's protocol. The one home of `anthropic`.

The client's own retries are off, so that each attempt is counted once and paced by the run.
Answers are read from the JSON as it came, so that the usage is what the server reported.
"""

import asyncio
import json
import os
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

import anthropic
import httpx2

from distillcache.errors import ConfigError
from distillcache.generate.faults import ClientFaults, reply_fault, status_fault
from distillcache.generate.keys import Key
from distillcache.generate.prices import Usage
from distillcache.generate.teacher import Answer, AskError, BatchState, Finish, Question

__all__ = ["AnthropicTeacher"]

_OFFICIAL = "https://api.anthropic.com"
_FINISH: dict[str, Finish] = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "refusal": "refusal",
}


class AnthropicTeacher:
    """One Claude model. `base_url` None is Anthropic itself."""

    def __init__(self, model: str, key: Key, *, base_url: str | None, seconds: float, stream: bool) -> None:
        if base_url is None and os.environ.get("ANTHROPIC_BASE_URL"):
            raise ConfigError("ANTHROPIC_BASE_URL: set in the environment; give the address as --base-url")
        self._model = model
        self._key = key
        self._seconds = seconds
        self._stream = stream
        self._client = anthropic.AsyncAnthropic(
            api_key=key.reveal() or "none",
            base_url=base_url or _OFFICIAL,
            max_retries=0,
            timeout=httpx2.Timeout(seconds),
        )

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()

    async def ask(self, question: Question) -> Answer:
        """One message. Raises `AskError`."""
        async with _Faults(self._key, self._seconds):
            async with asyncio.timeout(self._seconds):
                body = self._body(question)
                # Sampling settings left the client's signature in its version 2; the API still takes them.
                extra = {} if question.temperature is None else {"temperature": question.temperature}
                if self._stream:
                    async with self._client.messages.stream(**body, extra_body=extra) as stream:
                        reply = (await stream.get_final_message()).model_dump(mode="json")
                else:
                    raw = await self._client.messages.with_raw_response.create(**body, extra_body=extra)
                    reply = json.loads(await raw.read())
                return self._answer(reply, question.max_tokens)

    async def submit(self, questions: Sequence[Question], tag: str) -> str:
        """Start a message batch; the tag goes into each request's id, as a batch has no metadata."""
        requests: list[Any] = []
        for question in questions:
            params = self._body(question)
            if question.temperature is not None:
                params["temperature"] = question.temperature
            requests.append({"custom_id": f"{tag}-{question.id}", "params": params})
        async with _Faults(self._key, self._seconds):
            return (await self._client.messages.batches.create(requests=requests)).id

    async def find(self, tag: str, at_most: int) -> list[str]:
        """Batches whose requests carry the tag.

        Only results show the ids of requests, and only when a batch has ended: while one of a size that may
        be ours is
        under way, the answer is an `AskError` to ask again.
        """
        found: list[str] = []
        async with _Faults(self._key, self._seconds):
            async for batch in self._client.messages.batches.list(limit=100):
                counts = batch.request_counts
                size = (
                    counts.processing + counts.succeeded + counts.errored + counts.canceled + counts.expired
                )
                if batch.archived_at is not None or size > at_most:
                    continue
                if batch.processing_status != "ended":
                    raise AskError(f"batch {batch.id} is under way and may be of this run", retry=True)
                async for line in await self._client.messages.batches.results(batch.id):
                    if line.custom_id.startswith(f"{tag}-"):
                        found.append(batch.id)
                    break
        return found

    async def look(self, batch: str) -> BatchState:
        """Where the batch stands."""
        async with _Faults(self._key, self._seconds):
            state = await self._client.messages.batches.retrieve(batch)
            counts = state.request_counts
            note = f"{state.processing_status}, {counts.processing} in work, {counts.succeeded} done"
            return BatchState(batch, state.processing_status == "ended", note)

    async def collect(self, batch: str) -> AsyncIterator[tuple[str, Answer | AskError]]:
        """Results of a batch that has ended."""
        results: list[dict[str, Any]] = []
        async with _Faults(self._key, self._seconds):
            async for line in await self._client.messages.batches.results(batch):
                results.append(line.model_dump(mode="json"))
        for each in results:
            yield str(each.get("custom_id", "")).rpartition("-")[2], self._result(each.get("result") or {})

    def _result(self, result: Mapping[str, Any]) -> Answer | AskError:
        kind = result.get("type")
        if kind == "succeeded":
            try:
                return self._answer(result.get("message"), None)
            except AskError as fault:
                return fault
        error = (result.get("error") or {}).get("error") or {}
        status = 400 if error.get("type") == "invalid_request_error" else 500
        return status_fault(status, {}, f"{kind}: {error.get('message', 'no reason given')}", self._key)

    def _body(self, question: Question) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": self._model,
            "max_tokens": question.max_tokens,
            "messages": [{"role": "user", "content": question.prompt}],
        }
        if question.system is not None:
            body["system"] = question.system
        return body

    def _answer(self, reply: object, max_tokens: int | None) -> Answer:
        content = reply.get("content") if isinstance(reply, dict) else None
        if not isinstance(reply, dict) or not isinstance(content, list):
            raise reply_fault("no JSON object with `content`", self._key)
        parts: list[str] = []
        for block in content:
            if isinstance(block, dict) and block.get("type") == "text":
                if not isinstance(block.get("text"), str):
                    raise reply_fault("a text block holds no text", self._key)
                parts.append(block["text"])
        usage, odd = _usage(reply.get("usage"), max_tokens)
        finish = _FINISH.get(str(reply.get("stop_reason")), "other")
        return Answer("".join(parts), finish, usage, str(reply.get("model") or self._model), odd)


def _usage(reported: object, max_tokens: int | None) -> tuple[Usage | None, str | None]:
    """Tokens as reported: `input_tokens` are those neither read from nor written to the cache."""
    if not isinstance(reported, Mapping):
        return None, "no usage reported"
    read, written = (reported.get(f"cache_{kind}_input_tokens") or 0 for kind in ("read", "creation"))
    details = reported.get("cache_creation")
    hour = (details.get("ephemeral_1h_input_tokens") or 0) if isinstance(details, Mapping) else 0
    prompt, output = reported.get("input_tokens"), reported.get("output_tokens")
    for number in (prompt, output, read, written, hour):
        if not isinstance(number, int) or isinstance(number, bool) or number < 0:
            return None, f"usage cannot be counted: {str(dict(reported))[:120]}"
    assert isinstance(prompt, int) and isinstance(output, int)
    odd = None
    if hour > written:
        odd = f"{hour} tokens cached for an hour among {written} cached"
    elif max_tokens is not None and output > max_tokens:
        odd = f"{output} tokens of answer reported, at most {max_tokens} asked for"
    return Usage(prompt, output, read, max(0, written - hour), hour), odd


class _Faults(ClientFaults):
    """What this vendor's client raises, as `AskError`."""

    timeout = anthropic.APITimeoutError
    status = anthropic.APIStatusError
    connection = anthropic.APIConnectionError
    other = anthropic.AnthropicError
