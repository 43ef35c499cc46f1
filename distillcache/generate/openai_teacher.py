"""Teachers that speak OpenAI's protocol: OpenAI itself, vLLM, llama.cpp, SGLang, Ollama. The one home of
`openai`.

The client's own retries are off, so that each attempt is counted once and paced by the run.
Answers are read from the JSON as it came, so that the usage is what the server reported, not what a model
class made
of it.
"""

import asyncio
import io
import json
import os
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

import httpx2
import openai

from distillcache.errors import ConfigError
from distillcache.generate.faults import ClientFaults, reply_fault, status_fault
from distillcache.generate.keys import Key
from distillcache.generate.prices import Usage
from distillcache.generate.teacher import Answer, AskError, BatchState, Finish, Question

__all__ = ["FINISH", "Faults", "OpenAITeacher", "reported_usage"]

_OFFICIAL = "https://api.openai.com/v1"
FINISH: dict[str, Finish] = {"stop": "stop", "length": "length", "content_filter": "refusal"}
_TAG = "distillcache"
_ENDED = frozenset({"completed", "failed", "expired", "cancelled"})


class OpenAITeacher:
    """One model behind one server. `base_url` None is OpenAI itself."""

    def __init__(self, model: str, key: Key, *, base_url: str | None, seconds: float, stream: bool) -> None:
        if base_url is None and os.environ.get("OPENAI_BASE_URL"):
            raise ConfigError("OPENAI_BASE_URL: set in the environment; give the address as --base-url")
        self._model = model
        self._key = key
        self._own_server = base_url is not None
        self._seconds = seconds
        self._stream = stream
        self._client = openai.AsyncOpenAI(
            # A server without keys still wants a header, and the client one to send.
            api_key=key.reveal() or "none",
            base_url=base_url or _OFFICIAL,
            max_retries=0,
            timeout=httpx2.Timeout(seconds),
        )

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()

    async def ask(self, question: Question) -> Answer:
        """One chat completion. Raises `AskError`."""
        async with Faults(self._key, self._seconds):
            async with asyncio.timeout(self._seconds):
                body = self._body(question)
                if self._stream:
                    reply = await self._streamed(body)
                else:
                    raw = await self._client.chat.completions.with_raw_response.create(**body)
                    reply = json.loads(raw.content)
                return self._answer(reply, question.max_tokens)

    async def submit(self, questions: Sequence[Question], tag: str) -> str:
        """Upload a file of requests and start a batch on it, the tag in its metadata."""
        lines = [
            json.dumps(
                {"custom_id": q.id, "method": "POST", "url": "/v1/chat/completions", "body": self._body(q)}
            )
            for q in questions
        ]
        async with Faults(self._key, self._seconds):
            data = io.BytesIO("".join(line + "\n" for line in lines).encode())
            file = await self._client.files.create(file=(f"{tag}.jsonl", data), purpose="batch")
            batch = await self._client.batches.create(
                input_file_id=file.id,
                endpoint="/v1/chat/completions",
                completion_window="24h",
                metadata={_TAG: tag},
            )
            return batch.id

    async def find(self, tag: str, at_most: int) -> list[str]:
        """Batches with the tag in their metadata, of any size."""
        async with Faults(self._key, self._seconds):
            return [
                b.id
                async for b in self._client.batches.list(limit=100)
                if (b.metadata or {}).get(_TAG) == tag
            ]

    async def look(self, batch: str) -> BatchState:
        """Where the batch stands."""
        async with Faults(self._key, self._seconds):
            state = await self._client.batches.retrieve(batch)
            counts = state.request_counts
            done = f", {counts.completed} of {counts.total} done" if counts else ""
            return BatchState(batch, state.status in _ENDED, f"{state.status}{done}")

    async def collect(self, batch: str) -> AsyncIterator[tuple[str, Answer | AskError]]:
        """Answers of the output file, faults of the error file."""
        async with Faults(self._key, self._seconds):
            state = await self._client.batches.retrieve(batch)
            texts = [
                (await self._client.files.content(file)).text
                for file in (state.output_file_id, state.error_file_id)
                if file
            ]
        for text in texts:
            for line in text.splitlines():
                if line.strip():
                    yield self._result(line)

    def _result(self, line: str) -> tuple[str, Answer | AskError]:
        try:
            result = json.loads(line)
            custom_id = str(result["custom_id"])
        except (ValueError, KeyError, TypeError):
            return "", reply_fault("a line of the batch's results", self._key)
        response = result.get("response") or {}
        status, body = response.get("status_code"), response.get("body")
        try:
            if status == 200:
                return custom_id, self._answer(body, None)
        except AskError as fault:
            return custom_id, fault
        error = result.get("error") or (body if isinstance(body, dict) else {}).get("error") or {}
        message = str(error.get("message", "no reason given")) if isinstance(error, dict) else str(error)
        return custom_id, status_fault(int(status or 500), {}, message, self._key)

    def _body(self, question: Question) -> dict[str, Any]:
        messages = [{"role": "user", "content": question.prompt}]
        if question.system is not None:
            messages.insert(0, {"role": "system", "content": question.system})
        # OpenAI's newer models refuse `max_tokens`; many other servers know nothing else.
        limit = "max_tokens" if self._own_server else "max_completion_tokens"
        body: dict[str, Any] = {"model": self._model, "messages": messages, limit: question.max_tokens}
        if question.temperature is not None:
            body["temperature"] = question.temperature
        return body

    async def _streamed(self, body: dict[str, Any]) -> dict[str, Any]:
        """The pieces of a streamed answer, put together as if it had come whole."""
        text: list[str] = []
        refusal: list[str] = []
        finish, usage, model = None, None, None
        body = body | {"stream": True, "stream_options": {"include_usage": True}}
        async with await self._client.chat.completions.create(**body) as stream:
            async for chunk in stream:
                model = chunk.model or model
                if chunk.usage is not None:
                    usage = chunk.usage.model_dump()
                for choice in chunk.choices or ():
                    text.append(choice.delta.content or "")
                    refusal.append(choice.delta.refusal or "")
                    finish = choice.finish_reason or finish
        if finish is None:
            raise AskError("connection broke: the stream ended early", retry=True, maybe_billed=True)
        message = {"content": "".join(text), "refusal": "".join(refusal) or None}
        return {"model": model, "usage": usage, "choices": [{"message": message, "finish_reason": finish}]}

    def _answer(self, reply: object, max_tokens: int | None) -> Answer:
        if not isinstance(reply, dict):
            raise reply_fault("no JSON object", self._key)
        choices = reply.get("choices")
        choice = choices[0] if isinstance(choices, list) and choices else None
        message = choice.get("message") if isinstance(choice, dict) else None
        if not isinstance(choice, dict) or not isinstance(message, dict):
            raise reply_fault("no `choices` with a message", self._key)
        refusal = message.get("refusal")
        text = refusal or message.get("content") or ""
        if not isinstance(text, str):
            raise reply_fault("the message is no text", self._key)
        finish = "refusal" if refusal else FINISH.get(str(choice.get("finish_reason")), "other")
        usage, odd = reported_usage(reply.get("usage"), max_tokens)
        return Answer(text, finish, usage, str(reply.get("model") or self._model), odd)


def reported_usage(reported: object, max_tokens: int | None) -> tuple[Usage | None, str | None]:
    """Tokens as reported: `prompt_tokens` holds the cached ones, which are taken out of it here."""
    if not isinstance(reported, Mapping):
        return None, "no usage reported"
    prompt, output, total = (reported.get(f"{kind}_tokens") for kind in ("prompt", "completion", "total"))
    details = reported.get("prompt_tokens_details")
    details = details if isinstance(details, Mapping) else {}
    read, written = details.get("cached_tokens") or 0, details.get("cache_write_tokens") or 0
    for number in (prompt, output, read, written):
        if not isinstance(number, int) or isinstance(number, bool) or number < 0:
            return None, f"usage cannot be counted: {str(dict(reported))[:120]}"
    assert isinstance(prompt, int) and isinstance(output, int)
    odd = None
    if read + written > prompt:
        odd = f"{read + written} cached tokens in a prompt of {prompt}"
    elif total is not None and total != prompt + output:
        odd = f"total_tokens is {total}, not {prompt + output}"
    elif max_tokens is not None and output > max_tokens:
        odd = f"{output} tokens of answer reported, at most {max_tokens} asked for"
    return Usage(max(0, prompt - read - written), output, read, written), odd


class Faults(ClientFaults):
    """What this vendor's client raises, as `AskError`."""

    timeout = openai.APITimeoutError
    status = openai.APIStatusError
    connection = openai.APIConnectionError
    other = openai.OpenAIError

    def message_of(self, fault: Any) -> str:
        """With the code, which tells an empty account from a busy one."""
        body = fault.body if isinstance(fault.body, dict) else {}
        return f"{fault.message} {body.get('code') or ''}"
