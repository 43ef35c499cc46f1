"""Rows from answers: each token's own, and equal to what the same model says on this machine."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from api_run import Served, Taught
from logprob_server import LogprobServer
from same_rows import cached_rows, local_rows, require_close

from distillcache.errors import TeacherError
from distillcache.teach.events import Aligned, Warned

Run = Callable[..., Taught]
Prompts = Callable[[int], Path]


def left_out(taught: Taught) -> dict[str, int]:
    """Counts by reason."""
    (event,) = (each for each in taught.events if isinstance(each, Aligned))
    return {reason: tally.count for reason, tally in event.left_out.items()}


def warnings(taught: Taught) -> str:
    """All of them, a line each."""
    return "\n".join(each.text for each in taught.events if isinstance(each, Warned))


@pytest.mark.parametrize("style", ["openai", "vllm", "llama"])
def test_rows_of_answers_equal_those_of_the_same_model_here(
    byte_teacher: Served, prompts: Prompts, run: Run, style: str
) -> None:
    """Within 1e-2 nats, of which storing in half precision takes the most."""
    with LogprobServer(
        byte_teacher.model, byte_teacher.tokenizer, style=style, speakable=byte_teacher.ascii, end_after=8
    ) as server:
        taught = run(server, prompts(4), byte_teacher.folder)
    sequences, rows = cached_rows(taught.cache)
    assert len(taught.cache) == 4 and not left_out(taught)
    assert taught.cache.plan["rows"]["k"] == 20 and (np.diff(rows.head_offsets) == 20).all()
    require_close(rows, local_rows(byte_teacher.folder, sequences, 20), 1e-2, 0.999)
    # The end of the turn is taught where the server gives a log-probability of it under a name.
    ends = [int(taught.cache[number].tokens[-1]) for number in range(4)]
    assert ends == ([byte_teacher.tokenizer.eos_token_id] * 4 if style == "vllm" else ends)
    assert len(rows) == 4 * (9 if style != "openai" else 8)


def test_the_prompt_is_context_and_the_answer_is_taught(
    byte_teacher: Served, prompts: Prompts, run: Run
) -> None:
    """The cache's own template before, the server's text after, and only that supervised."""
    with LogprobServer(byte_teacher.model, byte_teacher.tokenizer, speakable=byte_teacher.ascii) as server:
        cache = run(server, prompts(1), byte_teacher.folder, system="Be brief.").cache
    found = cache[0]
    asked = server.bodies[0]["messages"]
    assert asked == [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Say 0."}]
    prompt = byte_teacher.tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_dict=True)
    assert found.tokens[: len(prompt["input_ids"])].tolist() == prompt["input_ids"]
    assert found.supervised.tolist() == [False] * len(prompt["input_ids"]) + [True] * 10
    assert server.bodies[0]["logprobs"] is True and server.bodies[0]["top_logprobs"] == 20


def test_an_answer_that_is_there_already_is_dropped(byte_teacher: Served, tmp_path: Path, run: Run) -> None:
    """The API is asked for its own; earlier turns stay."""
    chat = [
        {"role": "user", "content": "a?"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c?"},
        {"role": "assistant", "content": "d"},
    ]
    path = tmp_path / "chats.jsonl"
    records = [
        {"messages": chat},
        {"prompt": "e?", "response": "f"},
        {"messages": chat[1:2]},
        {"prompt": "e?"},
    ]
    path.write_text("".join(json.dumps(each) + "\n" for each in records))
    with LogprobServer(byte_teacher.model, byte_teacher.tokenizer, speakable=byte_teacher.ascii) as server:
        taught = run(server, path, byte_teacher.folder)
    assert [body["messages"] for body in sorted(server.bodies, key=lambda each: len(each["messages"]))] == [
        [{"role": "user", "content": "e?"}],
        chat[:3],
    ]
    assert len(taught.cache) == 2 and left_out(taught) == {"a prompt that came before": 1}


def test_ids_that_are_named_need_no_text(word_teacher: Served, prompts: Prompts, run: Run) -> None:
    """Answers of any bytes, cut as no tokenizer would: ids are the server's word, bytes the proof."""
    with LogprobServer(word_teacher.model, word_teacher.tokenizer, style="vllm") as server:
        taught = run(server, prompts(4), word_teacher.folder)
    sequences, rows = cached_rows(taught.cache)
    assert len(taught.cache) == 4
    require_close(rows, local_rows(word_teacher.folder, sequences, 20), 1e-2, 0.999)


@pytest.mark.parametrize("style", ["openai", "vllm", "llama"])
def test_another_tokenizer_is_left_out_and_named(
    byte_teacher: Served, word_teacher: Served, prompts: Prompts, run: Run, style: str
) -> None:
    """The server's tokens are pieces of words, the cache's are bytes: a line says so."""
    with (
        LogprobServer(word_teacher.model, word_teacher.tokenizer, style=style) as server,
        pytest.raises(TeacherError, match=r"of 4 .*: 4 times .*prompts\.jsonl:1 .*--tokenizer") as fault,
    ):
        run(server, prompts(4), byte_teacher.folder)
    assert "\n" not in str(fault.value)


def test_the_same_pieces_cut_otherwise_are_another_tokenizer(
    byte_teacher: Served, word_teacher: Served, prompts: Prompts, run: Run
) -> None:
    """A server of bytes, a cache of words: every byte has a token, and yet it is not the same tokenizer."""
    says = byte_teacher.tokenizer("the teacher reads")["input_ids"]
    with (
        LogprobServer(byte_teacher.model, byte_teacher.tokenizer, says=says, end_after=len(says)) as server,
        pytest.raises(TeacherError, match=r"other tokens than the tokenizer's, first .*cuts otherwise"),
    ):
        run(server, prompts(2), word_teacher.folder, max_tokens=40)


def test_what_cannot_be_named_is_in_the_tail(
    byte_teacher: Served, word_teacher: Served, prompts: Prompts, run: Run
) -> None:
    """Own tokens of one character, alternatives of any: ids that the cache lacks are no ids of its rows."""
    with LogprobServer(
        word_teacher.model, word_teacher.tokenizer, speakable=word_teacher.ascii, end_after=8
    ) as server:
        taught = run(server, prompts(2), byte_teacher.folder)
    _, rows = cached_rows(taught.cache)
    counts = np.diff(rows.head_offsets)
    assert (counts < 20).any() and (counts > 0).any()
    kept = np.add.reduceat(np.exp(rows.head_logprobs.astype(np.float64)), rows.head_offsets[:-1])
    np.testing.assert_allclose(kept + rows.tail_mass, 1.0, atol=2e-3)
    assert "are no tokens of" in warnings(taught)


@pytest.mark.parametrize("field", ["logprobs", "top_logprobs"])
def test_a_server_that_ignores_logprobs_is_noticed_at_once(
    byte_teacher: Served, prompts: Prompts, run: Run, field: str
) -> None:
    """One line, and no more than the requests under way are paid."""
    with (
        LogprobServer(
            byte_teacher.model, byte_teacher.tokenizer, speakable=byte_teacher.ascii, ignores=(field,)
        ) as server,
        pytest.raises(TeacherError, match=f"the server ignores `{field}`: .*distillcache generate") as fault,
    ):
        run(server, prompts(30), byte_teacher.folder, concurrency=4)
    assert "\n" not in str(fault.value) and len(server.bodies) <= 4


def test_a_server_that_gives_fewer_is_named(byte_teacher: Served, prompts: Prompts, run: Run) -> None:
    """Rows are as long as what came, and a warning says so."""
    with LogprobServer(
        byte_teacher.model, byte_teacher.tokenizer, speakable=byte_teacher.ascii, most=5
    ) as server:
        taught = run(server, prompts(1), byte_teacher.folder)
    assert (np.diff(cached_rows(taught.cache)[1].head_offsets) == 5).all()
    assert "at most 5 log-probabilities a token came of 20 asked for" in warnings(taught)


def test_more_than_twenty_where_a_server_allows_it(byte_teacher: Served, prompts: Prompts, run: Run) -> None:
    """`--top-logprobs` and `--k` raise it together; the less of the two is asked for."""
    with LogprobServer(byte_teacher.model, byte_teacher.tokenizer, speakable=byte_teacher.ascii) as server:
        taught = run(server, prompts(1), byte_teacher.folder, top_logprobs=50, k=40)
    assert server.bodies[0]["top_logprobs"] == 40 == taught.cache.plan["rows"]["k"]
    assert (np.diff(cached_rows(taught.cache)[1].head_offsets) == 40).all()


def test_a_prompt_as_long_as_a_sequence_is_not_paid(byte_teacher: Served, prompts: Prompts, run: Run) -> None:
    """It is left out before it is asked; a shorter one is asked for what room there is."""
    path = prompts(1)
    path.write_text(path.read_text() + json.dumps({"prompt": "long " * 30}) + "\n")
    with LogprobServer(byte_teacher.model, byte_teacher.tokenizer, speakable=byte_teacher.ascii) as server:
        taught = run(server, path, byte_teacher.folder, max_length=50)
    (body,) = server.bodies
    assert left_out(taught) == {"a prompt as long as --max-length": 1}
    assert len(taught.cache) == 1 and len(taught.cache[0].tokens) <= 50 and body["max_tokens"] <= 10


def test_another_context_is_named(byte_teacher: Served, prompts: Prompts, run: Run) -> None:
    """A server whose template makes other prompts tells by its count of their tokens."""
    other = json.loads(json.dumps(byte_teacher.tokenizer.chat_template)).replace("assistant", "helper")
    tokenizer = type(byte_teacher.tokenizer).from_pretrained(byte_teacher.folder)
    tokenizer.chat_template = other
    with LogprobServer(byte_teacher.model, tokenizer, speakable=byte_teacher.ascii) as server:
        taught = run(server, prompts(2), byte_teacher.folder)
    assert "counts other tokens in 2 prompts" in warnings(taught)


def test_the_end_of_an_answer_without_a_row_is_named(
    byte_teacher: Served, prompts: Prompts, run: Run
) -> None:
    """It is not supervised, since nothing is known of it."""
    with LogprobServer(
        byte_teacher.model, byte_teacher.tokenizer, speakable=byte_teacher.ascii, end_after=4
    ) as server:
        taught = run(server, prompts(2), byte_teacher.folder)
    assert "2 of 2 answers come without a log-probability of their end" in warnings(taught)
