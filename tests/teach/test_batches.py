"""Claims about batches: every row once, nothing read that no row needs, in the order of the shard alone."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from distillcache.teach.batches import batch_members, input_lengths, make_batch
from distillcache_shards.shard import Sequences

# Each sequence as its mask; the first token is never a target, and one at least is.
masks = st.lists(
    st.lists(st.booleans(), min_size=1, max_size=12).map(lambda rest: [False, *rest]).filter(any),
    min_size=1,
    max_size=12,
)


def shard_of(shape: list[list[bool]]) -> Sequences:
    """A shard whose token at place n of all is n + 1, so that a token tells where it is from."""
    offsets = np.cumsum([0, *map(len, shape)]).astype(np.int64)
    tokens = np.arange(1, offsets[-1] + 1).astype(np.uint32)
    return Sequences(tokens, np.concatenate(shape).astype(np.bool_), offsets, np.arange(len(shape)))


@given(masks)
def test_a_sequence_is_asked_up_to_its_last_target(shape: list[list[bool]]) -> None:
    """The last supervised token is predicted by the one before it; what comes later is never read."""
    expected = [max(t for t, target in enumerate(mask) if target) for mask in shape]
    assert input_lengths(shard_of(shape)).tolist() == expected


@given(masks, st.integers(1, 40))
def test_every_row_is_in_one_batch_at_its_place(shape: list[list[bool]], batch_tokens: int) -> None:
    """Row, sequence and position belong together, and the teacher reads the tokens up to there."""
    shard = shard_of(shape)
    lengths = input_lengths(shard)
    targets = np.flatnonzero(shard.supervised)
    rows = []
    for members in batch_members(lengths, batch_tokens):
        batch = make_batch(shard, members, lengths)
        assert batch.ids_BT.shape == batch.mask_BT.shape == (len(members), lengths[members].max())
        assert batch.mask_BT.sum(1).tolist() == lengths[members].tolist()
        assert batch.num_tokens == lengths[members].sum()
        # Padding stands on the right.
        assert (batch.mask_BT.diff(dim=1) <= 0).all()
        asked_N = batch.ids_BT[batch.sequences_N, batch.positions_N]
        # A token at place n is n + 1, and the row's target is one place later.
        assert asked_N.tolist() == targets[batch.rows_N].tolist()
        assert batch.mask_BT[batch.sequences_N, batch.positions_N].all()
        assert (batch.sequences_N.diff() >= 0).all()
        for b, member in enumerate(members):
            first = int(shard.offsets[member])
            read = batch.ids_BT[b, : lengths[member]].tolist()
            assert read == list(range(first + 1, first + 1 + lengths[member]))
        rows += batch.rows_N.tolist()
    assert sorted(rows) == list(range(len(targets)))


@given(st.lists(st.integers(1, 50), min_size=1, max_size=30), st.integers(1, 200))
def test_batches_keep_to_their_tokens_padding_included(lengths: list[int], batch_tokens: int) -> None:
    """Only a sequence that is alone may be longer; and no batch has room for the next one."""
    lengths_n = np.array(lengths, np.int64)
    found = list(batch_members(lengths_n, batch_tokens))
    assert sorted(np.concatenate(found).tolist()) == list(range(len(lengths)))
    for members, following in zip(found, [*found[1:], None], strict=True):
        widest = int(lengths_n[members].max())
        assert len(members) * widest <= batch_tokens or len(members) == 1
        if following is not None:
            assert (len(members) + 1) * widest > batch_tokens
            # Longest first: neighbours in a batch are of like length.
            assert lengths_n[members].min() >= lengths_n[following].max()


@given(st.lists(st.integers(1, 9), min_size=1, max_size=30))
def test_equal_lengths_keep_their_order(lengths: list[int]) -> None:
    """Nothing but the shard decides, so a shard that is taught again meets the same batches."""
    order = [member for (member,) in batch_members(np.array(lengths, np.int64), 1)]
    assert order == sorted(range(len(lengths)), key=lambda n: (-lengths[n], n))
