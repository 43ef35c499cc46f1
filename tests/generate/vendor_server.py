"""A server on 127.0.0.1 that speaks OpenAI's and Anthropic's protocols, batches included, and misbehaves when
told to.

It keeps its own account of what it answered, to compare a ledger with.
"""

import asyncio
import json
import random
import re
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any, Self

FAULTS = (
    "429", "429-after", "500", "503", "timeout", "reset", "malformed", "empty",
    "usage-negative", "usage-missing", "usage-total", "usage-huge",
)  # fmt: skip
UNDELIVERED = ("timeout", "reset", "malformed")


def chaos(share: float, seed: int, faults: tuple[str, ...] = FAULTS) -> Callable[[str, int], str | None]:
    """A fault for this share of requests, drawn evenly."""
    chance = random.Random(seed)
    return lambda prompt, number: chance.choice(faults) if chance.random() < share else None


def code_answer(prompt: str) -> str:
    """An answer that every filter keeps: code that parses, in the language asked for, no two alike."""
    number = abs(hash(prompt)) % 10**9
    words = " ".join(f"w{(number * (i + 7) ** 3) % 99991}" for i in range(60))
    for name, tag, code in _CODE:
        if re.search(rf"\b{re.escape(name)}(?!\w)", prompt):
            return f"Here it is: {words}.\n\n```{tag}\n{code}\n```\n"
    return f"It does this: {words}."


_CODE = (
    ("JavaScript", "javascript", "function add(left, right) { return left + right; }"),
    (
        "TypeScript",
        "typescript",
        "function add(left: number, right: number): number { return left + right; }",
    ),
    ("Java", "java", "class Sum { int add(int left, int right) { return left + right; } }"),
    ("Go", "go", "package sum\n\nfunc Add(left, right int) int { return left + right }"),
    ("Rust", "rust", "fn add(left: i64, right: i64) -> i64 { left + right }"),
    ("C++", "cpp", "int add(int left, int right) { return left + right; }"),
    ("Bash", "bash", 'add() { echo "$(( $1 + $2 ))"; }'),
    ("SQL", "sql", "SELECT customer_id, SUM(total) FROM orders GROUP BY customer_id;"),
    ("Python", "python", "def add(left, right):\n    return left + right"),
)


class VendorServer:
    """`answer(prompt)` gives texts; `fault(prompt, number)` a name of `FAULTS` or None for the number-th
    request.
    """

    def __init__(
        self,
        answer: Callable[[str], str] = code_answer,
        fault: Callable[[str, int], str | None] = lambda prompt, number: None,
        *,
        hang_seconds: float = 2.0,
        answer_seconds: float = 0.0,
    ) -> None:
        self.answer, self.fault = answer, fault
        self.hang_seconds, self.answer_seconds = hang_seconds, answer_seconds
        self.asked: Counter[str] = Counter()
        self.delivered: Counter[str] = Counter()
        self.faults: Counter[str] = Counter()
        self.tokens: Counter[str] = Counter()
        self.unreported = 0
        self.under_way = self.most_under_way = 0
        self.times: list[float] = []
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.files: dict[str, bytes] = {}
        self.batches: dict[str, dict[str, Any]] = {}
        self.batch_fault: Callable[[str, int], str | None] = lambda prompt, number: None
        self.batch_ready = True
        self.batch_asked: Counter[str] = Counter()

    def __enter__(self) -> Self:
        ready = threading.Event()
        self._loop = asyncio.new_event_loop()

        def serve() -> None:
            asyncio.set_event_loop(self._loop)
            self._server = self._loop.run_until_complete(
                asyncio.start_server(self._connection, "127.0.0.1", 0, limit=2**24)
            )
            ready.set()
            self._loop.run_forever()

        self._thread = threading.Thread(target=serve, daemon=True)
        self._thread.start()
        ready.wait(5)
        self.address = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        self.openai_url = self.address + "/v1"
        return self

    def __exit__(self, *_: object) -> None:
        async def end() -> None:
            self._server.close()
            mine = asyncio.current_task()
            tasks = [task for task in asyncio.all_tasks() if task is not mine]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

        asyncio.run_coroutine_threadsafe(end(), self._loop).result(5)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)
        self._loop.close()

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                first, *rest = head.split("\r\n")
                headers = {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in rest if line)}
                body = await reader.readexactly(int(headers.get("content-length", 0)))
                method, path, _ = first.split(" ")
                self.headers.append(headers)
                await self._serve(method, path.partition("?")[0], headers, body, writer)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            writer.close()

    async def _serve(
        self, method: str, path: str, headers: dict[str, str], body: bytes, writer: asyncio.StreamWriter
    ) -> None:
        if path in ("/v1/chat/completions", "/v1/messages") and method == "POST":
            self.under_way += 1
            self.most_under_way = max(self.most_under_way, self.under_way)
            self.times.append(time.monotonic())
            try:
                await self._chat(path, json.loads(body), writer)
            finally:
                self.under_way -= 1
        elif path == "/v1/files" and method == "POST":
            boundary = headers["content-type"].partition("boundary=")[2].strip('"').encode()
            part = next(p for p in body.split(b"--" + boundary) if b'name="file"' in p)
            name = f"file-{len(self.files)}"
            self.files[name] = part.partition(b"\r\n\r\n")[2].removesuffix(b"\r\n")
            send(writer, {"id": name, "object": "file", "bytes": len(body), "created_at": 0, "filename": "x",
                           "purpose": "batch", "status": "processed"})  # fmt: skip
        elif path.startswith("/v1/files/") and path.endswith("/content"):
            send_bytes(writer, self.files[path.split("/")[3]], "application/octet-stream")
        elif path.startswith("/v1/batches"):
            self._openai_batches(method, path, body, writer)
        elif path.startswith("/v1/messages/batches"):
            self._anthropic_batches(method, path, body, writer)
        else:
            send(writer, {"error": {"message": f"no {path}"}}, 404)

    async def _chat(self, path: str, body: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        self.bodies.append(body)
        prompt = body["messages"][-1]["content"]
        self.asked[prompt] += 1
        fault = self.fault(prompt, sum(self.asked.values()))
        if fault:
            self.faults[fault] += 1
        if self.answer_seconds:
            await asyncio.sleep(self.answer_seconds)
        if fault in ("429", "429-after", "500", "503"):
            after = {"retry-after": "0.05"} if fault == "429-after" else {}
            send(
                writer,
                {"error": {"type": "x", "message": f"told to fail with {fault}"}},
                int(fault[:3]),
                after,
            )
            return
        if fault == "timeout":
            await asyncio.sleep(self.hang_seconds)
        reply = self.reply(path, body, fault)
        if body.get("stream"):
            await self._stream(path, reply, writer, cut=fault == "reset")
        elif fault == "reset":
            data = json.dumps(reply).encode()
            writer.write(_head(200, len(data), "application/json", {}) + data[: len(data) // 2])
            await writer.drain()
        elif fault == "malformed":
            send_bytes(writer, json.dumps(reply)[:-9].encode(), "application/json")
        else:
            send(writer, reply)
        if fault == "reset":
            writer.transport.abort()
        if fault not in UNDELIVERED:
            self._account(prompt, reply["usage"])

    def _account(self, prompt: str, usage: dict[str, Any] | None) -> None:
        self.delivered[prompt] += 1
        counts = [v for v in (usage or {}).values() if isinstance(v, int)]
        if not usage or min(counts) < 0:
            self.unreported += 1
            return
        details = usage.get("prompt_tokens_details") or {}
        cached = details.get("cached_tokens", 0) + usage.get("cache_read_input_tokens", 0)
        inside = details.get("cached_tokens", 0)
        self.tokens["input"] += usage.get("prompt_tokens", usage.get("input_tokens", 0)) - inside
        self.tokens["cached"] += cached
        self.tokens["output"] += usage.get("completion_tokens", usage.get("output_tokens", 0))

    def reply(self, path: str, body: dict[str, Any], fault: str | None = None) -> dict[str, Any]:
        """The whole answer to a request, in the words of the vendor whose path it is."""
        prompt = body["messages"][-1]["content"]
        text = "" if fault == "empty" else self.answer(prompt)
        limit = body.get("max_tokens") or body.get("max_completion_tokens")
        read, written = len(prompt) // 4 + 1, len(text) // 4 + 1
        cut = written > limit
        if cut:
            text, written = text[: limit * 4], limit
        cached = read // 2
        if fault == "usage-negative":
            written = -5
        if fault == "usage-huge":
            written = limit * 10
        usage: dict[str, Any] | None
        if path.endswith("/messages"):
            usage = {
                "input_tokens": read - cached,
                "cache_read_input_tokens": cached,
                "output_tokens": written,
            }
            if fault == "usage-missing":
                usage = None
            return {
                "id": "msg_1",
                "type": "message",
                "role": "assistant",
                "model": body["model"],
                "content": [{"type": "text", "text": text}] if text else [],
                "stop_reason": "max_tokens" if cut else "end_turn",
                "stop_sequence": None,
                "usage": usage,
            }
        total = read + written + (7 if fault == "usage-total" else 0)
        usage = {"prompt_tokens": read, "completion_tokens": written, "total_tokens": total,
                 "prompt_tokens_details": {"cached_tokens": cached}}  # fmt: skip
        if fault == "usage-missing":
            usage = None
        message = {"role": "assistant", "content": text}
        return {
            "id": "c1",
            "object": "chat.completion",
            "created": 1,
            "model": body["model"],
            "usage": usage,
            "choices": [{"index": 0, "message": message, "finish_reason": "length" if cut else "stop"}],
        }

    async def _stream(
        self, path: str, reply: dict[str, Any], writer: asyncio.StreamWriter, *, cut: bool
    ) -> None:
        events: list[tuple[str | None, Any]] = []
        if path.endswith("/messages"):
            text = reply["content"][0]["text"] if reply["content"] else ""
            start = reply | {
                "content": [],
                "stop_reason": None,
                "usage": reply["usage"] | {"output_tokens": 1},
            }
            events.append(("message_start", {"message": start}))
            events.append(
                ("content_block_start", {"index": 0, "content_block": {"type": "text", "text": ""}})
            )
            for i in range(0, len(text), 50):
                delta = {"type": "text_delta", "text": text[i : i + 50]}
                events.append(("content_block_delta", {"index": 0, "delta": delta}))
            events.append(("content_block_stop", {"index": 0}))
            delta = {"stop_reason": reply["stop_reason"], "stop_sequence": None}
            usage = {"output_tokens": reply["usage"]["output_tokens"]}
            events.append(("message_delta", {"delta": delta, "usage": usage}))
            events.append(("message_stop", {}))
            lines = [f"event: {name}\ndata: {json.dumps({'type': name} | data)}\n\n" for name, data in events]
        else:
            base = {"id": "c1", "object": "chat.completion.chunk", "created": 1, "model": reply["model"]}
            choice = reply["choices"][0]
            text = choice["message"]["content"]
            chunks: list[dict[str, Any]] = [
                base
                | {"choices": [{"index": 0, "delta": {"content": text[i : i + 50]}, "finish_reason": None}]}
                for i in range(0, len(text), 50)
            ]
            end = {"index": 0, "delta": {}, "finish_reason": choice["finish_reason"]}
            chunks.append(base | {"choices": [end]})
            chunks.append(base | {"choices": [], "usage": reply["usage"]})
            lines = [f"data: {json.dumps(chunk)}\n\n" for chunk in chunks] + ["data: [DONE]\n\n"]
        writer.write(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
        )
        for line in lines[: len(lines) // 2 if cut else None]:
            data = line.encode()
            writer.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
            await writer.drain()
        if not cut:
            writer.write(b"0\r\n\r\n")

    def _openai_batches(self, method: str, path: str, body: bytes, writer: asyncio.StreamWriter) -> None:
        if method == "POST":
            asked = json.loads(body)
            name = f"batch_{len(self.batches)}"
            good, bad = [], []
            for line in self.files[asked["input_file_id"]].decode().splitlines():
                request = json.loads(line)
                prompt = request["body"]["messages"][-1]["content"]
                self.batch_asked[prompt] += 1
                fault = self.batch_fault(prompt, self.batch_asked[prompt])
                result: dict[str, Any] = {"id": "r", "custom_id": request["custom_id"], "error": None}
                if fault:
                    error = {"error": {"message": "told to fail"}}
                    bad.append(result | {"response": {"status_code": int(fault), "body": error}})
                    continue
                reply = self.reply(request["url"], request["body"])
                self._account(prompt, reply["usage"])
                good.append(result | {"response": {"status_code": 200, "body": reply}})
            batch: dict[str, Any] = {"id": name, "object": "batch", "created_at": 0,
                     "endpoint": asked["endpoint"],
                     "completion_window": "24h", "input_file_id": asked["input_file_id"],
                     "metadata": asked.get("metadata")}  # fmt: skip
            for key, results in (("output_file_id", good), ("error_file_id", bad)):
                if results:
                    batch[key] = f"file-{len(self.files)}"
                    self.files[batch[key]] = "".join(json.dumps(r) + "\n" for r in results).encode()
            self.batches[name] = batch
        state = {"status": "completed" if self.batch_ready else "in_progress"}
        if method == "GET" and path == "/v1/batches":
            send(
                writer,
                {"object": "list", "has_more": False, "data": [b | state for b in self.batches.values()]},
            )
        else:
            name = name if method == "POST" else path.split("/")[3]
            send(writer, self.batches[name] | state)

    def _anthropic_batches(self, method: str, path: str, body: bytes, writer: asyncio.StreamWriter) -> None:
        if method == "POST":
            name = f"msgbatch_{len(self.batches)}"
            results = []
            for request in json.loads(body)["requests"]:
                prompt = request["params"]["messages"][-1]["content"]
                self.batch_asked[prompt] += 1
                if self.batch_fault(prompt, self.batch_asked[prompt]):
                    error = {"type": "error", "error": {"type": "api_error", "message": "told to fail"}}
                    result: dict[str, Any] = {"type": "errored", "error": error}
                else:
                    reply = self.reply("/v1/messages", request["params"])
                    self._account(prompt, reply["usage"])
                    result = {"type": "succeeded", "message": reply}
                results.append({"custom_id": request["custom_id"], "result": result})
            self.batches[name] = {"results": results}
        if path.endswith("/results"):
            lines = "".join(json.dumps(r) + "\n" for r in self.batches[path.split("/")[4]]["results"])
            send_bytes(writer, lines.encode(), "application/x-jsonl")
            return
        if method == "GET" and path == "/v1/messages/batches":
            data = [self._anthropic_batch(name) for name in self.batches]
            send(writer, {"data": data, "has_more": False, "first_id": None, "last_id": None})
            return
        send(writer, self._anthropic_batch(name if method == "POST" else path.split("/")[4]))

    def _anthropic_batch(self, name: str) -> dict[str, Any]:
        size = len(self.batches[name]["results"])
        counts = {"canceled": 0, "errored": 0, "expired": 0, "processing": 0, "succeeded": 0}
        counts["succeeded" if self.batch_ready else "processing"] = size
        status = "ended" if self.batch_ready else "in_progress"
        url = f"{self.address}/v1/messages/batches/{name}/results" if self.batch_ready else None
        return {"id": name, "type": "message_batch", "processing_status": status, "request_counts": counts,
                "created_at": "2026-11-24T00:00:00Z", "expires_at": "2026-11-25T00:00:00Z",
                "results_url": url,
                "ended_at": None, "archived_at": None, "cancel_initiated_at": None}  # fmt: skip


def _head(status: int, length: int, kind: str, headers: dict[str, str]) -> bytes:
    lines = [f"HTTP/1.1 {status} X", f"content-type: {kind}", f"content-length: {length}"]
    return "\r\n".join([*lines, *(f"{k}: {v}" for k, v in headers.items()), "", ""]).encode()


def send(
    writer: asyncio.StreamWriter, body: object, status: int = 200, headers: dict[str, str] | None = None
) -> None:
    send_bytes(writer, json.dumps(body).encode(), "application/json", status, headers)


def send_bytes(
    writer: asyncio.StreamWriter,
    data: bytes,
    kind: str,
    status: int = 200,
    headers: dict[str, str] | None = None,
) -> None:
    writer.write(_head(status, len(data), kind, headers or {}) + data)
