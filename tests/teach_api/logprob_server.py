"""A server on 127.0.0.1 in front of a transformers model that gives log-probabilities, as servers do.

    openai   entries with `token` and `bytes`; no entry for the end of the turn
    vllm     `token_id:N` in place of text, where it is asked for; an entry for the end; `prompt_logprobs`
    llama    entries with `id` and `bytes`; the end is an entry with an empty token

It keeps its own account of what it was asked, and leaves things out, or fails, when told to.
"""

import json
import threading
import time
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

import torch

Reply = dict[str, Any]


class LogprobServer:
    """Answers are made of the ids in `speakable`, all when None, or are `says`, and end after `end_after`.

    `ignores` names fields that are left out in silence, `most` bounds the log-probabilities a token.
    `fault(number)` is the status of the number-th request, None for an answer.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        style: str = "openai",
        speakable: list[int] | None = None,
        ignores: tuple[str, ...] = (),
        most: int = 1000,
        refuses_ids: bool = False,
        seconds: float = 0.0,
        end_after: int | None = None,
        says: list[int] | None = None,
        fault: Callable[[int], int | None] = lambda number: None,
    ) -> None:
        self.model, self.tokenizer, self.style = model.eval(), tokenizer, style
        self.speakable, self.ignores, self.most = speakable, ignores, most
        self.refuses_ids, self.seconds, self.fault = refuses_ids, seconds, fault
        self.end_after, self.says = end_after, says
        self.error = "told to fail"
        self.asked: Counter[str] = Counter()
        self.bodies: list[Reply] = []
        self.headers: list[dict[str, str]] = []
        self._turn = threading.Lock()

    def __enter__(self) -> Self:
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:  # the name that http.server looks for
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                server.headers.append({k.lower(): v for k, v in self.headers.items()})
                status, reply = server.serve(self.path, body)
                data = json.dumps(reply).encode()
                self.send_response(status)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: object) -> None:
                """Quiet."""

        class Quiet(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_: object) -> None:
                """A client that was killed has hung up."""

        self._server = Quiet(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join(5)
        self._server.server_close()

    def serve(self, path: str, body: Reply) -> tuple[int, Reply]:
        """Status and reply of one request."""
        with self._turn:
            self.bodies.append(body)
            self.asked[json.dumps(body.get("messages") or body.get("prompt"))] += 1
            status = self.fault(len(self.bodies))
        time.sleep(self.seconds)
        if status is not None:
            return status, {"error": {"message": self.error}}
        with self._turn, torch.inference_mode():
            if path == "/v1/chat/completions":
                return 200, self._chat(body)
            if path == "/v1/completions":
                if self.refuses_ids and not isinstance(body["prompt"], str):
                    return 400, {"error": {"message": "prompt must be a string"}}
                return 200, self._complete(body)
        return 404, {"error": {"message": f"no {path}"}}

    def _chat(self, body: Reply) -> Reply:
        prompt = self.tokenizer.apply_chat_template(
            body["messages"], add_generation_prompt=True, return_dict=True
        )["input_ids"]
        limit = body.get("max_tokens") or body.get("max_completion_tokens")
        ids, logprobs_LV = self._generate(prompt, limit)
        end = self.tokenizer.eos_token_id
        ended = bool(ids) and ids[-1] == end
        text = self.tokenizer.decode(ids[:-1] if ended else ids, clean_up_tokenization_spaces=False)
        as_ids = self.style == "vllm" and body.get("return_tokens_as_token_ids", False)
        content = []
        for place, number in enumerate(ids):
            if number == end and ended and place == len(ids) - 1 and self.style == "openai":
                continue
            row_V = logprobs_LV[place]
            entry = self._entry(number, row_V, as_ids)
            top = row_V.topk(min(body["top_logprobs"], self.most)).indices.tolist()
            entry["top_logprobs"] = [self._entry(each, row_V, as_ids) for each in top]
            if "top_logprobs" in self.ignores:
                entry["top_logprobs"] = []
            content.append(entry)
        choice: Reply = {
            "index": 0,
            "message": {"role": "assistant", "content": text},
            "finish_reason": "stop" if ended else "length",
            "logprobs": None if "logprobs" in self.ignores else {"content": content, "refusal": None},
        }
        return self._reply(body, "chat.completion", choice, len(prompt), len(ids))

    def _generate(self, prompt: list[int], limit: int) -> tuple[list[int], torch.Tensor]:
        """Greedy tokens among those that are speakable, and the whole model's log-probabilities at each."""
        ids: list[int] = []
        rows: list[torch.Tensor] = []
        past: Any = None
        next_BT = torch.tensor([prompt])
        end = self.tokenizer.eos_token_id
        while len(ids) < limit:
            out = self.model(next_BT, past_key_values=past, use_cache=True)
            past = out.past_key_values
            row_V = out.logits[0, -1].float().log_softmax(0)
            rows.append(row_V)
            if self.end_after is not None and len(ids) == self.end_after:
                number = end
            elif self.says is not None:
                number = self.says[len(ids)]
            elif self.speakable is None:
                number = int(row_V.argmax())
            else:
                number = self.speakable[int(row_V[self.speakable].argmax())]
            ids.append(number)
            if number == end:
                break
            next_BT = torch.tensor([[number]])
        return ids, torch.stack(rows)

    def _complete(self, body: Reply) -> Reply:
        ids = body["prompt"]
        if isinstance(ids, str):
            ids = self.tokenizer(ids)["input_ids"]
        logprobs_LV = self.model(torch.tensor([ids])).logits[0].float().log_softmax(-1)
        new = int(logprobs_LV[-1].argmax())
        echoed = [*ids, new] if body.get("echo") and "echo" not in self.ignores else [new]
        choice: Reply = {"index": 0, "text": self.tokenizer.decode(echoed), "finish_reason": "length"}
        wanted = body.get("prompt_logprobs")
        if wanted is not None and "prompt_logprobs" not in self.ignores:
            choice["prompt_logprobs"] = [
                None,
                *(
                    self._of_vllm(row_V, own, min(wanted, self.most))
                    for row_V, own in zip(logprobs_LV[:-1], ids[1:], strict=True)
                ),
            ]
        if body.get("echo") and "logprobs" not in self.ignores:
            choice["logprobs"] = self._echo(body, ids, new, logprobs_LV)
        return self._reply(body, "text_completion", choice, len(ids), 1)

    def _of_vllm(self, row_V: torch.Tensor, own: int, wanted: int) -> Reply:
        """K entries by id, and the own token's beside them where it is not among them."""
        found = dict.fromkeys([own, *row_V.topk(wanted).indices.tolist()])
        return {
            str(each): {
                "logprob": float(row_V[each]),
                "rank": int((row_V > row_V[each]).sum()) + 1,
                "decoded_token": self.tokenizer.decode([each]),
            }
            for each in found
        }

    def _echo(self, body: Reply, ids: list[int], new: int, logprobs_LV: torch.Tensor) -> Reply:
        as_ids = self.style == "vllm" and body.get("return_tokens_as_token_ids", False)
        name = (lambda each: f"token_id:{each}") if as_ids else (lambda each: self.tokenizer.decode([each]))
        tokens, values, tops = [], [], []
        whole = [] if "echo" in self.ignores else ids
        for place, number in enumerate([*whole, new]):
            place += len(ids) - len(whole)
            tokens.append(name(number))
            row_V = logprobs_LV[place - 1]
            values.append(float(row_V[number]) if place else None)
            top = row_V.topk(min(body["logprobs"], self.most)).indices.tolist()
            tops.append({name(each): float(row_V[each]) for each in top} if place else None)
        return {"tokens": tokens, "token_logprobs": values, "top_logprobs": tops, "text_offset": []}

    def _entry(self, number: int, row_V: torch.Tensor, as_ids: bool) -> Reply:
        spelled = spelling(self.tokenizer, number)
        entry: Reply = {
            "token": spelled.decode("utf-8", "replace"),
            "bytes": list(spelled),
            "logprob": float(row_V[number]),
        }
        if as_ids:
            entry["token"] = f"token_id:{number}"
            entry["bytes"] = list(entry["token"].encode())
        if self.style == "llama":
            entry["id"] = number
            if number in self.tokenizer.all_special_ids:
                entry |= {"token": "", "bytes": []}
        return entry

    def _reply(self, body: Reply, kind: str, choice: Reply, prompt: int, answer: int) -> Reply:
        usage = {"prompt_tokens": prompt, "completion_tokens": answer, "total_tokens": prompt + answer}
        return {
            "id": "1", "object": kind, "created": 1, "model": f"{body['model']}-served", "choices": [choice],
            "usage": usage,
        }  # fmt: skip


def spelling(tokenizer: Any, number: int) -> bytes:
    """The bytes of a byte-level token, by the tokenizer's own hand."""
    name = tokenizer.convert_ids_to_tokens(number)
    if number in tokenizer.all_special_ids:
        return name.encode()
    return bytes(ALPHABET[each] for each in name)


def _alphabet() -> dict[str, int]:
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(b): b for b in plain} | {chr(256 + n): b for n, b in enumerate(others)}


ALPHABET = _alphabet()
