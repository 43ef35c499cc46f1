"""What the tests of sampling share: logits, rows of them, and how far rows are from a distribution."""

import numpy as np
import torch
from torch import Tensor

from distillcache.teach.sample import Sampler, sample
from distillcache_shards.rows import Rows


def logits_of(num_rows: int, vocab_size: int, seed: int = 0, scale: float = 2.5) -> Tensor:
    """Random ones, float32."""
    return torch.randn(num_rows, vocab_size, generator=torch.Generator().manual_seed(seed)) * scale


def everything(vocab_size: int) -> Tensor:
    """All ids are valid."""
    return torch.ones(vocab_size, dtype=torch.bool)


def softmax(logits_NV: Tensor, temperature: float = 1.0) -> np.ndarray:
    """In float64."""
    return torch.softmax(logits_NV.double() / temperature, 1).numpy()


def sampled_at(logits_NV: Tensor, sampler: Sampler, valid_V: Tensor | None = None, sequence: int = 3) -> Rows:
    """Rows of logits that stand at positions 0, 1, ... of one sequence."""
    valid_V = everything(logits_NV.shape[1]) if valid_V is None else valid_V
    num_rows = len(logits_NV)
    rows = sample(logits_NV, valid_V, sampler, np.full(num_rows, sequence), np.arange(num_rows))
    assert rows.fault(len(valid_V)) is None
    return rows


def estimate(rows: Rows, vocab_size: int, *, head_only: bool = False) -> np.ndarray:
    """The distribution that each row stands for, [N, V]."""
    found_NV = np.zeros((len(rows), vocab_size))
    head_N = np.repeat(np.arange(len(rows)), np.diff(rows.head_offsets))
    found_NV[head_N, rows.head_ids] += np.exp(rows.head_logprobs.astype(np.float64))
    if not head_only:
        draws_N = np.diff(rows.draw_offsets)
        draw_N = np.repeat(np.arange(len(rows)), draws_N)
        weight_D = rows.draw_weights
        if weight_D is None:
            weight_D = (rows.tail_mass / np.maximum(draws_N, 1))[draw_N]
        np.add.at(found_NV, (draw_N, rows.draw_ids), weight_D)
    return found_NV


def standard_errors(found_N: np.ndarray, wanted: float) -> float:
    """By how many of them the mean is off; what chance never moves has no error but that of float32."""
    error = max(float(found_N.std()) / np.sqrt(len(found_N)), 1e-7)
    return abs(float(found_N.mean()) - wanted) / error


def worst_error(estimate_NV: np.ndarray, p_V: np.ndarray, ids: np.ndarray | None = None) -> float:
    """Largest error of the mean of rows of one distribution, in standard errors, over bins of probability."""
    bin_V = np.maximum(np.floor(np.log2(p_V)), -11)  # rarer ones together: a few draws have no bell curve
    worst = 0.0
    for each in np.unique(bin_V):
        chosen_V = (bin_V == each) if ids is None else (bin_V == each) & ids
        if chosen_V.any():
            found_N = estimate_NV[:, chosen_V].sum(1)
            worst = max(worst, standard_errors(found_N, float(p_V[chosen_V].sum())))
    return worst
