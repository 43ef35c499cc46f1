"""What a row holds of what a server said: exact sums, no id twice, nothing that is no log-probability."""

import math

import numpy as np
import pytest
from tiny_api_teacher import tokenizer_of

from distillcache.corpus.encoder import Encoder
from distillcache.generate.logprobs import Entry, Position, Said
from distillcache.teach.api.align import Aligned, Misaligned, align_answer
from distillcache.teach.api.names import TokenNames

TOKENIZER = tokenizer_of()
NAMES, ENCODER = TokenNames(TOKENIZER), Encoder(TOKENIZER)
PROMPT = np.array(TOKENIZER("ask")["input_ids"], np.uint32)


def aligned(tops: dict[str, float], *, finish: str = "length", text: str = "a", k: int = 20) -> Aligned:
    """An answer of one token, with these alternatives."""
    top = tuple(Entry(logprob, None, name, None) for name, logprob in tops.items())
    position = Position(Entry(-1.0, None, "a", None), top)
    return align_answer(Said(text, finish, (position,)), PROMPT, NAMES, ENCODER, k, 64)


def test_a_row_sums_to_one() -> None:
    """The tail is what is left, alternatives without a token included; entropy counts it as one id."""
    rows = aligned({"b": math.log(0.2), "a": math.log(0.5), "no token": math.log(0.1)}).rows
    ids = [NAMES.names[number] for number in rows.head_ids.tolist()]
    assert ids == ["a", "b"] and rows.tail_mass[0] == pytest.approx(0.3)
    expected = -sum(p * math.log(p) for p in (0.5, 0.2, 0.3))
    assert rows.entropy[0] == pytest.approx(expected) and rows.fault(len(TOKENIZER)) is None


def test_a_tail_is_never_negative() -> None:
    """Servers round: a sum a little over 1 leaves no tail."""
    rows = aligned({"a": math.log(0.6), "b": math.log(0.4004)}).rows
    assert rows.tail_mass[0] == 0.0 and rows.fault(len(TOKENIZER)) is None


def test_the_most_likely_are_kept_and_ties_go_to_the_lower_id() -> None:
    """As in rows of a local teacher."""
    rows = aligned({"c": -2.0, "b": -2.0, "a": -1.0, "d": -3.0}, k=3).rows
    assert [NAMES.names[number] for number in rows.head_ids.tolist()] == ["a", "b", "c"]
    assert rows.tail_mass[0] == pytest.approx(1 - math.exp(-1) - 2 * math.exp(-2))


def test_what_is_not_known_is_in_the_tail() -> None:
    """Minus infinity stands for a value that the server did not give; a row may keep nothing."""
    rows = aligned({"a": -math.inf, "b": -1.0}).rows
    assert len(rows.head_ids) == 1
    rows = aligned({"a": -math.inf}).rows
    assert len(rows.head_ids) == 0 and rows.tail_mass[0] == 1.0 and rows.fault(len(TOKENIZER)) is None


@pytest.mark.parametrize("tops", [{"a": 0.9}, {"a": -0.1, "b": -0.1}])
def test_numbers_that_are_no_log_probabilities_are_refused(tops: dict[str, float]) -> None:
    """Probabilities, and what sums to more than 1."""
    with pytest.raises(Misaligned, match="numbers that are no log-probabilities"):
        aligned(tops)


def test_tokens_must_spell_the_answer() -> None:
    """A server whose text is another than its tokens' is not followed."""
    with pytest.raises(Misaligned, match="other tokens than the tokenizer's: 'a' for 'b'"):
        aligned({"a": -1.0}, text="b")


def test_what_was_said_comes_back_as_it_was() -> None:
    """From the disk: values, names, bytes, and what was not given."""
    entry = Entry(-0.25, 7, "\u00e9\n", b"\xc3\xa9")
    said = Said(
        "\u00e9", "stop", (Position(None, ()), Position(entry, (entry, Entry(-math.inf, None, None, None))))
    )
    assert Said.unpack(said.pack()) == said
    with pytest.raises(ValueError):
        Said.unpack(said.pack()[:-5])
