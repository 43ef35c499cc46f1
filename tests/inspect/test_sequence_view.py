"""One sequence, token by token: what it says, and what the teacher expected in each supervised place."""

import json
from pathlib import Path

import numpy as np
import pytest

from distillcache.errors import ConfigError
from distillcache.inspect.facts import sequence_view
from distillcache_shards.errors import CacheError
from distillcache_shards.rows import SAMPLED
from tests.inspect.word_cache import word_cache
from tests.shards.compact_cache import compact_tilted_cache
from tests.shards.small_cache import ALL_MASKED, SmallCache, half_a_step


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[SmallCache, Path]:
    """A cache in which teachers say what they say, over few words, so that texts meet rows."""
    folder = tmp_path_factory.mktemp("view") / "cache"
    return word_cache(folder, kind=SAMPLED, vocab_size=7), folder


def test_every_token_is_there_with_its_text(small: tuple[SmallCache, Path]) -> None:
    """In its order, and whether it is supervised."""
    cache, folder = small
    for number in (0, 2, ALL_MASKED):
        view = sequence_view(folder, number)
        assert (view.index, view.record) == (number, cache.records[number])
        assert [token.id for token in view.tokens] == cache.tokens[number].tolist()
        assert [token.text for token in view.tokens] == [f"w{each}" for each in cache.tokens[number]]
        assert [token.supervised for token in view.tokens] == cache.supervised[number].tolist()
        assert [token.position for token in view.tokens] == list(range(len(view.tokens)))


def test_a_supervised_token_has_the_row_that_foretold_it(small: tuple[SmallCache, Path]) -> None:
    """The probability of the token itself, None where it is in the tail; tail mass, and entropy."""
    cache, folder = small
    supervised = [token for token in sequence_view(folder, 2).tokens if token.supervised]
    rows = cache.rows[2]
    assert len(supervised) == len(rows)
    found = set()
    for number, token in enumerate(supervised):
        row = rows[number : number + 1]
        shares = dict(zip(row.head_ids.tolist(), np.exp(row.head_logprobs).tolist(), strict=True))
        assert (token.probability is None) == (token.id not in shares)
        assert token.probability is None or token.probability == pytest.approx(shares[token.id], rel=1e-6)
        assert token.tail_mass == row.tail_mass[0]
        assert abs(token.entropy_nats - row.entropy[0]) <= half_a_step(7)
        found.add(token.probability is None)
    assert found == {True, False}


def test_a_token_without_a_row_has_none_of_it(small: tuple[SmallCache, Path]) -> None:
    """Not a guess, not a probability."""
    for token in sequence_view(small[1], ALL_MASKED).tokens:
        assert (token.probability, token.top, token.tail_mass, token.entropy_nats) == (None, (), 0.0, 0.0)


@pytest.mark.parametrize("top", [0, 1, 3, 100])
def test_guesses_are_the_likeliest_first(small: tuple[SmallCache, Path], top: int) -> None:
    """At most as many as asked for, and no more than the row keeps."""
    cache, folder = small
    supervised = [token for token in sequence_view(folder, 2, top=top).tokens if token.supervised]
    for number, token in enumerate(supervised):
        row = cache.rows[2][number : number + 1]
        assert [guess.id for guess in token.top] == row.head_ids[:top].tolist()
        assert [guess.text for guess in token.top] == [f"w{each}" for each in row.head_ids[:top]]
        np.testing.assert_allclose(
            [guess.probability for guess in token.top], np.exp(row.head_logprobs[:top]), rtol=1e-6
        )


def test_guesses_of_tilted_rows_are_the_likeliest_first_too(tmp_path: Path) -> None:
    """Though the row has them by another order; and no tail mass is below 0."""
    cache = word_cache(tmp_path / "cache", make=compact_tilted_cache, vocab_size=30)
    supervised = [token for token in sequence_view(tmp_path / "cache", 2).tokens if token.supervised]
    otherwise = False
    for number, token in enumerate(supervised):
        row = cache.rows[2][number : number + 1]
        order = np.lexsort((row.head_ids, -row.head_logprobs))
        assert [guess.id for guess in token.top] == row.head_ids[order][:5].tolist()
        assert token.tail_mass == row.tail_mass[0] >= 0
        otherwise |= order.tolist() != list(range(len(order)))
    assert otherwise


def test_a_view_is_plain_json(small: tuple[SmallCache, Path]) -> None:
    """Numbers and texts, none of them numpy's."""
    view = json.loads(json.dumps(sequence_view(small[1], 2).to_dict(), allow_nan=False))
    assert view["tokens"][5]["text"].startswith("w")


@pytest.mark.parametrize("number", [-1, 10])
def test_a_sequence_that_is_none_is_refused(small: tuple[SmallCache, Path], number: int) -> None:
    """From both sides, with those there are."""
    with pytest.raises(ConfigError, match=f"--sequence: must be 0 to 9, .* found {number}"):
        sequence_view(small[1], number)


def test_a_view_needs_its_shard_and_the_tokenizer(tmp_path: Path) -> None:
    """What is missing is named."""
    folder = tmp_path / "cache"
    word_cache(folder, shards=(0,))
    sequence_view(folder, 0)
    with pytest.raises(CacheError, match=r"shard-00002.*is not taught yet"):
        sequence_view(folder, 9)
    (folder / "tokenizer" / "tokenizer.json").write_text("{")
    with pytest.raises(CacheError, match=r"tokenizer\.json: cannot be read as a tokenizer: .*; copy it"):
        sequence_view(folder, 0)
