"""Rows sampled in proportion to p over a power of the id's frequency: a trial, with no codec and no format.

Adam divides a parameter's gradient by its size, so the noise of a rare id, whose gradients are small, weighs
more than that of a frequent one. At so many entries in all, the noise of `sum_v noise_v^2 / s_v` is least for
inclusion in proportion to p_v / sqrt(s_v); with s_v a power of the id's frequency, that is p_v f_v^-power.
An entry's weight is p over its inclusion, so the estimate of every p stays unbiased, but a row's mass is 1
on average only.

N rows, V vocabulary, H entries.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from distillcache.teach.sample import uniforms
from distillcache_shards.rows import SAMPLED, Rows

__all__ = ["Tilt"]

LEAST_FREQUENCY = 1e-9


@dataclass(frozen=True, eq=False)
class Tilt:
    """Ids of at least `tau` after the tilt are kept for sure, others by systematic sampling.

    The tilt is 1 on average over the text that `frequency_V` was counted in.
    """

    tau: float
    power: float

    def rows(
        self,
        logits_NV: Tensor,
        frequency_V: Tensor,
        sequences_N: np.ndarray,
        positions_N: np.ndarray,
        seed: int,
    ) -> Rows:
        """Of logits at their places in the plan; all entries stand in the head."""
        p_NV = logits_NV.softmax(1).double()
        tilt_V = self._tilt(frequency_V)
        tilted_NV = p_NV * tilt_V
        sure_NV = tilted_NV >= self.tau
        sum_NV = tilted_NV.masked_fill(sure_NV, 0.0).cumsum(1) / self.tau
        chance_N1 = torch.from_numpy(uniforms(seed, sequences_N, positions_N, 1))
        # A point at chance + 0, 1, 2 and so on: an id is drawn where its stretch of the sum holds one.
        drawn_NV = torch.ceil(sum_NV - chance_N1).diff(dim=1, prepend=torch.zeros_like(chance_N1))
        weight_NV = torch.where(sure_NV, p_NV, drawn_NV * self.tau / tilt_V)
        row_H, id_H = weight_NV.nonzero(as_tuple=True)
        order = np.lexsort((id_H, -weight_NV[row_H, id_H], row_H))
        offsets = np.searchsorted(row_H.numpy(), np.arange(len(p_NV) + 1)).astype(np.int64)
        return Rows(
            SAMPLED,
            offsets,
            id_H.numpy()[order].astype(np.int32),
            weight_NV[row_H, id_H].log().numpy()[order].astype(np.float32),
            np.zeros(len(p_NV), np.float32),
            np.zeros_like(offsets),
            np.zeros(0, np.int32),
            torch.special.entr(p_NV).sum(1).numpy().astype(np.float32),
        )

    def _tilt(self, frequency_V: Tensor) -> Tensor:
        frequency_V = frequency_V / frequency_V.sum() + LEAST_FREQUENCY
        tilt_V = frequency_V**-self.power
        return tilt_V / (frequency_V * tilt_V).sum()
