"""Claims about the plan and about fidelity, held against the plainest way to say them."""

import hashlib
import math
import struct
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from distillcache.corpus.spool import Spool
from distillcache.corpus.tokenise import Tokenised
from distillcache.teach.fidelity import codec_kl, combined, measure
from distillcache.teach.plan import cut_shards, make_index, plan_corpus
from distillcache_shards.index import INDEX_FILE, Index
from distillcache_shards.rows import Rows

sequences = st.lists(
    st.lists(st.tuples(st.integers(0, 2**20 - 1), st.booleans()), min_size=1, max_size=8), max_size=12
)


@given(st.lists(st.integers(0, 20), max_size=30), st.integers(1, 60))
def test_shards_are_neighbours_as_many_as_reach_the_rows(rows: list[int], shard_rows: int) -> None:
    """One after another, each closed by the sequence that fills it."""
    expected, filled = [0], 0
    for number, count in enumerate(rows, start=1):
        filled += count
        if filled >= shard_rows or number == len(rows):
            expected.append(number)
            filled = 0
    assert cut_shards(np.array(rows, np.int64), shard_rows).tolist() == expected


@hypothesis_settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sequences, st.integers(1, 12))
def test_index_holds_what_the_corpus_says(
    tmp_path: Path, corpus: list[list[tuple[int, bool]]], shard_rows: int
) -> None:
    """Lengths, rows, records and hashes of every sequence, read back; equal input makes equal bytes."""
    spool = spooled(corpus, tmp_path)
    data = make_index(spool, shard_rows, {})
    assert data.sha256() == make_index(spool, shard_rows, {}).sha256()
    (tmp_path / INDEX_FILE).write_bytes(b"".join(data.parts()))
    assert hashlib.sha256((tmp_path / INDEX_FILE).read_bytes()).hexdigest() == data.sha256()
    index = Index(tmp_path, len(corpus), len(data.shard_sha256))
    assert index.sequences("sequence_tokens").tolist() == [len(each) for each in corpus]
    assert index.sequences("sequence_rows").tolist() == [sum(target for _, target in each) for each in corpus]
    assert index.sequences("sequence_record").tolist() == [number // 2 for number in range(len(corpus))]
    bounds = index.shard_first_sequence.tolist()
    assert bounds == cut_shards(spool.rows, shard_rows).tolist()
    for number, each in enumerate(corpus):
        ids = [token for token, _ in each]
        wanted = hashlib.sha256(struct.pack(f"<{len(ids)}I", *ids)).digest()[:16]
        same = [n for n, other in enumerate(corpus) if [token for token, _ in other] == ids]
        assert index.candidates(wanted) == same
        assert bounds[index.shard_of(number)] <= number < bounds[index.shard_of(number) + 1]
    section = plan_corpus(spool, data)
    assert section["tokens"] == sum(map(len, corpus)) and section["index_sha256"] == data.sha256()


def spooled(corpus: list[list[tuple[int, bool]]], folder: Path) -> Spool:
    """The sequences in a spool; two neighbours share a record."""

    def each() -> Iterator[Tokenised]:
        for number, pairs in enumerate(corpus):
            tokens, targets = zip(*pairs, strict=True)
            yield Tokenised(np.array(tokens, np.uint32), np.array(targets, np.bool_), number // 2)

    return Spool(each(), folder)


@hypothesis_settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sequences, st.integers(1, 9))
def test_ids_are_counted_where_they_are_targets(
    tmp_path: Path, corpus: list[list[tuple[int, bool]]], at_a_time: int
) -> None:
    """In every sequence, also over the ends of what is read at a time; an id that is none of them has 0."""
    vocab_size = 2**20
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("distillcache.corpus.spool.COUNTED_TOKENS", at_a_time)
        counts_V = spooled(corpus, tmp_path).supervised_counts(vocab_size)
    found = {int(token): int(counts_V[token]) for token in np.flatnonzero(counts_V)}
    assert counts_V.shape == (vocab_size,)
    assert found == Counter(token for each in corpus for token, is_target in each if is_target)


def test_one_bit_of_a_mask_or_a_token_makes_another_shard(tmp_path: Path) -> None:
    """The plan knows masks and records too, not token ids alone."""
    base = [[(5, False), (6, True), (7, True)], [(8, False), (9, True)]]
    other_mask = [[(5, False), (6, False), (7, True)], base[1]]
    other_token = [base[0], [(8, False), (10, True)]]
    other_cut = [base[0][:2], [(7, True), *base[1]]]
    found = [
        make_index(spooled(each, tmp_path), 9, {}).shard_sha256.tobytes()
        for each in (base, other_mask, other_token, other_cut)
    ]
    assert len(set(found)) == 4


probabilities = st.lists(st.floats(1e-4, 1.0), min_size=2, max_size=6)


@given(st.lists(probabilities, min_size=1, max_size=5), st.data())
def test_codec_kl_is_the_kl_of_the_buckets(weights: list[list[float]], data: st.DataObject) -> None:
    """Of kept ids and one bucket for the rest, what comes back scaled to a sum of 1, in whatever order."""
    p_rows = [np.array(each) / sum(each) for each in weights]
    q_rows = [p * np.exp(data.draw(noise(len(p)))) for p in p_rows]
    orders = [data.draw(st.permutations(range(len(p) - 1))) for p in p_rows]
    found = codec_kl(rows_of(p_rows), rows_of(q_rows, orders))
    for kl, p, q in zip(found, p_rows, q_rows, strict=True):
        p, q = p.astype(np.float32).astype(float), q.astype(np.float32).astype(float)
        p, q = p / p.sum(), q / q.sum()
        assert kl == pytest.approx(sum(a * math.log(a / b) for a, b in zip(p, q, strict=True)), abs=1e-6)


def noise(count: int) -> st.SearchStrategy[list[float]]:
    """So many errors of log-probabilities, in nats."""
    return st.lists(st.floats(-0.1, 0.1), min_size=count, max_size=count)


def rows_of(probabilities: list[np.ndarray], orders: list[list[int]] | None = None) -> Rows:
    """Rows that keep ids 0, 1, ... with these probabilities, the last of which is the tail's."""
    orders = [list(range(len(p) - 1)) for p in probabilities] if orders is None else orders
    counts = [len(order) for order in orders]
    zeros = np.zeros(len(counts) + 1, np.int64)
    return Rows(
        "topk",
        np.cumsum([0, *counts]).astype(np.int64),
        np.concatenate(orders).astype(np.int32),
        np.concatenate([np.log(p[o]) for p, o in zip(probabilities, orders, strict=True)]).astype(np.float32),
        np.array([p[-1] for p in probabilities], np.float32),
        zeros,
        np.zeros(0, np.int32),
        np.ones(len(counts), np.float32),
    )


def test_codec_that_loses_an_id_is_a_mistake_of_ours() -> None:
    """It stops the work before a wrong id reaches the disk."""
    rows = rows_of([np.array([0.5, 0.3, 0.2])])
    with pytest.raises(AssertionError):
        codec_kl(rows, Rows(**{**vars(rows), "head_ids": rows.head_ids + 1}))


def test_shards_combine_by_their_rows() -> None:
    """Measured together or apart, the figures are the same."""
    p_rows = [np.array([0.5, 0.3, 0.2]), np.array([0.6, 0.4]), np.array([0.1, 0.2, 0.7])]
    q_rows = [p * 1.01 for p in p_rows[:2]] + [p_rows[2] ** 1.01]
    before, after = rows_of(p_rows), rows_of(q_rows)
    together = measure(before, after, 60)
    assert together["mass_kept"] == pytest.approx(1 - (0.2 + 0.4 + 0.7) / 3, abs=1e-6)
    assert together["row_bytes"] == 20
    apart = combined([(1, measure(before[:1], after[:1], 25)), (2, measure(before[1:], after[1:], 35))])
    assert apart == pytest.approx(together, rel=1e-5)
