"""An output head that is one matrix, and what may stand around it: a bias, a scale, a soft cap.

    u = hidden_scale * hidden @ weight.T + bias_scale * bias
    logits = cap * tanh(u / cap), or u where there is no cap

`HeadPass` runs it over chunks of positions in buffers that it takes once, forward, and backward from given
gradients on logits.
Matrix products run in the dtype of the model, or of autocast; sums over positions and all else in fp32.
Knows nothing of models or losses.

N rows, n rows of a chunk, V vocabulary, D hidden size.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["HeadPass", "LinearHead"]

# fp16 has no gradient below 6e-8: those on logits are made this much larger before its products. They are at
# most 1 + T squared, far from the other end.
FP16_SCALE = 1024.0
# Rows of the matrix whose gradient is formed at once where it must pass through another dtype.
SLICE_BYTES = 32 << 20


@dataclass(frozen=True)
class LinearHead:
    """Parameters as they are at this moment, and what is done around them."""

    weight_VD: Tensor
    bias_V: Tensor | None = None
    hidden_scale: float = 1.0
    bias_scale: float = 1.0
    cap: float | None = None

    @property
    def vocab_size(self) -> int:
        return len(self.weight_VD)

    @property
    def product_dtype(self) -> torch.dtype:
        """Of matrix products: autocast's where it is on, else the model's."""
        kind = self.weight_VD.device.type
        return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else self.weight_VD.dtype

    @property
    def sum_dtype(self) -> torch.dtype:
        """Of logits and sums: fp32, or wider where the model is."""
        return torch.promote_types(self.weight_VD.dtype, torch.float32)

    def logit_bytes(self) -> int:
        """Of one logit in the buffers of a `HeadPass`."""
        half = 0 if self.product_dtype == self.sum_dtype else self.product_dtype.itemsize
        return self.sum_dtype.itemsize + half

    @torch.no_grad()
    def logits(self, hidden_ND: Tensor) -> Tensor:
        """Logits of N hidden states, [N, V], as the chunks have them. Without gradient."""
        passing = HeadPass(self, hidden_ND, len(hidden_ND))
        return self.capped_(passing.uncapped(0, len(hidden_ND)))

    def capped_(self, uncapped_NV: Tensor) -> Tensor:
        """The soft cap, in place."""
        if self.cap is None:
            return uncapped_NV
        return uncapped_NV.div_(self.cap).tanh_().mul_(self.cap)

    def slope(self, logits_NV: Tensor, out: Tensor | None = None) -> Tensor:
        """The derivative of the soft cap where it gave these logits."""
        assert self.cap is not None
        slope_NV = torch.div(logits_NV, self.cap, out=out)
        return slope_NV.square_().neg_().add_(1)


class HeadPass:
    """One pass over N hidden states in chunks of at most n; to be used without gradient and autocast.

    Gradients of what needs one are gathered in `hidden_grad_ND`, `weight_grad_VD` and `bias_grad_V`.
    """

    def __init__(
        self,
        head: LinearHead,
        hidden_ND: Tensor,
        chunk_rows: int,
        *,
        hidden_grad: bool = False,
        weight_grad: bool = False,
        bias_grad: bool = False,
    ) -> None:
        self.head = head
        self.dtype = head.product_dtype
        self.hidden_ND = hidden_ND
        device, sum_dtype = head.weight_VD.device, head.sum_dtype
        shape = (chunk_rows, head.vocab_size)
        self._logits_nV = torch.empty(shape, dtype=sum_dtype, device=device)
        is_half = self.dtype != sum_dtype
        self._half_nV = torch.empty(shape, dtype=self.dtype, device=device) if is_half else None
        self._weight_VD = head.weight_VD.detach().to(self.dtype)
        self._bias_V = None if head.bias_V is None else (head.bias_V.detach() * head.bias_scale).to(sum_dtype)
        self._grad_scale = FP16_SCALE if self.dtype == torch.float16 else 1.0
        self.hidden_grad_ND = torch.empty_like(hidden_ND) if hidden_grad else None
        # Without rows no chunk comes to fill it.
        make = torch.empty_like if len(hidden_ND) else torch.zeros_like
        self.weight_grad_VD = make(head.weight_VD, dtype=sum_dtype) if weight_grad else None
        self.bias_grad_V = torch.zeros(head.vocab_size, dtype=sum_dtype, device=device) if bias_grad else None

    def uncapped(self, start: int, stop: int) -> Tensor:
        """Logits before the cap of rows start to stop, [n, V], in a buffer that the next call takes again."""
        out_nV = self._logits_nV[: stop - start]
        hidden_nD, weight_DV = self._scaled(start, stop), self._weight_VD.t()
        if self._half_nV is None:
            torch.mm(hidden_nD, weight_DV, out=out_nV)
        elif out_nV.is_cuda:
            torch.mm(hidden_nD, weight_DV, out_dtype=out_nV.dtype, out=out_nV)
        else:
            out_nV.copy_(torch.mm(hidden_nD, weight_DV, out=self._half_nV[: stop - start]))
        return out_nV if self._bias_V is None else out_nV.add_(self._bias_V)

    def backward(self, start: int, stop: int, grad_nV: Tensor) -> None:
        """Take in the gradient on the logits before the cap; the first chunk begins at row 0."""
        if self.bias_grad_V is not None:
            self.bias_grad_V.add_(grad_nV.sum(0), alpha=self.head.bias_scale)
        if self.hidden_grad_ND is None and self.weight_grad_VD is None:
            return
        if self._half_nV is not None:
            half_nV = self._half_nV[: stop - start]
            if self._grad_scale != 1:
                grad_nV.mul_(self._grad_scale)
            grad_nV = half_nV.copy_(grad_nV)
        if self.hidden_grad_ND is not None:
            hidden_grad_nD = _product(grad_nV, self._weight_VD, self.head.sum_dtype)
            hidden_grad_nD.mul_(self.head.hidden_scale / self._grad_scale)
            self.hidden_grad_ND[start:stop] = hidden_grad_nD
        if self.weight_grad_VD is not None:
            self._add_weight_grad(grad_nV, self._scaled(start, stop), is_first=start == 0)

    def _scaled(self, start: int, stop: int) -> Tensor:
        # A scale of logits is one of hidden states, and of these there are fewer.
        hidden_nD = self.hidden_ND[start:stop].detach()
        if self.head.hidden_scale != 1:
            hidden_nD = hidden_nD.to(self.head.sum_dtype) * self.head.hidden_scale
        return hidden_nD.to(self.dtype)

    def _add_weight_grad(self, grad_nV: Tensor, hidden_nD: Tensor, *, is_first: bool) -> None:
        total_VD = self.weight_grad_VD
        assert total_VD is not None
        if grad_nV.dtype == total_VD.dtype:
            if is_first:
                torch.mm(grad_nV.t(), hidden_nD, out=total_VD)
            else:
                total_VD.addmm_(grad_nV.t(), hidden_nD)
            return
        step = max(1, SLICE_BYTES // (total_VD.element_size() * total_VD.shape[1]))
        for v in range(0, len(total_VD), step):
            part = _product(grad_nV[:, v : v + step].t(), hidden_nD, total_VD.dtype)
            if self._grad_scale != 1:
                part.div_(self._grad_scale)
            if is_first:
                total_VD[v : v + step] = part
            else:
                total_VD[v : v + step] += part


def _product(a: Tensor, b: Tensor, dtype: torch.dtype) -> Tensor:
    """a @ b in fp32 or wider."""
    if a.dtype == dtype:
        return torch.mm(a, b)
    if a.is_cuda:
        return torch.mm(a, b, out_dtype=dtype)
    if a.dtype == torch.float16:  # whose sums over positions may be too large for it
        return torch.mm(a.to(dtype), b.to(dtype))
    return torch.mm(a, b).to(dtype)
