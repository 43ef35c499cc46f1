"""Logits, targets and the soft loss, for the tests of losses on whole logits."""

import torch
from torch import Tensor

from distillcache.losses import TeacherRows, row_losses

__all__ = ["V", "logits", "soft", "targets"]

V = 40


def logits(num_rows: int, *, scale: float = 3.0, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Random logits [N, V]."""
    generator = torch.Generator().manual_seed(seed)
    return (scale * torch.randn(num_rows, V, generator=generator, dtype=torch.float64)).to(dtype)


def targets(num_rows: int) -> Tensor:
    """Some next token of every row."""
    return torch.arange(num_rows) * 7 % V


def soft(logits_NV: Tensor, rows: TeacherRows, loss: str = "forward-kl", temperature: float = 1.0) -> Tensor:
    """Soft loss of every row."""
    found = row_losses(logits_NV, targets(len(rows)), rows, loss=loss, temperature=temperature).soft_N
    assert found is not None
    return found
