"""Claims about losses in chunks: those of whole logits in float64, from one pass, in one chunk's memory."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from distillcache import chunked_loss as module
from distillcache import logit_gradients
from distillcache.chunked_loss import SUMS, Terms, chunked_sums
from distillcache.linear_head import LinearHead
from distillcache.losses import LOSSES, TeacherRows
from tests.distillcache.made_rows import dense_total, in_dtype, random_logprobs, sampled, topk

N, V, D = 23, 90, 16
TEMPERATURES = (0.5, 1.0, 2.5, 4.0)
# What is learned from, and with which losses.
KINDS = [("none", None), *(("topk", loss) for loss in LOSSES), ("sampled", "forward-kl")]
WHOLE = [("whole", loss) for loss in LOSSES if loss != "renormalised"]
HEADS = {
    "plain": {},
    "bias": {"bias": True, "bias_scale": 0.5, "hidden_scale": 0.25},
    "cap": {"cap": 2.0, "hidden_scale": 1.5},
}


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several chunks of unequal size, of several blocks."""
    monkeypatch.setattr(module, "CHUNK_BYTES", 10 * V * 4)
    monkeypatch.setattr(logit_gradients, "BLOCK_BYTES", {"cpu": 3 * V * 4})


def head_of(around: str, *, scale: float = 0.6, vocab_size: int = V) -> LinearHead:
    """A head of random parameters, float64."""
    settings: dict[str, Any] = dict(HEADS[around])
    generator = torch.Generator().manual_seed(5)
    weight_VD = scale * torch.randn(vocab_size, D, generator=generator, dtype=torch.float64)
    bias_V = torch.randn(vocab_size, generator=generator, dtype=torch.float64)
    return LinearHead(weight_VD, bias_V if settings.pop("bias", False) else None, **settings)


def hidden_of(num_rows: int = N, *, seed: int = 6) -> Tensor:
    return torch.randn(num_rows, D, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def targets_of(num_rows: int, vocab_size: int = V) -> Tensor:
    """Some of them are kept ids, some not."""
    return torch.arange(num_rows) * 7 % vocab_size


def rows_of(kind: str, num_rows: int = N, vocab_size: int = V) -> TeacherRows | None:
    """Rows of unequal size, some empty, one of all ids."""
    logprobs_NV = random_logprobs(num_rows, vocab_size)
    if kind == "topk":
        return topk(logprobs_NV, [4, 1, 0, 12, vocab_size - 1, 2, vocab_size])
    return sampled(logprobs_NV) if kind == "sampled" else None


def as_leaves(
    head: LinearHead, hidden_ND: Tensor, dtype: torch.dtype
) -> tuple[LinearHead, Tensor, list[Tensor]]:
    """The same, rounded, and what gets gradients."""
    weight_VD = head.weight_VD.detach().to(dtype, copy=True).requires_grad_()
    bias_V = None if head.bias_V is None else head.bias_V.detach().to(dtype, copy=True).requires_grad_()
    hidden_ND = hidden_ND.detach().to(dtype, copy=True).requires_grad_()
    leaves = [hidden_ND, weight_VD] + ([] if bias_V is None else [bias_V])
    return LinearHead(weight_VD, bias_V, head.hidden_scale, head.bias_scale, head.cap), hidden_ND, leaves


def both(
    head: LinearHead,
    hidden_ND: Tensor,
    terms: Terms,
    rows: TeacherRows | None = None,
    teacher_NU: Tensor | None = None,
) -> tuple[list[Tensor], list[Tensor]]:
    """Loss, hard, soft, KL and gradients: in chunks and fp32, and dense in float64 of the same numbers."""
    results = []
    targets_N = targets_of(len(hidden_ND), len(head.weight_VD))
    rows = None if rows is None else in_dtype(rows, torch.float32)
    teacher_NU = None if teacher_NU is None else teacher_NU.float()
    for dtype in (torch.float32, torch.float64):
        # Through fp32 in both cases, so that what differs is arithmetic alone.
        rounded_head, rounded_hidden, _ = as_leaves(head, hidden_ND, torch.float32)
        ours_head, ours_hidden, leaves = as_leaves(rounded_head, rounded_hidden.detach(), dtype)
        if dtype == torch.float32:
            teacher = None if teacher_NU is None else (lambda start, stop: teacher_NU[start:stop])
            loss, sums = chunked_sums(ours_head, ours_hidden, targets_N, terms, rows=rows, teacher=teacher)
            values = [loss, *sums[1:4]]
            assert sums[0] == loss.detach() and sums[4] == len(hidden_ND)
        else:
            wide = None if rows is None else in_dtype(rows, dtype)
            whole = None if teacher_NU is None else teacher_NU.double()
            values = list(dense_total(ours_head, ours_hidden, targets_N, terms, wide, whole))
        gradients = torch.autograd.grad(values[0], leaves)
        results.append([*(each.detach().double() for each in values), *(each.double() for each in gradients)])
    return results[0], results[1]


def close(found: list[Tensor], wanted: list[Tensor], *, smallest: float = 1e-2) -> None:
    """Values in proportion to themselves (or to a nat), gradients to their largest element.

    That is a difference of probabilities, which fp32 rounds at 1e-7 of 1, however small it is.
    """
    for ours, theirs in zip(found, wanted, strict=True):
        assert ours.isfinite().all()
        size = float(theirs.abs().max())
        least = 1.0 if theirs.ndim == 0 else smallest
        assert float((ours - theirs).abs().max()) <= 1e-5 * max(size, least)


@pytest.mark.parametrize("around", HEADS)
@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize(("kind", "loss"), KINDS)
def test_values_and_gradients_are_those_of_whole_logits(
    kind: str, loss: str | None, temperature: float, alpha: float, around: str
) -> None:
    """For every kind of row, loss, temperature and weight, and heads with a bias, scales and a cap."""
    found, wanted = both(head_of(around), hidden_of(), Terms(alpha, loss, temperature), rows_of(kind))
    close(found, wanted)


@pytest.mark.parametrize("num_teacher_ids", [V, V - 10, V + 10])
@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize(("kind", "loss"), WHOLE)
def test_a_whole_teachers_too(
    kind: str, loss: str, temperature: float, alpha: float, num_teacher_ids: int
) -> None:
    """Also one whose vocabulary is padded to another size."""
    teacher_NU = random_logprobs(N, num_teacher_ids) + 5
    terms = Terms(alpha, loss, temperature)
    found, wanted = both(head_of("cap"), hidden_of(), terms, teacher_NU=teacher_NU)
    close(found, wanted)
    assert found[2] > 0 and found[3] > 0


@pytest.mark.parametrize(("kind", "loss"), KINDS)
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_gradients_are_the_slopes_of_values(kind: str, loss: str | None, temperature: float) -> None:
    """By differences, in float64, with no formula of ours."""
    head, hidden_ND, leaves = as_leaves(head_of("cap"), hidden_of(), torch.float64)
    rows, terms, targets_N = rows_of(kind), Terms(0.3, loss, temperature), targets_of(N)

    def value() -> Tensor:
        return chunked_sums(head, hidden_ND, targets_N, terms, rows=rows)[0]

    gradients = torch.autograd.grad(value(), leaves)
    step, generator = 1e-5, torch.Generator().manual_seed(0)
    for leaf, gradient in zip(leaves, gradients, strict=True):
        direction = torch.randn(leaf.shape, generator=generator, dtype=torch.float64)
        with torch.no_grad():
            above = leaf.add_(step * direction) is leaf and value()
            below = leaf.sub_(2 * step * direction) is leaf and value()
            leaf.add_(step * direction)
        torch.testing.assert_close(
            (above - below) / (2 * step), (gradient * direction).sum(), rtol=1e-6, atol=1e-6
        )


# Extreme logits are given as hidden states of a head that is the identity, so that products round nothing.
def identity() -> LinearHead:
    return LinearHead(torch.eye(V, dtype=torch.float64))


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("student_tail", [-200.0, -40.0, 40.0, 200.0])
@pytest.mark.parametrize("loss", LOSSES)
def test_the_student_may_put_all_its_mass_inside_or_outside_the_kept_ids(
    loss: str, student_tail: float, temperature: float
) -> None:
    """And outside it is punished, the more the further."""
    rows = topk(random_logprobs(6, V), [1, 5, 12])
    logits_NV = 3 * random_logprobs(6, V, scale=1.0, seed=9)
    for n in range(6):
        outside = torch.ones(V, dtype=torch.bool)
        outside[rows.head_ids[rows.head_offsets[n] : rows.head_offsets[n + 1]].long()] = False
        logits_NV[n, outside] += student_tail
    found, wanted = both(identity(), logits_NV, Terms(0.0, loss, temperature), rows)
    # Logits of 200 are known to 1.5e-5 in fp32, but here both begin from the same.
    close(found, wanted)
    if student_tail > 0 and loss in ("forward-kl", "renormalised"):
        assert found[0] > student_tail / 4
        kept = rows.head_ids[rows.head_offsets[1] : rows.head_offsets[2]].long()
        assert found[4][1, kept].sum() < 0  # upwards, on the whole


@pytest.mark.parametrize("peak", [20.0, 90.0, 500.0])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
@pytest.mark.parametrize(("kind", "loss"), [*KINDS[1:], *WHOLE])
def test_probability_one_is_a_number_like_another(
    kind: str, loss: str, temperature: float, peak: float
) -> None:
    """Of student and teacher, on the same id and on different ones."""
    teacher_NV, student_NV = torch.zeros(4, V).double(), torch.zeros(4, V).double()
    teacher_NV[:, 3] = peak
    student_NV[0, 3] = student_NV[1, 50] = student_NV[2, 7] = peak
    logprobs_NV = teacher_NV.log_softmax(1)
    rows = {"topk": topk(logprobs_NV, [1, 2]), "sampled": sampled(logprobs_NV)}.get(kind)
    whole = teacher_NV if kind == "whole" else None
    found, wanted = both(identity(), student_NV, Terms(0.5, loss, temperature), rows, whole)
    close(found, wanted)
    assert found[0] > peak / 10


@pytest.mark.parametrize("alpha", [0.0, 0.5])
@pytest.mark.parametrize("loss", LOSSES)
def test_rows_that_keep_nothing_teach_nothing(loss: str, alpha: float) -> None:
    """Their hard loss stands."""
    rows = topk(random_logprobs(5, V), [0])
    if loss == "renormalised":  # of nothing there is no shape
        rows = topk(random_logprobs(5, V), [0, 3])
    found, wanted = both(head_of("plain"), hidden_of(5), Terms(alpha, loss, 2.0), rows)
    close(found, wanted)
    if loss != "renormalised":
        assert found[2].abs() < 1e-5
        if alpha == 0:
            assert all(each.abs().max() < 1e-5 for each in found[4:])


@given(
    st.integers(0, 10_000),
    st.floats(0.5, 4.0),
    st.floats(0.01, 30.0),
    st.floats(0.0, 1.0),
    st.sampled_from([*KINDS[1:], *WHOLE]),
)
def test_any_logits_give_numbers_and_no_divergence_below_0(
    seed: int, temperature: float, scale: float, alpha: float, what: tuple[str, str]
) -> None:
    """Flat to extreme; rows as a cache has them, in fp16."""
    kind, loss = what
    logprobs_NV = random_logprobs(5, V, scale=scale, seed=seed + 1)
    rows = None
    if kind != "whole":
        rows = topk(logprobs_NV, [1, 6, V - 1, 0]) if kind == "topk" else sampled(logprobs_NV)
        rows = in_dtype(in_dtype(rows, torch.float16), torch.float64)
    whole = logprobs_NV if kind == "whole" else None
    logits_NV = random_logprobs(5, V, scale=scale, seed=seed)
    found, wanted = both(identity(), logits_NV, Terms(alpha, loss, temperature), rows, whole)
    # Logarithms of about `scale` over T, known to 1e-7 of that, are factors of the gradient, times T squared.
    close(found, wanted, smallest=max(1e-2, temperature, 0.1 * scale * temperature))
    if kind != "sampled":  # an estimate
        assert found[2] > -1e-5 and found[3] > -1e-5


def test_the_hard_gradient_is_q_less_the_target_by_hand() -> None:
    """Cross-entropy, with no other code of ours."""
    hidden_ND, targets_N = hidden_of().float().requires_grad_(), targets_of(N)
    weight_VD = head_of("plain").weight_VD.float().requires_grad_()
    loss, sums = chunked_sums(LinearHead(weight_VD), hidden_ND, targets_N, Terms(1.0, None, 1.0))
    loss.backward()
    q_NV = (hidden_ND @ weight_VD.t()).detach().softmax(1)
    wanted = -q_NV[torch.arange(N), targets_N].log().sum()
    torch.testing.assert_close(loss.detach(), wanted)
    g_NV = q_NV - torch.nn.functional.one_hot(targets_N, V)
    torch.testing.assert_close(hidden_ND.grad, g_NV @ weight_VD.detach(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(weight_VD.grad, g_NV.t() @ hidden_ND.detach(), rtol=1e-5, atol=1e-5)
    assert sums[2] == sums[3] == 0


def test_the_sampled_gradient_is_q_less_the_rows_by_hand() -> None:
    """T times q at T, less head values and draws of weight R / m."""
    temperature = 2.0
    rows, logits_NV = rows_of("sampled"), 4 * random_logprobs(N, V, scale=1.0, seed=3).float()
    assert rows is not None
    logits_NV.requires_grad_()
    head = LinearHead(torch.eye(V))
    loss, _ = chunked_sums(
        head,
        logits_NV,
        targets_of(N),
        Terms(0.0, "forward-kl", temperature),
        rows=in_dtype(rows, torch.float32),
    )
    loss.backward()
    g_NV = (logits_NV.detach().double() / temperature).softmax(1)
    for n in range(N):
        kept = slice(int(rows.head_offsets[n]), int(rows.head_offsets[n + 1]))
        drawn = slice(int(rows.draw_offsets[n]), int(rows.draw_offsets[n + 1]))
        g_NV[n, rows.head_ids[kept].long()] -= rows.head_logprobs[kept].exp()
        for each in rows.draw_ids[drawn].tolist():
            g_NV[n, each] -= rows.tail_mass[n] / (drawn.stop - drawn.start)
    torch.testing.assert_close(logits_NV.grad, (temperature * g_NV).float(), rtol=1e-5, atol=1e-6)


def test_the_gradient_of_topk_rows_at_temperature_1_by_hand() -> None:
    """q - p on kept ids; outside, the teacher's tail mass with the student's shape."""
    rows, logits_NV = topk(random_logprobs(N, V), [6]), 4 * random_logprobs(N, V, scale=1.0, seed=3).float()
    logits_NV.requires_grad_()
    chunked_sums(
        LinearHead(torch.eye(V)),
        logits_NV,
        targets_of(N),
        Terms(0.0, "forward-kl", 1.0),
        rows=in_dtype(rows, torch.float32),
    )[0].backward()
    q_NV = logits_NV.detach().double().softmax(1)
    ids_NK, logprobs_NK = rows.head_ids.reshape(N, 6).long(), rows.head_logprobs.reshape(N, 6)
    tail_NV = q_NV.scatter(1, ids_NK, 0.0)
    wanted_NV = q_NV - rows.tail_mass[:, None] * tail_NV / tail_NV.sum(1, keepdim=True)
    wanted_NV.scatter_add_(1, ids_NK, -logprobs_NK.exp())
    torch.testing.assert_close(logits_NV.grad, wanted_NV.float(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("loss", ["forward-kl", "reverse-kl", "js"])
def test_the_gradient_carries_the_square_of_the_temperature(loss: str) -> None:
    """Near the teacher every divergence is a square of differences over T, so at high T none of T is left."""
    teacher_NV = random_logprobs(N, V, scale=0.5)
    student_NV = (teacher_NV + 0.01 * random_logprobs(N, V, scale=1.0, seed=8)).float()
    sizes = []
    for temperature in (20.0, 40.0):
        logits_NV = student_NV.clone().requires_grad_()
        chunked_sums(
            LinearHead(torch.eye(V)),
            logits_NV,
            targets_of(N),
            Terms(0.0, loss, temperature),
            teacher=lambda start, stop: teacher_NV[start:stop].float(),
        )[0].backward()
        assert logits_NV.grad is not None
        sizes.append(float(logits_NV.grad.norm()))
    assert sizes[1] == pytest.approx(sizes[0], rel=0.05) and sizes[0] > 0


def test_a_student_that_is_the_teacher_has_no_soft_loss_and_no_gradient() -> None:
    """Against rows of all its ids, and against all logits."""
    logits_NV = random_logprobs(N, V).float()
    rows = in_dtype(topk(logits_NV.double(), [8, V]), torch.float32)
    for teaching in ({"rows": rows}, {"teacher": lambda start, stop: logits_NV[start:stop] + 3}):
        student_NV = logits_NV.clone().requires_grad_()
        loss, sums = chunked_sums(
            LinearHead(torch.eye(V)),
            student_NV,
            targets_of(N),
            Terms(0.0, "forward-kl", 2.0),
            **teaching,
        )
        loss.backward()
        found = dict(zip(SUMS, sums.tolist(), strict=True))
        assert abs(found["soft"]) < 1e-4 and abs(found["kl"]) < 1e-4
        assert student_NV.grad is not None and student_NV.grad.abs().max() < 1e-5


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
        rows = {"topk": topk(logprobs_NV, [5]), "sampled": sampled(logprobs_NV)}.get(kind)
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
