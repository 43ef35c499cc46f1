"""Claims about batches: nothing held out is trained on, each sequence once an epoch, rows with labels."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from distillcache.errors import ConfigError
from distillcache.learn.data import (
    IGNORED,
    Batching,
    CacheDataset,
    TrainBatches,
    batches_in_order,
    collate,
    loader,
    split,
)
from distillcache_shards.cache import Cache
from distillcache_shards.errors import CorruptError
from tests.distillcache.tiny_cache import sentences, small_teacher, write_cache

TEXTS = sentences(24)
RECORDS = [number // 2 for number in range(24)]  # two pieces of each document


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    """Twelve documents of two pieces."""
    folder = tmp_path_factory.mktemp("data") / "cache"
    return Cache.open(write_cache(folder, small_teacher(), TEXTS, records=RECORDS))


def test_a_document_is_trained_on_or_held_out_as_a_whole(cache: Cache) -> None:
    """All sequences are in one of the two, and the share is that of the records, rounded up."""
    parts = split(cache, 0.2, seed=1)
    records = cache.records()
    assert not set(records[parts.train]) & set(records[parts.held_out])
    assert len(set(records[parts.held_out])) == 3
    assert sorted([*parts.train, *parts.held_out]) == list(range(24))
    assert parts.num_repeated == 0


def test_the_split_is_the_seeds(cache: Cache) -> None:
    """The same seed holds out the same, another something else; 0 holds out nothing."""
    first, again, other = (split(cache, 0.3, seed) for seed in (1, 1, 2))
    assert first.held_out.tolist() == again.held_out.tolist() != other.held_out.tolist()
    assert len(split(cache, 0.0, seed=1).held_out) == 0
    assert len(split(cache, 0.001, seed=1).held_out) == 2


def test_a_text_that_is_held_out_is_not_trained_on_under_another_record(tmp_path: Path) -> None:
    """The corpus keeps duplicates; the split must not let them through."""
    texts = [*TEXTS[:6], *TEXTS[:6]]
    cache = Cache.open(write_cache(tmp_path / "cache", small_teacher(), texts))
    parts = split(cache, 0.25, seed=0)
    held = {texts[number] for number in parts.held_out}
    assert held.isdisjoint(texts[number] for number in parts.train)
    assert parts.num_repeated == 12 - len(parts.train) - len(parts.held_out) > 0


def test_a_split_that_leaves_nothing_is_refused(tmp_path: Path) -> None:
    """One record cannot be both."""
    cache = Cache.open(write_cache(tmp_path / "cache", small_teacher(), TEXTS[:1]))
    with pytest.raises(ConfigError, match="--held-out: leaves nothing to train on"):
        split(cache, 0.1, seed=0)
    assert len(split(cache, 0.0, seed=0).train) == 1


@given(
    st.lists(st.integers(2, 300), min_size=1, max_size=60),
    st.none() | st.integers(1, 9),
    st.none() | st.integers(2, 700),
    st.integers(1, 3),
    st.booleans(),
)
def test_every_epoch_has_each_sequence_once_in_batches_within_bounds(
    lengths: list[int], batch_size: int | None, batch_tokens: int | None, num_ranks: int, packed: bool
) -> None:
    """For any lengths and bounds; a rank that has nothing left for the last step gets nothing."""
    if batch_size is None and batch_tokens is None:
        batch_size = 8
    array = np.array(lengths, np.int64)
    batching = Batching(batch_size, batch_tokens, packed)
    ranks = [
        TrainBatches(array, batching=batching, seed=0, rank=rank, num_ranks=num_ranks)
        for rank in range(num_ranks)
    ]
    for epoch in (0, 1, 5):
        for rank in ranks:
            rank.set_epoch(epoch)
        found = [list(rank) for rank in ranks]
        assert {len(each) for each in found} == {len(ranks[0])}  # the same number in every epoch and rank
        steps = [batch for step in zip(*found, strict=True) for batch in step]
        assert sorted(place for batch in steps for place in batch) == list(range(len(lengths)))
        assert sum(batch == [] for batch in steps) < num_ranks
        for batch in filter(None, steps):
            assert batch_size is None or len(batch) <= batch_size
            if batch_tokens is not None and len(batch) > 1:
                taken = sum(array[batch]) if packed else len(batch) * max(array[batch])
                assert taken <= batch_tokens


def test_the_batches_of_a_step_are_the_same_for_any_number_of_ranks() -> None:
    """So that they learn the same."""
    lengths = np.random.default_rng(0).integers(10, 200, 45)

    def steps(num_ranks: int) -> list[list[int]]:
        ranks = [
            TrainBatches(lengths, batching=Batching(None, 300, True), seed=2, rank=rank, num_ranks=num_ranks)
            for rank in range(num_ranks)
        ]
        return [batch for step in zip(*ranks, strict=True) for batch in step if batch]

    assert steps(1) == steps(2) == steps(3)


def test_packed_batches_are_of_any_lengths_and_nearly_full() -> None:
    """Which is what they are for: chance alone says who stands together, and little room is left."""
    lengths = np.random.default_rng(0).integers(10, 500, 3000)
    found = list(TrainBatches(lengths, batching=Batching(None, 4096, True), seed=0))
    tokens = [int(sum(lengths[batch])) for batch in found]
    assert np.mean(tokens) > 0.9 * 4096
    spread = np.mean([np.std(lengths[batch]) for batch in found])
    assert spread > 0.9 * np.std(lengths)


def test_epochs_differ_and_repeat() -> None:
    """Other sequences stand together in another epoch; the same epoch of the same seed is the same."""
    lengths = np.random.default_rng(0).integers(10, 200, 100)

    def epoch(number: int, seed: int) -> list[list[int]]:
        batches = TrainBatches(lengths, batching=Batching(4, None, packed=False), seed=seed)
        batches.set_epoch(number)
        return list(batches)

    assert epoch(1, seed=3) == epoch(1, seed=3)
    together = [{tuple(sorted(batch)) for batch in epoch(*each)} for each in ((0, 3), (1, 3), (0, 4))]
    assert len(together[0] & together[1]) < 5 and len(together[0] & together[2]) < 5


def test_sequences_of_a_batch_are_of_like_length() -> None:
    """Little padding: less than random batches have, by far."""
    lengths = np.random.default_rng(0).integers(10, 500, 2000)

    def padding(batches: list[list[int]]) -> float:
        padded = sum(len(batch) * max(lengths[batch]) for batch in batches)
        return 1 - float(lengths.sum() / padded)

    shuffled = np.random.default_rng(1).permutation(2000).reshape(-1, 8).tolist()
    ours = list(TrainBatches(lengths, batching=Batching(8, None, packed=False), seed=0))
    assert padding(ours) < 0.1 < 0.3 < padding(shuffled)


def test_an_evaluation_reads_every_sequence_once_over_all_ranks() -> None:
    """Longest first, within the same bounds."""
    lengths = np.array([5, 50, 7, 50, 9, 100], np.int64)
    whole = batches_in_order(lengths, batch_size=2, batch_tokens=100)
    assert whole == [[5], [1, 3], [4, 2], [0]]
    ranks = [
        batches_in_order(lengths, batch_size=2, batch_tokens=100, rank=rank, num_ranks=3) for rank in range(3)
    ]
    assert {len(rank) for rank in ranks} == {2}  # models in parts must be run together
    assert sorted(batch for rank in ranks for batch in rank if batch) == sorted(whole)


def test_labels_stand_at_their_own_tokens_and_rows_beside_them(cache: Cache) -> None:
    """Against the cache, sequence by sequence."""
    indices = [3, 0, 17]
    batch = collate(cache.read(indices))
    ids_BT, mask_BT, labels_BT = (batch[name] for name in ("input_ids", "attention_mask", "labels"))
    rows_seen = 0
    for b, index in enumerate(indices):
        sequence = cache[index]
        length = len(sequence.tokens)
        assert ids_BT[b, :length].tolist() == sequence.tokens.tolist()
        assert mask_BT[b].tolist() == [1] * length + [0] * (ids_BT.shape[1] - length)
        wanted = np.where(sequence.supervised, sequence.tokens.astype(np.int64), IGNORED)
        assert labels_BT[b, :length].tolist() == wanted.tolist()
        assert (labels_BT[b, length:] == IGNORED).all()
        rows = slice(rows_seen, rows_seen + len(sequence.rows))
        assert torch.equal(batch["rows"]["tail_mass"][rows], torch.tensor(sequence.rows.tail_mass))
        rows_seen += len(sequence.rows)
    assert rows_seen == int((labels_BT != IGNORED).sum()) == len(batch["rows"]["tail_mass"])
    assert (labels_BT[:, 0] == IGNORED).all()


def test_packed_labels_and_rows_stand_in_the_same_order(cache: Cache) -> None:
    """One row: the padded one without its padding, positions from 0 in each sequence."""
    read = cache.read([3, 0, 17])
    padded, packed = collate(read), collate(read, packed=True)
    real_BT = padded["attention_mask"].bool()
    for name in ("input_ids", "labels"):
        assert packed[name].tolist() == [padded[name][real_BT].tolist()]
    lengths = real_BT.sum(1).tolist()
    assert packed["position_ids"].tolist() == [[place for length in lengths for place in range(length)]]
    assert packed.keys() == {"input_ids", "labels", "position_ids", "rows"}
    for name, values in padded["rows"].items():
        assert torch.equal(packed["rows"][name], values)


def test_a_batch_of_no_place_has_nothing_to_predict(cache: Cache) -> None:
    """For a rank that must keep step with others."""
    batch = collate(CacheDataset(cache, np.arange(4, 8), rows=True).__getitems__([]), packed=True)
    assert "rows" not in batch and (batch["labels"] == IGNORED).all() and batch["input_ids"].numel() > 0


def test_rows_are_not_read_where_nothing_is_made_of_them(tmp_path: Path) -> None:
    """Not even decoded: a cache whose rows are damaged still gives its tokens."""
    folder = write_cache(tmp_path / "cache", small_teacher(), TEXTS[:4])
    container = Cache.open(folder).shard(0).container
    with container.file.open("r+b") as stream:
        stream.seek(container.span("rows")[0] + 64)
        stream.write(b"damaged")
    cache = Cache.open(folder)
    assert "rows" not in collate(CacheDataset(cache, np.arange(4), rows=False).__getitems__([0, 1]))
    with pytest.raises(CorruptError):
        CacheDataset(cache, np.arange(4), rows=True)[0]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_gives_the_batches_of_the_epoch_it_is_told(cache: Cache, workers: int) -> None:
    """In their order, also where other processes read them."""
    dataset = CacheDataset(cache, np.arange(4, 24), rows=True)
    batches = TrainBatches(dataset.lengths, batching=Batching(4, None, packed=False), seed=0)
    loaded = loader(dataset, batches, packed=False, workers=workers, pin_memory=False)
    loaded.set_epoch(2)  # type: ignore[attr-defined]
    found = [batch["input_ids"] for batch in loaded]
    assert batches.epoch == 2 and len(found) == len(loaded)
    for ids_BT, places in zip(found, batches, strict=True):
        assert torch.equal(ids_BT, collate(cache.read(dataset.indices[places]))["input_ids"])
