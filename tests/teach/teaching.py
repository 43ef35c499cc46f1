"""Corpora, command lines and folders for the tests of `teach`; the teachers are those of `tiny_models`.

Everything is the same in every run: texts are drawn from a seed, numbers are fp32 on the CPU.
"""

import json
from collections.abc import Callable, Iterable
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from distillcache.teach.config import TeachConfig
from distillcache.teach.events import Event, TeachReport
from distillcache.teach.run import teach

NUM_IDS = 259  # of the byte tokenizer, so a token is a byte
SETTINGS = {"k": 8, "max_length": 64, "stride": 8, "shard_rows": 200, "dtype": "fp32", "device": "cpu"}
# Each sequence alone, in shards of a few: the work is long beside a shard, and most of it is files.
MANY_SHARDS = {"batch_tokens": 1, "shard_rows": 100}
TEXT = "the teacher reads a corpus once and its student learns from what was said about every token"


def sentence(random: np.random.Generator, num_words: int) -> str:
    """Words in no order that means anything."""
    return " ".join(random.choice(TEXT.split(), size=num_words))


def documents(count: int, *, seed: int = 0) -> list[dict[str, Any]]:
    """Plain texts of 5 to 200 bytes: some fit, some are cut into windows."""
    random = np.random.default_rng(seed)
    return [{"text": sentence(random, int(random.integers(1, 40)))} for _ in range(count)]


def answers(count: int) -> list[dict[str, Any]]:
    """Prompts with their responses, each of another length."""
    random = np.random.default_rng(1)
    return [
        {
            "prompt": sentence(random, int(random.integers(1, 6))),
            "response": sentence(random, int(random.integers(1, 8))),
        }
        for _ in range(count)
    ]


def chats(count: int) -> list[dict[str, Any]]:
    """Chats of one to three turns of the assistant."""
    random = np.random.default_rng(2)
    return [
        {
            "messages": [
                {"role": role, "content": sentence(random, int(random.integers(1, 4)))}
                for _ in range(1 + number % 3)
                for role in ("user", "assistant")
            ]
        }
        for number in range(count)
    ]


def write_records(file: Path, records: Iterable[dict[str, Any]]) -> Path:
    """A JSONL file."""
    file.write_text("".join(json.dumps(each) + "\n" for each in records))
    return file


def teach_into(
    cache: Path,
    teacher: Path,
    source: Path,
    *,
    on_event: Callable[[Event], None] = lambda event: None,
    **settings: Any,
) -> TeachReport:
    """Teach in this process; keyword arguments override `SETTINGS`."""
    known = {"teacher": str(teacher), "sources": (str(source),), **SETTINGS, **settings}
    return teach(TeachConfig(cache=cache, **known), on_event=on_event)


def command_line(cache: Path, teacher: Path | str, source: Path | str, **settings: Any) -> list[str]:
    """The same as arguments of `distillcache`."""
    known = {"teacher": teacher, "sources": source, **SETTINGS, **settings}
    flags = [
        [f"--{name.replace('_', '-')}", str(value)] for name, value in known.items() if value is not None
    ]
    return ["teach", str(cache), *chain.from_iterable(flags)]


def contents(folder: Path) -> dict[str, bytes | None]:
    """Everything in a folder and below by its name: bytes of files, None for folders."""
    return {
        str(each.relative_to(folder)): each.read_bytes() if each.is_file() else None
        for each in sorted(folder.rglob("*"))
    }


def written_at(folder: Path) -> dict[str, tuple[int, int]]:
    """Which file each name stands for, and when it was last written: equal if nobody touched anything."""
    return {
        str(each.relative_to(folder)): (each.stat().st_ino, each.stat().st_mtime_ns)
        for each in sorted(folder.rglob("*"))
        if each.is_file()
    }
