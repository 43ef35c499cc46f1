"""Rows of a corpus that a server scores as it is: the cache of a local teacher, but for its tails."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from api_run import Served, Taught
from logprob_server import LogprobServer
from same_rows import cached_rows, require_close

from distillcache.errors import TeacherError
from distillcache.teach.config import TeachConfig
from distillcache.teach.events import Aligned
from distillcache.teach.run import teach
from distillcache_shards.cache import Cache

Run = Callable[..., Taught]


def local_cache(folder: Path, source: Path, teacher: Path, **settings: object) -> Cache:
    """The same corpus, taught by the same model on this machine."""
    known = {"codec": "zstd", "k": 20, "dtype": "fp32", "device": "cpu", "shard_rows": 32}
    teach(TeachConfig(cache=folder, sources=(str(source),), teacher=str(teacher), **(known | settings)))
    return Cache.open(folder)


@pytest.mark.parametrize(
    ("ask", "style"),
    [("prompt_logprobs", "vllm"), ("echo", "vllm"), ("echo", "openai"), ("echo_text", "openai")],
)
def test_a_scored_corpus_is_the_cache_of_a_local_teacher(
    byte_teacher: Served, texts: Path, tmp_path: Path, run: Run, ask: str, style: str
) -> None:
    """The same sequences and masks, log-probabilities within 1e-2 nats; cut records in windows too."""
    with LogprobServer(byte_teacher.model, byte_teacher.tokenizer, style=style) as server:
        taught = run(server, texts, byte_teacher.folder, ask=ask, max_length=40, stride=4)
    local = local_cache(tmp_path / "local", texts, byte_teacher.folder, max_length=40, stride=4)
    ours, rows = cached_rows(taught.cache)
    theirs, local_rows = cached_rows(local)
    (event,) = (each for each in taught.events if isinstance(each, Aligned))
    if ask == "echo_text":
        # A character of two bytes has no name as text, so that what holds one cannot be told exactly.
        assert sum(each.count for each in event.left_out.values()) == len(local) - len(taught.cache) > 0
        kept = [n for n in range(len(local)) if taught.cache.find(local[n].tokens) is not None]
        assert len(kept) == len(taught.cache) > 1
        return
    assert not event.left_out
    np.testing.assert_array_equal(ours.tokens, theirs.tokens)
    np.testing.assert_array_equal(ours.supervised, theirs.supervised)
    np.testing.assert_array_equal(ours.records, theirs.records)
    # By their text, tokens that are no whole characters have no name, and are in the tail.
    require_close(rows, local_rows, 1e-2, 0.99)
    assert (np.diff(rows.head_offsets) == 20).all() == (style == "vllm")
    if style == "vllm":
        np.testing.assert_allclose(rows.tail_mass, local_rows.tail_mass, atol=1e-3)


def test_text_that_is_sent_as_text_gives_the_same_rows(
    byte_teacher: Served, tmp_path: Path, run: Run
) -> None:
    """Where every token has a name of its own; a template's special tokens are sent by theirs."""
    path = tmp_path / "plain.jsonl"
    path.write_text('{"prompt": "what is read?", "response": "the corpus"}\n{"text": "the student"}\n')
    with LogprobServer(byte_teacher.model, byte_teacher.tokenizer) as server:
        taught = run(server, path, byte_teacher.folder, ask="echo_text")
    ours, rows = cached_rows(taught.cache)
    theirs, local_rows = cached_rows(local_cache(tmp_path / "local", path, byte_teacher.folder))
    assert isinstance(server.bodies[0]["prompt"], str) and len(taught.cache) == 2
    np.testing.assert_array_equal(ours.tokens, theirs.tokens)
    require_close(rows, local_rows, 1e-2, 0.99)


def test_a_sequence_that_comes_twice_is_asked_once(byte_teacher: Served, tmp_path: Path, run: Run) -> None:
    """And stands twice in the cache, as it does for a local teacher."""
    path = tmp_path / "twice.jsonl"
    path.write_text('{"text": "again"}\n{"text": "once"}\n{"text": "again"}\n')
    with LogprobServer(byte_teacher.model, byte_teacher.tokenizer) as server:
        cache = run(server, path, byte_teacher.folder, ask="prompt_logprobs").cache
    assert len(cache) == 3 and sorted(server.asked.values()) == [1, 1]
    assert cache[0].tokens.tolist() == cache[2].tokens.tolist()
    np.testing.assert_array_equal(cache[0].rows.head_ids, cache[2].rows.head_ids)


@pytest.mark.parametrize(
    ("ask", "style"),
    [("prompt_logprobs", "vllm"), ("echo", "vllm"), ("echo", "openai"), ("echo_text", "openai")],
)
def test_another_tokenizer_is_left_out_and_named(
    byte_teacher: Served,
    turned_teacher: Served,
    word_teacher: Served,
    texts: Path,
    run: Run,
    ask: str,
    style: str,
) -> None:
    """Ids of one tokenizer, scored by a model of another, are told by what the server makes of them.

    Text is told by how the server cuts it, whatever the ids of its pieces.
    """
    other = word_teacher if ask == "echo_text" else turned_teacher
    with (
        LogprobServer(other.model, other.tokenizer, style=style) as server,
        pytest.raises(TeacherError, match=r"of 3 questions: .*texts\.jsonl:.*--tokenizer") as fault,
    ):
        run(server, texts, byte_teacher.folder, ask=ask)
    assert "\n" not in str(fault.value)


@pytest.mark.parametrize(
    ("ask", "ignores"), [("prompt_logprobs", "prompt_logprobs"), ("echo", "logprobs"), ("echo", "echo")]
)
def test_a_server_that_does_not_score_is_noticed_at_once(
    byte_teacher: Served, texts: Path, run: Run, ask: str, ignores: str
) -> None:
    """One line that names the field."""
    with (
        LogprobServer(byte_teacher.model, byte_teacher.tokenizer, ignores=(ignores,)) as server,
        pytest.raises(TeacherError, match=f"the server ignores `{ignores}`") as fault,
    ):
        run(server, texts, byte_teacher.folder, ask=ask, concurrency=1)
    assert "\n" not in str(fault.value) and len(server.bodies) == 1


def test_a_server_that_refuses_ids_is_told_of(byte_teacher: Served, texts: Path, run: Run) -> None:
    """Its own words are in the one line."""
    with (
        LogprobServer(byte_teacher.model, byte_teacher.tokenizer, refuses_ids=True) as server,
        pytest.raises(TeacherError, match=r"3 times no answer, first .*status 400.*prompt must be a string"),
    ):
        run(server, texts, byte_teacher.folder, ask="echo")


def test_what_is_given_up_is_left_out_and_named(byte_teacher: Served, texts: Path, run: Run) -> None:
    """A request that the server refuses costs its sequence, not the cache, and stays out of it."""
    with LogprobServer(
        byte_teacher.model, byte_teacher.tokenizer, fault=lambda n: 400 if n == 2 else None
    ) as server:
        taught = run(server, texts, byte_teacher.folder, ask="prompt_logprobs", concurrency=1)
        again = run(server, texts, byte_teacher.folder, ask="prompt_logprobs", concurrency=1)
    (event,) = (each for each in taught.events if isinstance(each, Aligned))
    assert event.left_out["no answer"].count == 1
    assert "texts.jsonl:2 (status 400: " in event.left_out["no answer"].first[0]
    assert len(taught.cache) == len(again.cache) == 2 and len(server.bodies) == 3
