"""The codecs `plain` and `zstd`: ids and counts come back exactly, values as near as their type allows."""

import math
from itertools import product
from typing import Any

import numpy as np
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from distillcache_shards.codecs import Codec, EncodedBlock, codec_of
from distillcache_shards.errors import CorruptError, UnsupportedError
from distillcache_shards.rows import KINDS, SAMPLED, TOPK, Rows
from tests.shards.small_cache import BIG_VOCABULARY, assert_same_rows, half_a_step, random_rows

IDS = ("plain", "zstd")
LOGPROBS = ("f16", "f32")
WAYS = list(product(IDS, KINDS, LOGPROBS))
VOCABULARIES = (1, 7, 300, 1 << 16, (1 << 16) + 1, BIG_VOCABULARY, 1 << 20)


def codec(name: str, kind: str, logprobs: str, vocab_size: int = 300) -> Codec:
    """A codec by its name."""
    params: dict[str, Any] = {"logprobs": logprobs} | ({"level": 9} if name == "zstd" else {})
    return codec_of({"id": name, "params": params}, kind, vocab_size)


def decoded(codec: Codec, block: EncodedBlock, num_rows: int) -> Rows:
    """What a reader finds in a block."""
    return codec.decode(np.frombuffer(block.data, np.uint8), num_rows, block.expanded_bytes)


def assert_kept(found: Rows, wanted: Rows, logprobs: str, vocab_size: int) -> None:
    """All but log-probabilities and entropy to the bit; those within the rounding of their type."""
    if logprobs == "f16":
        # Half a unit in the last of 11 bits, and near zero half of the smallest number there is, 2^-24.
        np.testing.assert_allclose(found.head_logprobs, wanted.head_logprobs, rtol=2**-11, atol=2**-25)
    else:
        np.testing.assert_array_equal(found.head_logprobs, wanted.head_logprobs)
    exact = Rows(
        wanted.kind,
        wanted.head_offsets,
        wanted.head_ids,
        found.head_logprobs,
        wanted.tail_mass,
        wanted.draw_offsets,
        wanted.draw_ids,
        wanted.entropy,
    )
    assert_same_rows(found, exact, entropy_atol=half_a_step(vocab_size))


@given(
    st.sampled_from(WAYS), st.sampled_from(VOCABULARIES), st.integers(0, 40), st.integers(0, 99), st.data()
)
def test_rows_come_back(
    way: tuple[str, str, str], vocab_size: int, num_rows: int, seed: int, data: st.DataObject
) -> None:
    """Ragged rows of either kind, of any vocabulary, in blocks of any size and of none."""
    name, kind, logprobs = way
    most = data.draw(st.integers(1, min(vocab_size, 64)))
    rows = random_rows(np.random.default_rng(seed), kind, num_rows, vocab_size, most=most)
    its = codec(name, kind, logprobs, vocab_size)
    assert_kept(decoded(its, its.encode(rows), num_rows), rows, logprobs, vocab_size)


@pytest.mark.parametrize(("name", "kind", "logprobs"), WAYS)
def test_no_rows_are_a_block(name: str, kind: str, logprobs: str) -> None:
    """A shard may have none."""
    its = codec(name, kind, logprobs)
    assert_same_rows(decoded(its, its.encode(Rows.empty(kind)), 0), Rows.empty(kind))


@pytest.mark.parametrize("k", [1, 300])
@pytest.mark.parametrize(("name", "logprobs"), list(product(IDS, LOGPROBS)))
def test_rows_of_one_id_and_of_the_whole_vocabulary_come_back(name: str, logprobs: str, k: int) -> None:
    """The smallest K and the largest."""
    random = np.random.default_rng(0)
    p_NV = -np.sort(-random.dirichlet(np.ones(300), size=5))
    ids_NK = np.stack([random.permutation(300) for _ in range(5)])[:, :k]
    tail_N = p_NV[:, k:].sum(1)
    rows = Rows.top_k(ids_NK, np.log(p_NV[:, :k]), tail_N, np.full(5, math.log(300)))
    its = codec(name, TOPK, logprobs)
    assert_kept(decoded(its, its.encode(rows), 5), rows, logprobs, 300)


@pytest.mark.parametrize("name", IDS)
@pytest.mark.parametrize(
    ("logprobs", "value", "found"),
    [
        ("f32", -np.inf, np.finfo(np.float32).min),
        ("f32", -1e30, np.float32(-1e30)),
        ("f16", -np.inf, -65504.0),
        ("f16", -1e30, -65504.0),
        ("f16", -65504.0, -65504.0),
        ("f16", -1e-9, 0.0),
        ("f32", 0.0, 0.0),
    ],
)
def test_values_at_the_end_of_their_type_stay_finite(
    name: str, logprobs: str, value: float, found: float
) -> None:
    """A probability of 0 becomes the smallest there is, so that a reader never meets an infinity."""
    rows = Rows.top_k(np.zeros((1, 1)), np.full((1, 1), value), np.zeros(1), np.zeros(1))
    its = codec(name, TOPK, logprobs)
    assert decoded(its, its.encode(rows), 1).head_logprobs.tolist() == [found]


@pytest.mark.parametrize("name", IDS)
def test_an_entropy_is_within_half_a_step(name: str) -> None:
    """From none to that of all ids alike; more than that cannot be and becomes that."""
    most = math.log(300)
    entropy_N = np.linspace(0, most, 1000, dtype=np.float32)
    rows = Rows.top_k(np.zeros((1000, 1)), np.zeros((1000, 1)), np.zeros(1000), entropy_N)
    its = codec(name, TOPK, "f16")
    found_N = decoded(its, its.encode(rows), 1000).entropy
    error_N = np.abs(found_N - entropy_N)
    assert error_N.max() <= half_a_step(300)
    assert error_N.max() > half_a_step(300) / 2  # it is in 8 bits
    above = Rows.top_k(np.zeros((1, 1)), np.zeros((1, 1)), np.zeros(1), np.array([most * 2]))
    assert decoded(its, its.encode(above), 1).entropy == pytest.approx([most])


@pytest.mark.parametrize(("name", "kind", "logprobs"), WAYS)
def test_equal_rows_are_equal_bytes(name: str, kind: str, logprobs: str) -> None:
    """Whatever they are a part of; and rows that were read are written as they were."""
    rows = random_rows(np.random.default_rng(3), kind, 20, 300)
    block = codec(name, kind, logprobs).encode(rows)
    assert codec(name, kind, logprobs).encode(Rows.concatenate([rows, rows])[20:]) == block
    assert codec(name, kind, logprobs).encode(decoded(codec(name, kind, logprobs), block, 20)) == block


@pytest.mark.parametrize(("name", "kind", "logprobs"), WAYS)
def test_a_block_is_of_its_rows_alone(name: str, kind: str, logprobs: str) -> None:
    """One row more or less, a byte more or less, another declared size: refused, never misread."""
    its = codec(name, kind, logprobs)
    block = its.encode(random_rows(np.random.default_rng(3), kind, 20, 300))
    expanded = block.data if name == "plain" else zstandard.decompress(block.data)
    packed = (lambda data: data) if name == "plain" else zstandard.compress
    for num_rows in (0, 1, 19, 21, 1 << 40):
        with pytest.raises(CorruptError):
            decoded(its, block, num_rows)
    for other in (expanded[:-1], expanded + b"\0", b""):
        with pytest.raises(CorruptError, match=r"than its 20 rows; found|holds offsets that fall"):
            decoded(its, EncodedBlock(packed(other), len(other)), 20)
    for expanded_bytes in (0, block.expanded_bytes - 1, block.expanded_bytes + 1):
        with pytest.raises(CorruptError, match=r"than its 20 rows|would expand to"):
            decoded(its, EncodedBlock(block.data, expanded_bytes), 20)


def test_plain_rows_take_the_bytes_that_are_foretold() -> None:
    """`row_bytes` is exact but for the last offset of a block."""
    for kind, logprobs, vocab_size in product(KINDS, LOGPROBS, (300, BIG_VOCABULARY)):
        its = codec("plain", kind, logprobs, vocab_size)
        rows = random_rows(np.random.default_rng(0), kind, 50, vocab_size)
        foretold = 50 * its.row_bytes(rows.num_kept / 50, rows.num_draws / 50)
        last = 8 if kind == SAMPLED else 4
        assert len(its.encode(rows).data) == pytest.approx(foretold + last)


def test_zstd_is_smaller_than_plain() -> None:
    """On ids of which most are small, as those of a tokenizer are."""
    random = np.random.default_rng(0)
    ids_NK = random.geometric(0.01, size=(200, 32)) % 50_000
    logprobs_NK = -np.sort(random.exponential(3, size=(200, 32)))
    rows = Rows.top_k(ids_NK, logprobs_NK, np.full(200, 0.1), np.full(200, 2.0))
    plain, zstd = (len(codec(name, TOPK, "f16", 50_000).encode(rows).data) for name in IDS)
    assert zstd < 0.85 * plain


@pytest.mark.parametrize("spec", [{}, {"id": "gzip", "params": {}}, {"id": None}, {"id": ["plain"]}])
def test_a_codec_that_is_not_known_is_named(spec: dict[str, Any]) -> None:
    """With those that are."""
    with pytest.raises(UnsupportedError, match="is not one of plain, zstd"):
        codec_of(spec, TOPK, 300)


@pytest.mark.parametrize(("name", "kind", "logprobs"), WAYS)
def test_a_codec_is_made_again_from_what_it_says(name: str, kind: str, logprobs: str) -> None:
    """Its id and parameters are all that a reader needs."""
    its = codec(name, kind, logprobs)
    assert codec_of({"id": its.id, "params": its.params}, its.kind, 300, its.tables) == its
