"""What stands around the matrix of an output head, found out by trying: scales, a soft cap, or neither.

The model's own forward runs with another module in place of the matrix, which tells what comes in and says
what goes out.
So no family's name, and no setting of one, is looked at.
Knows neither bodies nor losses.

n probes, V vocabulary, D hidden size.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from distillcache.linear_head import LinearHead

__all__ = ["HeadForm", "is_plain"]

# What two ways to multiply by one constant may differ by, of the larger.
ROUNDING = 1e-5
# A power of two, so that nothing of it is rounded off; a cap is a line there.
SMALL = 2.0**-13
LARGE = 1e30
NUM_PROBES = 4


@dataclass(frozen=True)
class HeadForm:
    """What is done around one matrix; None where it is not understood."""

    projection: nn.Linear
    # Factors of hidden states and of raw logits, and a cap.
    around: tuple[float, float, float | None] | None

    @classmethod
    @torch.no_grad()
    def found(
        cls,
        projection: nn.Linear,
        with_another: Callable[[Tensor, nn.Module], Tensor],
        logits: Callable[[Tensor], Tensor],
        *,
        tolerance: float,
    ) -> "HeadForm":
        """By trying it.

        `with_another` gives logits of hidden states with another module in the matrix' place, `logits` those
        of the model as it is, from which the form found may differ by `tolerance` of the largest.
        """
        none = cls(projection, None)
        try:
            around = _around(projection, with_another)
            if around is None:
                return none
            form = cls(projection, around)
            head = form.head()
            assert head is not None
            hidden_nD = _random(NUM_PROBES, projection, seed=1)
            wanted_nV = logits(hidden_nD)
            difference = (head.logits(hidden_nD) - wanted_nV).abs().max()
            return form if difference <= tolerance * wanted_nV.abs().max() else none
        except torch.OutOfMemoryError:
            raise
        except Exception:  # a model's code may fail in any way on what it did not expect: not understood
            return none

    def head(self) -> LinearHead | None:
        """With the parameters of this moment."""
        if self.around is None:
            return None
        inner, outer, cap = self.around
        return LinearHead(self.projection.weight, self.projection.bias, inner * outer, outer, cap)


def is_plain(projection: Any) -> bool:
    """Whether a module is a matrix with perhaps a bias, whole, here, and does nothing else."""
    return (
        type(projection) is nn.Linear
        # Not parts of it, as of a sharded one.
        and all(type(each) in (Tensor, nn.Parameter) for each in _parameters(projection))
        and projection.weight.is_floating_point()
        and projection.weight.device.type != "meta"
        # Those of accelerate, of offloading, of a user.
        and "forward" not in projection.__dict__
        and not projection._forward_hooks
        and not projection._forward_pre_hooks
        and not projection._backward_hooks
        and not projection._backward_pre_hooks
    )


def _parameters(projection: nn.Linear) -> list[Tensor]:
    return [each for each in (projection.weight, projection.bias) if each is not None]


def _around(
    projection: nn.Linear, with_another: Callable[[Tensor, nn.Module], Tensor]
) -> tuple[float, float, float | None] | None:
    device, vocab_size = projection.weight.device, len(projection.weight)
    generator = torch.Generator().manual_seed(0)
    # From nearly nothing to where any cap is flat, for every id other ones.
    sizes_nV = 10.0 ** torch.randint(-4, 7, (NUM_PROBES, vocab_size), generator=generator)
    raw_nV = (sizes_nV * torch.randn(sizes_nV.shape, generator=generator)).to(device)
    constants_3 = torch.tensor([1.0, SMALL, LARGE])
    raw_nV = torch.cat([raw_nV, constants_3[:, None].expand(3, vocab_size).to(device)])
    hidden_nD = _random(len(raw_nV), projection, seed=0)
    hidden_nD[0] = 1.0
    between = _Between(projection, raw_nV)
    after_nV = with_another(hidden_nD, between)
    before_nD = between.hidden_nD
    if after_nV.shape != raw_nV.shape or before_nD is None or before_nD.shape != hidden_nD.shape:
        return None
    inner = float(before_nD[0, 0])
    if not _near(inner * hidden_nD.float(), before_nD.float(), torch.finfo(hidden_nD.dtype).eps):
        return None
    at_1, at_small, at_large = after_nV[-3:, 0].tolist()
    wanted_nV = after_nV[:-1].float()  # where a line may be out of range
    if _near(at_1 * raw_nV[:-1], wanted_nV, ROUNDING):
        return inner, at_1, None
    outer = at_small / SMALL
    if _near(at_large * torch.tanh(outer / at_large * raw_nV[:-1]), wanted_nV, ROUNDING):
        return inner, outer, at_large
    return None


class _Between(nn.Module):
    """Stands in the place of a matrix: keeps what comes in, and gives raw logits that it was told."""

    def __init__(self, projection: nn.Linear, raw_nV: Tensor) -> None:
        super().__init__()
        self.__dict__["projection"] = projection  # not a submodule: nobody walks into it
        self.raw_nV = raw_nV
        self.hidden_nD: Tensor | None = None

    def __getattr__(self, name: str) -> Any:
        # Mamba asks for its dtype.
        return getattr(self.__dict__["projection"], name)

    def forward(self, hidden_1nD: Tensor) -> Tensor:
        self.hidden_nD = hidden_1nD[0]
        return self.raw_nV[None]


def _random(n: int, projection: nn.Linear, *, seed: int) -> Tensor:
    """Hidden states."""
    random_nD = torch.randn(n, projection.weight.shape[1], generator=torch.Generator().manual_seed(seed))
    return random_nD.to(projection.weight)


def _near(found: Tensor, wanted: Tensor, tolerance: float) -> bool:
    """Whether all elements are, each in proportion to itself, or to the smallest of interest."""
    return bool(((found - wanted).abs() <= tolerance * wanted.abs().clamp(min=1e-3)).all())
