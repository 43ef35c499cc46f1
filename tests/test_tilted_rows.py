"""The benches' trial kind of row: unbiased."""

import numpy as np
import torch

from benches.tilted import Tilt


def test_tilted_rows_are_right_on_average() -> None:
    """Of each id, over many seeds, within 5 standard errors."""
    generator = torch.Generator().manual_seed(0)
    logits_NV = 3 * torch.randn(4, 300, generator=generator)
    frequency_V = torch.rand(300, generator=generator).double() ** 4
    p_NV = logits_NV.double().softmax(1).numpy()
    tilt, seeds, places_N = Tilt(1 / 20, 0.25), 1_000, np.arange(4)
    chosen_NV, sum_NV = np.zeros_like(p_NV), np.zeros_like(p_NV)
    for seed in range(seeds):
        rows = tilt.rows(logits_NV, frequency_V, places_N, places_N, seed)
        assert rows.disorder() is None
        row_H = np.repeat(places_N, np.diff(rows.head_offsets))
        sum_NV[row_H, rows.head_ids] += np.exp(rows.head_logprobs)
        chosen_NV[row_H, rows.head_ids] += 1
    # An id with chance c and weight p / c has variance p^2 (1 / c - 1); rare ones are too skew.
    often_NV = chosen_NV >= 30
    assert often_NV.sum() > 150
    chance_NV = (chosen_NV / seeds)[often_NV]
    error_NV = p_NV[often_NV] * np.sqrt((1 / chance_NV - 1) / seeds)
    assert (np.abs(sum_NV / seeds - p_NV)[often_NV] <= 5 * error_NV + 1e-6).all()
    assert np.abs((sum_NV / seeds).sum(1) - 1).max() < 0.01
