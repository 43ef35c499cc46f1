"""What is sampled of a teacher's logits: an unbiased estimate of each row's distribution, in a few ids.

Threshold sampling as DESIGN.md defines it ("A row"), and multinomial sampling (RS-KD) to compare with.
Chance depends on seed, sequence and position alone, so a row is the same in every batch and on every device,
as far as its logits are.
A chunk of positions at a time; sums over the vocabulary are of groups first, then in fp64, for in fp32 a
running sum loses the far tail.
Knows nothing of shards, codecs or text.

B sequences, T positions, N rows, V vocabulary, G groups of neighbouring ids, H kept ids, D draws.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from distillcache.errors import TeacherError
from distillcache.head import OutputHead
from distillcache.teach.keep import BLOCK_BYTES, NEVER, chunk_rows
from distillcache_shards.codecs.grid import Grid
from distillcache_shards.codecs.tilt import TiltedGrid
from distillcache_shards.rows import SAMPLED, Rows

__all__ = ["Sampler", "in_order", "sample", "sample_batch", "uniforms"]

GROUP_IDS = 128
BELOW_ONE = 1.0 - 1e-12
F64 = NDArray[np.float64]


@dataclass(frozen=True)
class Sampler:
    """How rows are sampled: every id of at least `grid.tau` with its value, and draws from the tail.

    Head values and tail mass are rounded up or down to whole units of the grid by one chance for the whole
    row, so that each is right on average and their sum is 1. The R that is left draws ceil(R / tau) ids, by
    systematic sampling in proportion to p (Madow 1949): none twice that is rarer than a draw.

    `tilted`: ids are taken and drawn by p times a factor of their own (see `Tilt`). What an id weighs is
    right on average, a row's mass as well, and a draw is one whole `grid.tau` after the tilt.

    `multinomial`: draws with replacement instead, one a unit, from the whole distribution (RS-KD, Anshumann
    et al. 2025, its proposal of temperature 1); an id drawn once is a draw, one drawn more often stands in
    the head. The grid's draws are then of one unit.
    """

    grid: Grid
    seed: int = 0
    temperature: float = 1.0  # rows hold for it
    multinomial: bool = False
    tilted: TiltedGrid | None = None

    def __post_init__(self) -> None:
        assert self.temperature > 0
        assert not self.multinomial or (self.grid.draw_units == 1 and self.tilted is None)
        assert self.tilted is None or self.tilted.grid == self.grid

    @property
    def num_uniforms(self) -> int:
        """Random numbers that a row takes."""
        return self.grid.units if self.multinomial else 2


def uniforms(seed: int, sequences_N: NDArray[np.int64], positions_N: NDArray[np.int64], count: int) -> F64:
    """Random numbers in [0, 1), [N, count], of 53 bits: a hash of their place (splitmix64, Steele 2014)."""
    state_N = np.full(len(sequences_N), seed, np.uint64)
    for each_N in (sequences_N, positions_N):
        state_N = _mixed(state_N) + each_N.astype(np.uint64)
    steps = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    return (_mixed(_mixed(state_N)[:, None] + steps) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _mixed(state: NDArray[np.uint64]) -> NDArray[np.uint64]:
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))


def sample(
    logits_NV: Tensor,
    valid_V: Tensor,
    sampler: Sampler,
    sequences_N: NDArray[np.int64],
    positions_N: NDArray[np.int64],
    *,
    where: Callable[[int], str] = "row {} of the chunk".format,
) -> Rows:
    """`sampled` rows of logits, which are not changed, at their places in the plan.

    `logits_NV` fp32. `valid_V` bool on the same device: ids that the tokenizer has, one at least.
    Raises TeacherError, with `where` of the first such row, if a logit of a valid id is not finite.
    """
    assert logits_NV.dtype == torch.float32
    assert logits_NV.shape == (len(sequences_N), len(valid_V))
    if logits_NV.device.type == "mps":  # which has no fp64
        logits_NV, valid_V = logits_NV.cpu(), valid_V.cpu()
    num_ids = int(valid_V.nonzero()[-1]) + 1
    # Padding of an embedding matrix stands at its end: cut off, not masked.
    logits_NV = logits_NV[:, :num_ids]
    if int(valid_V.sum()) < num_ids:
        logits_NV = logits_NV.masked_fill(~valid_V[:num_ids], NEVER)
    chances = uniforms(sampler.seed, sequences_N, positions_N, sampler.num_uniforms)
    block_rows = (
        max(1, BLOCK_BYTES // (4 * num_ids)) if logits_NV.device.type == "cpu" else max(1, len(logits_NV))
    )
    factors_V = None
    if sampler.tilted is not None:
        factors_V = torch.from_numpy(sampler.tilted.tilt.factors_V[:num_ids]).to(logits_NV)
    parts = [Rows.empty(SAMPLED)]
    for start in range(0, len(logits_NV), block_rows):
        block = slice(start, start + block_rows)
        tails = _Tails(logits_NV[block], sampler.temperature, factors_V)
        bad_N = ~torch.isfinite(tails.entropy_N)
        if bad_N.any():
            raise TeacherError(
                f"{where(start + int(bad_N.nonzero()[0]))}: the teacher's logits are not finite; found nan "
                "or inf; try --dtype bf16 or fp32, or check the teacher's weights"
            )
        chances_n = torch.from_numpy(chances[block]).to(logits_NV.device)
        if sampler.multinomial:
            parts.append(_multinomial(tails, sampler.grid, chances_n))
        elif sampler.tilted is not None:
            parts.append(_tilted(tails, sampler.tilted, chances_n))
        else:
            parts.append(_threshold(tails, sampler.grid, chances_n))
    return Rows.concatenate(parts)


@torch.inference_mode()
def sample_batch(
    head: OutputHead,
    input_ids_BT: Tensor,
    attention_mask_BT: Tensor | None,
    sequences_N: Tensor,
    positions_N: Tensor,
    sampler: Sampler,
    plan_sequences_B: NDArray[np.int64],
    valid_V: Tensor,
    *,
    rows_per_chunk: int | None = None,
    name_sequence: Callable[[int], str] = "sequence {} of the batch".format,
) -> Rows:
    """What is sampled at the positions (sequences_N[n], positions_N[n]) of a batch padded on the right.

    `plan_sequences_B` are the numbers of the batch's sequences in the plan; the rest as in `keep_batch`.
    """
    device = head.device
    rows_per_chunk = chunk_rows(len(valid_V), device) if rows_per_chunk is None else rows_per_chunk
    plan_sequences_N = plan_sequences_B[sequences_N.cpu().numpy()]
    places_N = positions_N.cpu().numpy().astype(np.int64)
    parts, start = [Rows.empty(SAMPLED)], 0
    for logits_nV in head.rows_logits(
        input_ids_BT, attention_mask_BT, sequences_N, positions_N, rows_per_chunk
    ):
        rows = slice(start, start + len(logits_nV))

        def where(n: int, start: int = start) -> str:
            return f"{name_sequence(int(sequences_N[start + n]))}, position {int(places_N[start + n])}"

        valid = valid_V.to(logits_nV.device)
        parts.append(sample(logits_nV, valid, sampler, plan_sequences_N[rows], places_N[rows], where=where))
        start = rows.stop
    assert start == len(sequences_N)
    return Rows.concatenate(parts)


class _Tails:
    """Distributions of N rows, and what is left of them as ids are taken out; groups lie in the last axis.

    With factors [V] what is taken out and left is each id's probability times its factor.
    """

    def __init__(self, logits_NV: Tensor, temperature: float, factors_V: Tensor | None) -> None:
        num_rows, num_ids = logits_NV.shape
        self.num_groups = -(-num_ids // GROUP_IDS)
        below_max_NV = logits_NV.new_empty((num_rows, self.num_groups * GROUP_IDS))
        below_max_NV[:, num_ids:] = NEVER
        torch.sub(logits_NV, logits_NV.amax(1, keepdim=True), out=below_max_NV[:, :num_ids])
        if temperature != 1.0:
            below_max_NV.div_(temperature)
        self.exp_NV = below_max_NV.exp()
        self.grouped = self.exp_NV.view(num_rows * self.num_groups, GROUP_IDS)  # a view: both change
        self.sums_NG = self.grouped.sum(1).view(num_rows, self.num_groups).double()
        self.total_N = self.sums_NG.sum(1)
        # 0 times -inf is no number, so this tells of every logit that is not finite.
        weighted_N = below_max_NV.mul_(self.exp_NV).sum(1).double()
        self.entropy_N = (self.total_N.log() - weighted_N / self.total_N).clamp_min(0.0)
        if factors_V is not None:
            self.exp_NV[:, :num_ids] *= factors_V
            self.sums_NG = self.grouped.sum(1).view(num_rows, self.num_groups).double()

    def take_out(self, share: float) -> tuple[Tensor, Tensor, Tensor]:
        """Ids of at least this probability: rows (rising), ids (rising inside a row), and exp; gone then."""
        least_N = self.total_N * share
        maxima_NG = self.grouped.amax(1).view(-1, self.num_groups)
        row_M, group_M = (maxima_NG >= least_N[:, None]).nonzero(as_tuple=True)
        values_M = self.grouped[row_M * self.num_groups + group_M]
        which_H, place_H = (values_M >= least_N[row_M, None]).nonzero(as_tuple=True)
        taken_H = values_M[which_H, place_H].double()
        values_M[which_H, place_H] = 0.0
        self.grouped[row_M * self.num_groups + group_M] = values_M
        self.sums_NG[row_M, group_M] = values_M.sum(1).double()
        return row_M[which_H], group_M[which_H] * GROUP_IDS + place_H, taken_H

    def ids_at(self, row_D: Tensor, share_D: Tensor) -> Tensor:
        """The ids at which the running sum over what is left passes these shares of it, each in [0, 1)."""
        sum_NG = self.sums_NG.cumsum(1)
        point_D = share_D.clamp_max(BELOW_ONE) * sum_NG[row_D, -1]
        # Points of a row lie side by side in a matrix, so that its sums are searched in place.
        nth_D = torch.arange(len(row_D), device=row_D.device) - torch.searchsorted(row_D, row_D)
        point_ND = point_D.new_zeros(len(sum_NG), int(nth_D.max()) + 1 if len(nth_D) else 0)
        point_ND[row_D, nth_D] = point_D
        group_D = torch.searchsorted(sum_NG, point_ND, right=True)[row_D, nth_D]
        group_sum_D = self.sums_NG[row_D, group_D]
        inside_D = (point_D - (sum_NG[row_D, group_D] - group_sum_D)) / group_sum_D
        sum_D = self.grouped[row_D * self.num_groups + group_D].double().cumsum(1)
        inside_D = inside_D.clamp(0.0, BELOW_ONE) * sum_D[:, -1]
        place_D = torch.searchsorted(sum_D, inside_D[:, None], right=True)[:, 0]
        return group_D * GROUP_IDS + place_D


def _threshold(tails: _Tails, grid: Grid, chances_N2: Tensor) -> Rows:
    """Threshold sampling; the first chance rounds, the second draws."""
    row_H, id_H, exp_H = tails.take_out(grid.tau)
    nth_H, sum_NH = _sums(row_H, exp_H, len(chances_N2))
    whole_N1 = sum_NH[:, -1:] + tails.sums_NG.sum(1, keepdim=True)
    rounded_NH = (sum_NH / whole_N1 * grid.units + chances_N2[:, :1]).floor().long()
    units_H = rounded_NH.diff(dim=1)[row_H, nth_H]
    tail_units_N = (grid.units - rounded_NH[:, -1]).cpu().numpy()
    draws_N = torch.from_numpy(grid.num_draws(tail_units_N)).to(row_H.device)
    row_D, nth_D = _counted(draws_N)
    id_D = tails.ids_at(row_D, (nth_D + chances_N2[row_D, 1]) / draws_N[row_D])
    return _rows(grid, tails, (row_H, id_H, units_H), (row_D, id_D))


def _tilted(tails: _Tails, tilted: TiltedGrid, chances_N2: Tensor) -> Rows:
    """The same after the tilt: an id is drawn for every point, of those one tau apart, in its stretch."""
    grid = tilted.grid
    row_H, id_H, exp_H = tails.take_out(grid.tau)
    nth_H, sum_NH = _sums(row_H, exp_H, len(chances_N2))
    rounded_NH = (sum_NH / tails.total_N[:, None] * grid.units + chances_N2[:, :1]).floor().long()
    units_H = rounded_NH.diff(dim=1)[row_H, nth_H]
    tail_taus_N = tails.sums_NG.sum(1) / tails.total_N / grid.tau
    draws_N = (tail_taus_N - chances_N2[:, 1]).ceil().clamp_min(0).long()
    row_D, nth_D = _counted(draws_N)
    id_D = tails.ids_at(row_D, (nth_D + chances_N2[row_D, 1]) / tail_taus_N[row_D])
    return _rows(grid, tails, (row_H, id_H, units_H), (row_D, id_D), tilted)


def _sums(row_H: Tensor, exp_H: Tensor, num_rows: int) -> tuple[Tensor, Tensor]:
    """Which of its row each is, [H], and running sums in each row from 0 on."""
    kept_N = torch.bincount(row_H, minlength=num_rows)
    # A matrix, so that a row's sums do not feel its neighbours.
    nth_H = torch.arange(len(row_H), device=row_H.device) - (kept_N.cumsum(0) - kept_N)[row_H]
    exp_NH = exp_H.new_zeros(num_rows, 1 + int(kept_N.max()))
    exp_NH[row_H, 1 + nth_H] = exp_H
    return nth_H, exp_NH.cumsum(1)


def _counted(draws_N: Tensor) -> tuple[Tensor, Tensor]:
    """Of so many draws of each row: the row of each, and which of its row it is, [D]."""
    row_D = torch.repeat_interleave(draws_N)
    return row_D, torch.arange(len(row_D), device=row_D.device) - (draws_N.cumsum(0) - draws_N)[row_D]


def _multinomial(tails: _Tails, grid: Grid, chances_NU: Tensor) -> Rows:
    """As many draws with replacement as there are units, each id with how often it was drawn."""
    num_rows, width = len(chances_NU), tails.exp_NV.shape[1]
    row_D = torch.arange(num_rows, device=chances_NU.device).repeat_interleave(grid.units)
    id_D = tails.ids_at(row_D, chances_NU.reshape(-1))
    place_U, times_U = torch.unique(row_D * width + id_D, return_counts=True)
    row_U, id_U = place_U // width, place_U % width
    many, once = times_U > 1, times_U == 1
    return _rows(grid, tails, (row_U[many], id_U[many], times_U[many]), (row_U[once], id_U[once]))


def _rows(
    grid: Grid,
    tails: _Tails,
    kept: tuple[Tensor, Tensor, Tensor],
    draws: tuple[Tensor, Tensor],
    tilted: TiltedGrid | None = None,
) -> Rows:
    """Rows from their ids, rows rising; what the head leaves is the tail's."""
    row_H, id_H, units_H = (each.cpu().numpy() for each in kept)
    row_D, id_D = (each.cpu().numpy() for each in draws)
    entropy_N = tails.entropy_N.cpu().numpy()
    order = np.lexsort((id_H, -units_H, row_H))  # most units first, equal ones by rising id
    id_H, units_H = id_H[order], units_H[order]
    offsets = np.arange(len(entropy_N) + 1)
    head_offsets = np.searchsorted(row_H, offsets).astype(np.int64)
    if tilted is None:
        logprobs_H = grid.logprobs()[units_H]
        tail_units_N = grid.units - np.bincount(row_H, units_H, len(entropy_N))
        tail_mass_N = (tail_units_N / grid.units).astype(np.float32)
    else:
        logprobs_H = tilted.logprobs(units_H, id_H)
        tail_mass_N = tilted.tail_mass(units_H, id_H, np.diff(head_offsets))
    return Rows(
        SAMPLED,
        head_offsets,
        id_H.astype(np.int32),
        logprobs_H,
        tail_mass_N,
        np.searchsorted(row_D, offsets).astype(np.int64),
        id_D.astype(np.int32),
        entropy_N.astype(np.float32),
        None if tilted is None else tilted.weights_V[id_D],
    )


def in_order(rows: Rows, order_N: NDArray[np.int64]) -> Rows:
    """The rows `order_N` of these, in that order."""
    head_offsets, head_H = _gathered(rows.head_offsets, order_N)
    draw_offsets, draw_D = _gathered(rows.draw_offsets, order_N)
    return Rows(
        rows.kind,
        head_offsets,
        rows.head_ids[head_H],
        rows.head_logprobs[head_H],
        rows.tail_mass[order_N],
        draw_offsets,
        rows.draw_ids[draw_D],
        rows.entropy[order_N],
        None if rows.draw_weights is None else rows.draw_weights[draw_D],
    )


def _gathered(
    offsets: NDArray[np.int64], order_N: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Offsets of rows in another order, and where their elements were."""
    counts_N = np.diff(offsets)[order_N]
    found = np.zeros(len(order_N) + 1, np.int64)
    np.cumsum(counts_N, out=found[1:])
    return found, np.repeat(offsets[:-1][order_N] - found[:-1], counts_N) + np.arange(found[-1])
