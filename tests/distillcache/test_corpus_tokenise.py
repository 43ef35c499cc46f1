"""Sequences and masks: every supervised target counts exactly once, and nothing is lost in silence."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distillcache.corpus import tokenise as module
from distillcache.corpus.config import CorpusConfig
from distillcache.corpus.records import Message, Record
from distillcache.corpus.report import CorpusReport
from distillcache.corpus.tokenise import Tokenised, tokenise, tokenise_corpus
from distillcache.corpus.windows import windows
from distillcache.errors import CorpusError
from tests.distillcache.tiny_tokenizer import tiny_tokenizer

BOS, START, END = 0, 1, 2


def run(
    records: Sequence[Record], tokenizer: Any = None, **settings: Any
) -> tuple[list[Tokenised], CorpusReport]:
    report = CorpusReport()
    config = CorpusConfig(sources=("unused",), **settings)
    return list(tokenise(records, tokenizer or tiny_tokenizer(), config, report)), report


def said(tokenizer: Any, sequence: Tokenised) -> str:
    return str(tokenizer.decode(sequence.tokens[sequence.supervised]))


def chat(*turns: str) -> Record:
    roles = ("user", "assistant")
    return Record(where="c", messages=tuple(Message(roles[n % 2], turn) for n, turn in enumerate(turns)))


def test_a_chat_has_the_tokens_of_its_rendering_and_supervises_the_answers() -> None:
    """Ids are those of the whole text, never of pieces; every answer ends with its end-of-turn token."""
    tokenizer = tiny_tokenizer()
    (sequence,), report = run([chat("Hi", "Hello 🙂 there", "And?", "é!")])
    messages = [
        {"role": r, "content": c}
        for r, c in (("user", "Hi"), ("assistant", "Hello 🙂 there"), ("user", "And?"), ("assistant", "é!"))
    ]
    assert sequence.tokens.tolist() == tokenizer.apply_chat_template(messages, return_dict=False)
    assert said(tokenizer, sequence) == "Hello 🙂 there<|im_end|>é!<|im_end|>"
    assert sequence.tokens.dtype == np.uint32 and sequence.supervised.dtype == np.bool_
    assert report.supervised == sequence.supervised.sum() and report.tokens == len(sequence.tokens)


def test_a_template_that_writes_bos_gets_no_second_one() -> None:
    """The rendering is tokenised as it stands."""
    tokenizer = tiny_tokenizer(bos=True)
    tokenizer.chat_template = "{{ bos_token }}" + str(tokenizer.chat_template)
    (sequence,), _ = run([chat("Hi", "Hello")], tokenizer)
    assert sequence.tokens[:2].tolist() == [BOS, START]


def test_prompt_and_response_are_a_chat_of_two_where_there_is_a_template() -> None:
    """The two ways to write one exchange give one sequence, and the second is counted as a duplicate."""
    sequences, report = run([chat("Hi", "Hello"), Record(where="d", prompt="Hi", response="Hello")])
    np.testing.assert_array_equal(sequences[0].tokens, sequences[1].tokens)
    np.testing.assert_array_equal(sequences[0].supervised, sequences[1].supervised)
    assert report.duplicates.to_dict() == {"count": 1, "first": ["d"]}
    assert [each.record for each in sequences] == [0, 1]


def test_prompt_and_response_without_a_template_are_joined_and_ended() -> None:
    """The tokenizer's own BOS goes before, EOS behind, and the response with its end is supervised."""
    tokenizer = tiny_tokenizer(template=None, bos=True)
    (sequence,), _ = run([Record(where="d", prompt="Question: ", response="the answer")], tokenizer)
    assert sequence.tokens[0] == BOS and sequence.tokens[-1] == END
    assert tokenizer.decode(sequence.tokens[1:]) == "Question: the answer<|im_end|>"
    # The blank before `the` is the prompt's, and so is a token that begins with it.
    assert said(tokenizer, sequence) in ("the answer<|im_end|>", " answer<|im_end|>")
    assert not sequence.supervised[: len(tokenizer("Question:")["input_ids"])].any()


def test_a_token_across_the_boundary_belongs_to_the_prompt() -> None:
    """A token is supervised if it starts inside the response: ` answer` starts in the prompt here."""
    tokenizer = tiny_tokenizer(template=None)
    assert len(tokenizer(" answer")["input_ids"]) == 1
    (sequence,), _ = run([Record(where="d", prompt="the ", response="answer the")], tokenizer)
    assert said(tokenizer, sequence) == " the<|im_end|>"


@pytest.mark.parametrize("bos", [False, True])
def test_a_document_supervises_all_but_its_first_token(bos: bool) -> None:
    """BOS is put on only by a tokenizer that does; the end of a document is always marked."""
    tokenizer = tiny_tokenizer(bos=bos)
    (sequence,), _ = run([Record(where="d", text="The teacher")], tokenizer)
    assert sequence.tokens.tolist() == [*tokenizer("The teacher")["input_ids"], END]
    assert (sequence.tokens[0] == BOS) == bos
    assert sequence.supervised.tolist() == [False] + [True] * (len(sequence.tokens) - 1)


def test_supervise_all_counts_the_prompt_too() -> None:
    """All tokens but the first, for chats as for joined prompts."""
    for tokenizer in (tiny_tokenizer(), tiny_tokenizer(template=None)):
        (sequence,), _ = run([Record(where="d", prompt="Hi", response="Hello")], tokenizer, supervise="all")
        assert sequence.supervised.tolist() == [False] + [True] * (len(sequence.tokens) - 1)


def test_a_system_prompt_goes_before_chats_that_have_none() -> None:
    """A chat's own system prompt stays; a tokenizer without a template cannot take one."""
    tokenizer = tiny_tokenizer()
    own = Record(
        where="c", messages=(Message("system", "own"), Message("user", "u"), Message("assistant", "a"))
    )
    sequences, _ = run([chat("u", "a"), own, Record(where="t", text="text")], system="be brief")
    texts = [tokenizer.decode(each.tokens) for each in sequences]
    assert texts[0].startswith("<|im_start|>system\nbe brief<|im_end|>\n<|im_start|>user")
    assert texts[1].startswith("<|im_start|>system\nown<|im_end|>") and "be brief" not in texts[1]
    assert texts[2] == "text<|im_end|>"
    with pytest.raises(CorpusError, match="--system: the tokenizer has no chat template"):
        run([Record(where="t", text="text")], tiny_tokenizer(template=None), system="be brief")


def test_a_chat_without_a_chat_template_is_refused() -> None:
    """Inventing a template would teach a format that nobody asked for."""
    with pytest.raises(CorpusError, match="c: a chat, and the tokenizer has no chat template"):
        run([chat("u", "a")], tiny_tokenizer(template=None))


@pytest.mark.parametrize(
    "record", [chat("u <|im_end|>", "a"), Record(where="c", text="see <|im_end|> there")]
)
def test_the_name_of_a_special_token_is_text_unless_asked_otherwise(record: Record) -> None:
    """Counted and named either way; as text it is the same characters in ordinary tokens."""
    tokenizer = tiny_tokenizer()
    (plain,), report = run([record])
    (special,), _ = run([record], special_tokens="token")
    assert report.written_special.first == ["c"]
    assert tokenizer.decode(plain.tokens) == tokenizer.decode(special.tokens)
    assert (special.tokens == END).sum() == (plain.tokens == END).sum() + 1
    (without,), _ = run([record if record.text is None else Record(where="c", text="see  there")])
    assert plain.supervised.sum() >= without.supervised.sum() - 1


def test_only_the_special_tokens_of_the_corpus_change_their_meaning() -> None:
    """Under other names for its special tokens, a tokenizer gives the very ids it gave before."""
    tokenizer = tiny_tokenizer()
    (aliased,), _ = run([chat("The user <|im_end|> asks", "the assistant 🙂  answers")])
    (broken,), _ = run([chat("The user X asks", "the assistant 🙂  answers")])
    spelled = tokenizer(" <|im_end|>", split_special_tokens=True)["input_ids"]
    expected = broken.tokens.tolist()
    at = next(n for n in range(len(expected)) if expected[n : n + 2] == tokenizer(" X")["input_ids"])
    assert aliased.tokens.tolist() == [*expected[:at], *spelled, *expected[at + 2 :]]


def test_what_teaches_nothing_is_left_out_counted_and_named(tmp_path: Path) -> None:
    """Empty texts, empty answers, and chats in which the assistant is silent."""
    records = [
        Record(where="1", text=" \n"),
        Record(where="2", prompt="p", response=""),
        Record(where="3", messages=()),
        Record(where="4", messages=(Message("user", "hello?"),)),
        Record(where="5", text="fine"),
    ]
    sequences, report = run(records)
    assert [each.record for each in sequences] == [4]
    assert report.empty.first == ["1", "2", "3"] and report.unsupervised.first == ["4"]
    assert (report.records, report.sequences, report.empty.count, report.unsupervised.count) == (5, 1, 3, 1)
    report.require_supervised()
    assert json.loads(json.dumps(report.to_dict()))["empty"] == {"count": 3, "first": ["1", "2", "3"]}


def test_a_corpus_without_a_supervised_token_is_refused() -> None:
    """The line says how many records there were and where the first of them is."""
    _, report = run(
        [Record(where="a:4", messages=(Message("user", "hello?"),)), Record(where="a:5", text="")]
    )
    with pytest.raises(CorpusError) as caught:
        report.require_supervised()
    assert str(caught.value).startswith(
        "corpus: no supervised token in 2 records "
        "(1 empty, first a:5; 1 without a supervised token, first a:4); "
    )


def test_five_places_are_named_and_all_are_counted() -> None:
    """A report stays short for a corpus that is all faults."""
    _, report = run([Record(where=str(n), text="") for n in range(9)])
    assert report.empty.to_dict() == {"count": 9, "first": ["0", "1", "2", "3", "4"]}


@given(
    length=st.integers(1, 60),
    max_length=st.integers(2, 20),
    stride=st.integers(0, 19),
    seed=st.integers(0, 2**32 - 1),
)
def test_each_target_of_a_cut_sequence_counts_exactly_once(
    length: int, max_length: int, stride: int, seed: int
) -> None:
    """Whatever the length, window and stride; and each target stands behind the tokens that precede it."""
    stride = min(stride, max_length - 1)
    tokens = np.arange(length, dtype=np.uint32)  # each token its own position
    supervised = np.random.default_rng(seed).random(length) < 0.6
    supervised[0] = False
    pieces = list(windows(tokens, supervised, max_length, stride))
    counted = np.zeros(length, dtype=int)
    for number, (piece, mask) in enumerate(pieces):
        assert 1 <= len(piece) <= max_length and len(piece) == len(mask) and not mask[0]
        assert (np.diff(piece.astype(int)) == 1).all()
        if number:
            assert piece[0] == pieces[number - 1][0][-max(1, stride)]
            assert not mask[: max(1, stride)].any()
        counted[piece[mask]] += 1
    np.testing.assert_array_equal(counted, supervised.astype(int))


@pytest.mark.parametrize("stride", [0, 1, 5, 15])
def test_the_windows_of_one_document_supervise_each_token_once(stride: int) -> None:
    """What all windows supervise, one behind the other, is the document without its first token."""
    tokenizer = tiny_tokenizer()
    text = "The teacher reads the corpus once and the student learns. " * 8
    (whole,), _ = run([Record(where="d", text=text)])
    sequences, report = run([Record(where="d", text=text)], max_length=16, stride=stride)
    targets = np.concatenate([each.tokens[each.supervised] for each in sequences])
    np.testing.assert_array_equal(targets, whole.tokens[1:])
    assert {each.record for each in sequences} == {0}
    assert max(len(each.tokens) for each in sequences) == 16
    assert report.cut.to_dict() == {"count": 1, "first": ["d"]} and report.windows == len(sequences) > 1
    assert said(tokenizer, sequences[-1]).endswith("<|im_end|>")


def test_an_over_long_chat_is_cut_and_windows_without_an_answer_are_left_out() -> None:
    """A long prompt costs no sequences, and says so."""
    tokenizer = tiny_tokenizer()
    sequences, report = run([chat("a user asks " * 30, "the answer")], max_length=16)
    assert "".join(said(tokenizer, each) for each in sequences) == "the answer<|im_end|>"
    assert report.cut.count == 1 and report.unsupervised_windows.count > 2
    assert report.unsupervised_windows.first[0] == "c (window 1)"
    assert report.sequences == len(sequences) == report.windows


def test_a_record_that_just_fits_is_not_cut() -> None:
    """max_length is the most that is allowed."""
    (whole,), _ = run([Record(where="d", text="The teacher reads")])
    length = len(whole.tokens)
    for max_length, num in ((length, 1), (length - 1, 2)):
        sequences, report = run([Record(where="d", text="The teacher reads")], max_length=max_length)
        assert len(sequences) == num and report.cut.count == num - 1


def test_batches_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Records of every kind, in batches of one and all at once."""
    records = [
        *(Record(where=str(n), text=f"The teacher {n}") for n in range(7)),
        chat("u", "a"),
        chat("<|im_end|>", "b"),
        Record(where="d", prompt="<|im_start|>", response="r"),
    ] * 3
    together, _ = run(records)
    monkeypatch.setattr(module, "BATCH_RECORDS", 1)
    apart, _ = run(records)
    assert len(together) == len(apart) == 30
    for a, b in zip(together, apart, strict=True):
        np.testing.assert_array_equal(a.tokens, b.tokens)
        np.testing.assert_array_equal(a.supervised, b.supervised)
        assert a.record == b.record


def test_a_huge_document_loses_nothing_where_it_is_taken_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts end with a line where there is one; joined again they are the text, and masks stay in place."""
    monkeypatch.setattr(module, "PART_CHARS", 50)
    tokenizer = tiny_tokenizer(template=None)
    text = "The teacher reads\nthe corpus 🙂 once.\n" * 9 + "x" * 120
    (document,), _ = run([Record(where="d", text=text)], tokenizer)
    assert tokenizer.decode(document.tokens) == text + "<|im_end|>"
    (joined,), _ = run([Record(where="d", prompt=text, response="\nthe answer")], tokenizer)
    assert said(tokenizer, joined) == "\nthe answer<|im_end|>"


def test_reading_is_lazy() -> None:
    """The first sequence is there before the second batch is read: a corpus is never in memory as a whole."""
    num_read = 0

    def endless() -> Iterator[Record]:
        nonlocal num_read
        while True:
            num_read += 1
            yield Record(where=str(num_read), text=f"text {num_read}")

    stream = tokenise(endless(), tiny_tokenizer(), CorpusConfig(sources=("unused",)), CorpusReport())
    next(stream)
    assert num_read <= module.BATCH_RECORDS


def test_the_callers_tokenizer_is_left_as_it_was() -> None:
    """Truncation and padding that it was set to neither act here nor are lost."""
    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.enable_truncation(3)
    tokenizer.backend_tokenizer.enable_padding(length=64)
    before = tokenizer.backend_tokenizer.to_str()
    (sequence,), _ = run([Record(where="d", text="The teacher reads the corpus once")], tokenizer)
    assert 4 < len(sequence.tokens) < 64
    assert tokenizer.backend_tokenizer.to_str() == before


def test_a_corpus_is_read_end_to_end_from_its_settings(tmp_path: Path) -> None:
    """Two sources of two kinds, in their order, as the command will ask for them."""
    (tmp_path / "a.txt").write_text("The teacher")
    (tmp_path / "b.jsonl").write_text('{"prompt": "p", "response": "r"}\n')
    config = CorpusConfig(sources=(str(tmp_path / "b.jsonl"), str(tmp_path)), limit=2)
    report = CorpusReport()
    sequences = list(tokenise_corpus(config, tiny_tokenizer(), report))
    texts = [tiny_tokenizer().decode(each.tokens) for each in sequences]
    assert texts == [
        "<|im_start|>user\np<|im_end|>\n<|im_start|>assistant\nr<|im_end|>\n",
        "The teacher<|im_end|>",
    ]
    assert (report.records, report.sequences) == (2, 2)
