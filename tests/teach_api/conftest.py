"""Fixtures of the tests of a teacher behind an API: tiny teachers on disk, corpora, and a run."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

# The modules beside this one, also under an import mode of pytest that does not put them on the path.
sys.path.insert(0, str(Path(__file__).parent))

from api_run import KEY, Served, Taught, config_for  # the path is set above
from logprob_server import LogprobServer
from tiny_api_teacher import model_of, plain_ascii, save, tokenizer_of

from distillcache.teach.events import Event
from distillcache.teach.run import teach
from distillcache_shards.cache import Cache


@pytest.fixture(autouse=True)
def key_in_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """The key of the tests, under a name of its own."""
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TEST_KEY", KEY)


def served(tmp_path_factory: pytest.TempPathFactory, **kind: bool) -> Served:
    """A teacher of its own tokenizer."""
    tokenizer = tokenizer_of(**kind)
    model = model_of(tokenizer)
    folder = save(tmp_path_factory.mktemp("teacher"), model, tokenizer)
    return Served(model, tokenizer, folder, plain_ascii(tokenizer))


@pytest.fixture(scope="session")
def byte_teacher(tmp_path_factory: pytest.TempPathFactory) -> Served:
    """A teacher whose tokens are bytes."""
    return served(tmp_path_factory)


@pytest.fixture(scope="session")
def turned_teacher(tmp_path_factory: pytest.TempPathFactory) -> Served:
    """A teacher whose tokens are bytes, under other ids."""
    return served(tmp_path_factory, turned=True)


@pytest.fixture(scope="session")
def word_teacher(tmp_path_factory: pytest.TempPathFactory) -> Served:
    """A teacher whose tokens are bytes and pieces of words."""
    return served(tmp_path_factory, merges=True)


@pytest.fixture
def prompts(tmp_path: Path) -> Callable[[int], Path]:
    """A file of so many prompts."""

    def make(count: int) -> Path:
        path = tmp_path / "prompts.jsonl"
        path.write_text("".join(json.dumps({"prompt": f"Say {i}."}) + "\n" for i in range(count)))
        return path

    return make


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    """A corpus of a document, a prompt with its response, and a chat."""
    path = tmp_path / "texts.jsonl"
    records: list[dict[str, Any]] = [
        {"text": "the teacher reads the corpus once, é and all"},
        {"prompt": "what is read?", "response": "the corpus"},
        {"messages": [{"role": "user", "content": "who?"}, {"role": "assistant", "content": "the student"}]},
    ]
    path.write_text("".join(json.dumps(each) + "\n" for each in records))
    return path


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., Taught]:
    """Teach from a server; keyword arguments override settings."""

    def go(
        server: LogprobServer, source: Path, tokenizer: Path, *, name: str = "cache", **settings: Any
    ) -> Taught:
        events: list[Event] = []
        config = config_for(server, tmp_path / name, source, tokenizer, **settings)
        teach(config, on_event=events.append, confirm=lambda _: True)
        return Taught(Cache.open(tmp_path / name), events)

    return go
