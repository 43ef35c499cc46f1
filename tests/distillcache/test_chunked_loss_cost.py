"""Claims about losses in chunks: one pass, one chunk's memory, and gradients as autograd would take them."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from distillcache import chunked_loss as module
from distillcache.chunked_loss import Terms, chunked_sums
from distillcache.linear_head import LinearHead
from tests.distillcache.chunks import (
    KINDS,
    D,
    N,
    V,
    as_leaves,
    both,
    close,
    head_of,
    hidden_of,
    rows_of,
    targets_of,
)
from tests.distillcache.made_rows import dense_total, in_dtype, random_logprobs, sampled, tilted, topk

pytestmark = pytest.mark.usefixtures("small_chunks")


@pytest.mark.parametrize(("kind", "loss"), KINDS)
def test_chunks_make_no_difference(kind: str, loss: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of all rows, and one for each."""
    found = []
    for rows_a_chunk in (1, 1000):
        monkeypatch.setattr(module, "CHUNK_BYTES", rows_a_chunk * V * 8)
        found.append(both(head_of("bias"), hidden_of(), Terms(0.5, loss, 2.0), rows_of(kind))[0])
    close(found[0], found[1])


class _Watch(TorchDispatchMode):
    """The largest tensor that came to be, and how often matrices were multiplied."""

    def __init__(self) -> None:
        super().__init__()
        self.largest, self.products = 0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.products += func.overloadpacket in (
            torch.ops.aten.mm,
            torch.ops.aten.addmm,
            torch.ops.aten.addmm_,
        )
        for each in out if isinstance(out, tuple) else (out,):
            if isinstance(each, Tensor):
                self.largest = max(self.largest, each.numel())
        return out


@pytest.mark.parametrize(("kind", "loss"), [*KINDS, ("whole", "forward-kl")])
def test_one_pass_of_three_products_a_chunk_and_nothing_that_grows(
    kind: str, loss: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Backward multiplies no matrices. The head's gradient aside, a chunk is the largest tensor."""
    vocab_size = 500
    monkeypatch.setattr(module, "CHUNK_BYTES", 10 * vocab_size * 4)
    head, _, _ = as_leaves(head_of("plain", vocab_size=vocab_size), hidden_of(1), torch.float32)
    for num_rows in (40, 80):
        logprobs_NV = random_logprobs(num_rows, vocab_size)
        made = {"topk": lambda p_NV: topk(p_NV, [5]), "sampled": sampled, "tilted": tilted}
        rows = made[kind](logprobs_NV) if kind in made else None
        teacher = (lambda start, stop: logprobs_NV[start:stop].float()) if kind == "whole" else None  # noqa: B023
        hidden_ND = hidden_of(num_rows).float().requires_grad_()
        watch = _Watch()
        with watch:
            loss_sum, _ = chunked_sums(
                head,
                hidden_ND,
                targets_of(num_rows, vocab_size),
                Terms(0.5, loss, 1.0),
                rows=None if rows is None else in_dtype(rows, torch.float32),
                teacher=teacher,
            )
        spares = 2 if kind == "whole" else 1
        assert watch.products == 3 * spares * num_rows // 10
        assert watch.largest <= max(10 * vocab_size, vocab_size * D)
        watch = _Watch()
        with watch:
            loss_sum.backward()
        assert watch.products == 0 and watch.largest <= vocab_size * D


def test_a_frozen_head_costs_no_gradient_of_its_own() -> None:
    """As under LoRA: two products a chunk, and hidden states get the same."""
    head, hidden_ND = head_of("bias"), hidden_of().float()
    frozen = LinearHead(head.weight_VD.float(), head.bias_V.float(), head.hidden_scale, head.bias_scale)  # type: ignore[union-attr]
    trained, _, leaves = as_leaves(head, hidden_ND, torch.float32)
    found = []
    for each, products in ((frozen, 2), (trained, 3)):
        leaf_ND = hidden_ND.clone().requires_grad_()
        with _Watch() as watch:
            loss, _ = chunked_sums(each, leaf_ND, targets_of(N), Terms(1.0, None, 1.0))
        assert watch.products == products * 3
        loss.backward()
        found.append(leaf_ND.grad)
    torch.testing.assert_close(found[0], found[1])
    assert frozen.weight_VD.grad is None and all(each.grad is not None for each in leaves[1:])


def test_frozen_hidden_states_and_no_gradients_at_all() -> None:
    """A head alone may be trained; and an evaluation forms no gradient."""
    head, hidden_ND, leaves = as_leaves(head_of("plain"), hidden_of(), torch.float32)
    loss, _ = chunked_sums(head, hidden_ND.detach(), targets_of(N), Terms(1.0, None, 1.0))
    loss.backward()
    assert leaves[1].grad is not None and leaves[0].grad is None
    with torch.no_grad(), _Watch() as watch:
        evaluated, sums = chunked_sums(head, hidden_ND, targets_of(N), Terms(1.0, None, 1.0))
    assert watch.products == 3 and not evaluated.requires_grad and not sums.requires_grad
    torch.testing.assert_close(evaluated, loss.detach())


def test_gradients_are_scaled_accumulated_and_taken_once() -> None:
    """By what the loss is multiplied with later, over batches, and through autograd, so that hooks fire."""
    head, hidden_ND, leaves = as_leaves(head_of("plain"), hidden_of(), torch.float32)
    terms = Terms(1.0, None, 1.0)
    once = torch.autograd.grad(chunked_sums(head, hidden_ND, targets_of(N), terms)[0], leaves)
    fired: list[Tensor] = []
    head.weight_VD.register_hook(fired.append)
    for scale in (0.5, 2.0):
        loss, _ = chunked_sums(head, hidden_ND, targets_of(N), terms)
        (scale * loss).backward(retain_graph=True)
    assert len(fired) == 2
    for leaf, each in zip(leaves, once, strict=True):
        torch.testing.assert_close(leaf.grad, 2.5 * each)
    with pytest.raises(RuntimeError, match="can be taken once"):
        loss.backward()


def test_a_tied_matrix_gets_both_gradients() -> None:
    """That of the embedding and that of the head."""
    ids_N, targets_N = torch.arange(N) % V, targets_of(N)
    weight_VD = head_of("plain").weight_VD.float()
    found = []
    for chunked in (True, False):
        leaf = weight_VD.clone().requires_grad_()
        hidden_ND = torch.nn.functional.embedding(ids_N, leaf).tanh()
        if chunked:
            loss, _ = chunked_sums(LinearHead(leaf), hidden_ND, targets_N, Terms(1.0, None, 1.0))
        else:
            loss = torch.nn.functional.cross_entropy(hidden_ND @ leaf.t(), targets_N, reduction="sum")
        loss.backward()
        found.append(leaf.grad)
    torch.testing.assert_close(found[0], found[1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize(
    ("kind", "loss"), [("none", None), ("topk", "forward-kl"), ("sampled", "forward-kl")]
)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_products_are_as_near_as_plain_autocast(
    dtype: torch.dtype, kind: str, loss: str | None, temperature: float
) -> None:
    """Weights in fp32; sums, softmax and gradients of the matrix over chunks too."""
    head, rows, terms = head_of("bias", scale=0.4), rows_of(kind), Terms(0.5, loss, temperature)
    targets_N = targets_of(N)
    results = []
    for way in ("exact", "plain", "ours"):
        there, hidden_ND, leaves = as_leaves(
            head, hidden_of(), torch.float64 if way == "exact" else torch.float32
        )
        fitting = None if rows is None else in_dtype(rows, hidden_ND.dtype)
        with torch.autocast("cpu", dtype, enabled=way != "exact"):
            if way == "ours":
                total, _ = chunked_sums(there, hidden_ND.to(dtype), targets_N, terms, rows=fitting)
            else:
                logits_NV = torch.nn.functional.linear(
                    there.hidden_scale * hidden_ND, there.weight_VD, there.bias_scale * there.bias_V
                )
                logits_NV = logits_NV.to(hidden_ND.dtype)
                as_head = LinearHead(torch.eye(V, dtype=hidden_ND.dtype))
                with torch.autocast("cpu", enabled=False):
                    total = dense_total(as_head, logits_NV, targets_N, terms, fitting, None)[0]
        gradients = torch.autograd.grad(total, leaves)
        assert all(each.dtype == leaf.dtype for each, leaf in zip(gradients, leaves, strict=True))
        results.append([total.detach().double(), *(each.double() for each in gradients)])
    exact, plain, ours = results
    for right, theirs, mine in zip(exact, plain, ours, strict=True):
        assert (mine - right).norm() <= 1.5 * (theirs - right).norm() + 1e-3 * right.norm()


def test_gradients_too_small_for_fp16_survive_its_products() -> None:
    """Far below its smallest number, as those of a large vocabulary are."""
    vocab_size = 40_000
    hidden_ND = torch.ones(2, 4).requires_grad_()
    weight_VD = torch.zeros(vocab_size, 4, requires_grad=True)
    with torch.autocast("cpu", torch.float16):
        loss, _ = chunked_sums(
            LinearHead(weight_VD),
            hidden_ND,
            torch.zeros(2).long(),
            Terms(1e-3, "forward-kl", 1.0),
            rows=in_dtype(
                topk(torch.full((2, vocab_size), -math.log(vocab_size)).double(), [1]), torch.float32
            ),
        )
    loss.backward()
    assert weight_VD.grad is not None
    torch.testing.assert_close(
        weight_VD.grad[5:], torch.full((vocab_size - 5, 4), 2e-3 / vocab_size), rtol=0.05, atol=0
    )


def test_no_rows_are_a_loss_of_0() -> None:
    """A batch without a supervised position has gradients, all 0."""
    head, hidden_ND, leaves = as_leaves(head_of("bias"), hidden_of(0), torch.float32)
    for kind, loss in KINDS:
        rows = rows_of(kind, 1)
        none = None if rows is None else in_dtype(rows, torch.float32)[:0]
        value, sums = chunked_sums(head, hidden_ND, targets_of(0), Terms(0.5, loss, 2.0), rows=none)
        gradients = torch.autograd.grad(value, leaves)
        assert sums.eq(0).all() and all(each.eq(0).all() for each in gradients)


def test_a_loss_that_the_teacher_does_not_allow_is_refused() -> None:
    """By the kind of its rows, and of a whole teacher."""
    head, hidden_ND = head_of("plain"), hidden_of()
    with pytest.raises(ValueError, match="sampled rows allow"):
        chunked_sums(head, hidden_ND, targets_of(N), Terms(0.5, "js", 1.0), rows=rows_of("sampled"))
    with pytest.raises(ValueError, match="a whole teacher needs no loss"):
        chunked_sums(
            head,
            hidden_ND,
            targets_of(N),
            Terms(0.5, "renormalised", 1.0),
            teacher=lambda start, stop: hidden_of()[start:stop],
        )
