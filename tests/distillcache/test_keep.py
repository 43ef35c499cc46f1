"""Claims about what is kept of logits: exact against float64, whatever the chunks, ties and paddings."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from distillcache.errors import TeacherError
from distillcache.head import OutputHead
from distillcache.teach import keep
from distillcache.teach.keep import chunk_rows, keep_batch, top_k
from tests.distillcache.tiny_models import TINY, VOCAB_SIZE, odd_head


def _logits(num_rows: int, vocab_size: int, seed: int = 0, scale: float = 4.0) -> Tensor:
    return torch.randn(num_rows, vocab_size, generator=torch.Generator().manual_seed(seed)) * scale


def _everything(vocab_size: int) -> Tensor:
    return torch.ones(vocab_size, dtype=torch.bool)


def _dense(logits_NV: Tensor, k: int, valid_V: Tensor) -> tuple[np.ndarray, ...]:
    """Ids, log-probabilities, tail mass and entropy by sorting float64 logits in full."""
    z_NV = logits_NV.double().numpy().copy()
    z_NV[:, ~valid_V.numpy()] = -np.inf
    top_N1 = z_NV.max(1, keepdims=True)
    p_NV = np.exp(z_NV - top_N1)
    total_N1 = p_NV.sum(1, keepdims=True)
    logprobs_NV = z_NV - top_N1 - np.log(total_N1)
    p_NV /= total_N1
    order_NV = np.argsort(-z_NV, axis=1, kind="stable")  # stable: equal logits stay in the order of ids
    ids_NK, rest = order_NV[:, :k], order_NV[:, k:]
    entropy_N = -np.where(p_NV > 0, p_NV * np.where(p_NV > 0, logprobs_NV, 0), 0).sum(1)
    return (
        ids_NK,
        np.take_along_axis(logprobs_NV, ids_NK, 1),
        np.take_along_axis(p_NV, rest, 1).sum(1),
        entropy_N,
    )


@pytest.mark.parametrize(
    ("vocab_size", "k"),
    [(49_152, 64), (50_257, 64), (2_000, 1), (2_003, 12), (300, 300), (1_000, 500), (7, 3), (1, 1)],
)
def test_top_k_is_that_of_a_full_sort_in_float64(vocab_size: int, k: int) -> None:
    """Ids, order, log-probabilities, tail mass and entropy, for vocabularies and K of every proportion."""
    logits_NV = _logits(9, vocab_size)
    kept = top_k(logits_NV, k, _everything(vocab_size))
    ids_NK, logprobs_NK, tail_mass_N, entropy_N = _dense(logits_NV, k, _everything(vocab_size))
    assert kept.ids_NK.dtype == torch.int32
    np.testing.assert_array_equal(kept.ids_NK.numpy(), ids_NK)
    np.testing.assert_allclose(kept.logprobs_NK.numpy(), logprobs_NK, rtol=1e-6, atol=2e-6)
    np.testing.assert_allclose(kept.tail_mass_N.numpy(), tail_mass_N, rtol=2e-6)
    np.testing.assert_allclose(kept.entropy_N.numpy(), entropy_N, rtol=1e-5, atol=1e-5)


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**31), st.integers(1, 40), st.integers(40, 900), st.integers(1, 6))
def test_ties_go_to_the_lower_id(seed: int, k: int, vocab_size: int, levels: int) -> None:
    """With few distinct logits, as in bf16, the lowest ids are kept, in order, at the edge too."""
    generator = torch.Generator().manual_seed(seed)
    logits_NV = torch.randint(-levels, levels, (3, vocab_size), generator=generator).float() / 2
    logits_NV *= torch.where(
        torch.rand(logits_NV.shape, generator=generator) < 0.5, -1.0, 1.0
    )  # -0 and 0 are equal
    kept = top_k(logits_NV, k, _everything(vocab_size))
    np.testing.assert_array_equal(kept.ids_NK.numpy(), _dense(logits_NV, k, _everything(vocab_size))[0])


@pytest.mark.parametrize("tail", [1e-3, 1e-5, 1e-8, 1e-12])
def test_small_tail_mass_keeps_six_digits(tail: float) -> None:
    """A tail of 1e-8 is summed, not what 1 minus the kept mass leaves of it."""
    vocab_size, k = 49_152, 8
    logits_NV = _logits(16, vocab_size, scale=1.0)
    logits_NV[:, ::5000] += 14.0 - float(np.log(tail))
    kept = top_k(logits_NV, k, _everything(vocab_size))
    reference_N = _dense(logits_NV, k, _everything(vocab_size))[2]
    assert (reference_N > 0).all()
    np.testing.assert_allclose(kept.tail_mass_N.numpy(), reference_N, rtol=1e-6)


def test_nothing_in_the_tail_is_a_mass_of_zero() -> None:
    """Keeping every id leaves exactly nothing."""
    kept = top_k(_logits(4, 50), 50, _everything(50))
    assert (kept.tail_mass_N == 0).all()


@pytest.mark.parametrize("holes", [False, True])
def test_ids_the_tokenizer_lacks_are_never_kept_and_carry_no_mass(holes: bool) -> None:
    """Padding with the largest logits of all, at the end or in between, changes nothing of a row."""
    vocab_size = 1_000
    valid_V = _everything(vocab_size)
    valid_V[900:] = False
    if holes:
        valid_V[[0, 17, 500]] = False
    logits_NV = _logits(6, vocab_size)
    logits_NV[:, ~valid_V] = 50.0
    kept = top_k(logits_NV, 20, valid_V)
    ids_NK, logprobs_NK, tail_mass_N, entropy_N = _dense(logits_NV, 20, valid_V)
    assert valid_V[kept.ids_NK.long()].all()
    np.testing.assert_array_equal(kept.ids_NK.numpy(), ids_NK)
    np.testing.assert_allclose(kept.logprobs_NK.numpy(), logprobs_NK, atol=2e-6)
    np.testing.assert_allclose(kept.tail_mass_N.numpy(), tail_mass_N, rtol=2e-6)
    np.testing.assert_allclose(kept.entropy_N.numpy(), entropy_N, rtol=1e-5)
    # Every valid id kept: still none of the others, and no mass outside.
    whole = top_k(logits_NV, int(valid_V.sum()), valid_V)
    assert valid_V[whole.ids_NK.long()].all()
    assert (whole.tail_mass_N == 0).all()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_logits_that_are_not_finite_are_refused_with_their_row(bad: float) -> None:
    """One bad logit, kept or not, stops teaching with the row it was found in."""
    logits_NV = _logits(5, 400)
    logits_NV[3, 222] = bad
    with pytest.raises(TeacherError, match=r"^row 3 .*not finite; found .*; try"):
        top_k(logits_NV, 10, _everything(400))


def test_a_bad_logit_of_an_id_the_tokenizer_lacks_is_nobodys_business() -> None:
    """Padding rows of an embedding may hold anything."""
    logits_NV = _logits(5, 400)
    logits_NV[:, 390:] = float("nan")
    valid_V = torch.arange(400) < 390
    assert torch.isfinite(top_k(logits_NV, 10, valid_V).logprobs_NK).all()


def test_logits_are_not_changed() -> None:
    """The caller's logits are the same afterwards."""
    logits_NV = _logits(5, 400)
    before = logits_NV.clone()
    top_k(logits_NV, 10, torch.arange(400) != 7)
    assert torch.equal(logits_NV, before)


def _supervised(lengths: tuple[int, ...], seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Right-padded ids and mask, and a random half of the positions that predict something."""
    generator = torch.Generator().manual_seed(seed)
    longest = max(lengths)
    mask_BT = (torch.arange(longest) < torch.tensor(lengths)[:, None]).long()
    ids_BT = torch.randint(3, 250, mask_BT.shape, generator=generator) * mask_BT
    predicts_BT = torch.arange(longest) < torch.tensor(lengths)[:, None] - 1
    chosen_BT = predicts_BT & (torch.rand(mask_BT.shape, generator=generator) < 0.5)
    return (ids_BT, mask_BT, *chosen_BT.nonzero(as_tuple=True))


@pytest.mark.parametrize("family", ["llama_tied", "llama_untied", "gemma2_soft_cap", "odd"])
def test_rows_of_a_batch_are_those_of_each_sequence_alone(family: str) -> None:
    """Row n is what the model says at its sequence and position, by a direct call, for any chunk size."""
    head = OutputHead.of(odd_head() if family == "odd" else TINY[family](), torch.arange(3, 40)[None])
    assert head.whole_logits == (family == "odd")
    valid_V = torch.arange(VOCAB_SIZE) < 259
    ids_BT, mask_BT, sequences_N, positions_N = _supervised((30, 7, 19), seed=1)
    assert len(sequences_N) > 15
    with torch.no_grad():
        direct = [
            head.model(ids_BT[b : b + 1, : int(mask_BT[b].sum())]).logits[0, t]
            for b, t in zip(sequences_N.tolist(), positions_N.tolist(), strict=True)
        ]
    reference_ids_NK, reference_NK, tail_mass_N, _ = _dense(torch.stack(direct), 16, valid_V)
    for rows_per_chunk in (1, 5, 1000, None):
        kept = keep_batch(
            head, ids_BT, mask_BT, sequences_N, positions_N, 16, valid_V, rows_per_chunk=rows_per_chunk
        )
        assert len(kept) == len(sequences_N)
        np.testing.assert_array_equal(kept.ids_NK, reference_ids_NK)
        np.testing.assert_allclose(kept.logprobs_NK, reference_NK, atol=1e-4)
        np.testing.assert_allclose(kept.tail_mass_N, tail_mass_N, atol=1e-4)


def test_batch_without_a_supervised_position_keeps_no_rows() -> None:
    """Nothing supervised gives arrays of length 0, of the right width."""
    none = torch.zeros(0, dtype=torch.long)
    head = OutputHead.of(TINY["llama_tied"]())
    kept = keep_batch(head, torch.ones(1, 4, dtype=torch.long), None, none, none, 8, _everything(VOCAB_SIZE))
    assert kept.ids_NK.shape == kept.logprobs_NK.shape == (0, 8)
    assert len(kept.tail_mass_N) == len(kept.entropy_N) == 0


def test_broken_teacher_is_refused_with_sequence_and_position() -> None:
    """A NaN names the sequence as the caller calls it, and the position, also from a later chunk."""
    model = TINY["llama_untied"]()

    def break_one_position(module: object, args: object, hidden_BTD: Tensor) -> Tensor:
        hidden_BTD[1, 4] = float("nan")
        return hidden_BTD

    # After the last norm: before it, attention would carry the NaN to every position of the sequence.
    model.model.norm.register_forward_hook(break_one_position)
    ids_BT = torch.full((2, 6), 5)
    sequences_N, positions_N = torch.ones(2, 5, dtype=torch.long).nonzero(as_tuple=True)
    with pytest.raises(TeacherError, match=r"^record 41, position 4: "):
        keep_batch(
            OutputHead.of(model),
            ids_BT,
            None,
            sequences_N,
            positions_N,
            8,
            _everything(VOCAB_SIZE),
            rows_per_chunk=3,
            name_sequence=lambda b: f"record {40 + b}",
        )


def test_chunk_is_bounded_in_bytes_for_any_vocabulary() -> None:
    """A chunk of logits stays within its bytes, and is one row at least."""
    for vocab_size in (1, 49_152, 262_144, 2**20):
        rows = chunk_rows(vocab_size, torch.device("cpu"))
        assert rows >= 1
        assert rows * vocab_size * 4 <= keep.CHUNK_BYTES["cpu"]
    assert chunk_rows(2**40, torch.device("cpu")) == 1
