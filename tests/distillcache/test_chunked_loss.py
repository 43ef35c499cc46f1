"""Claims about losses in chunks: those of whole logits in float64, and gradients that are right by hand."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from distillcache.chunked_loss import SUMS, Terms, chunked_sums
from distillcache.linear_head import LinearHead
from distillcache.losses import LOSSES
from tests.distillcache.chunks import (
    HEADS,
    KINDS,
    TEMPERATURES,
    WHOLE,
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
from tests.distillcache.made_rows import in_dtype, random_logprobs, sampled, tilted, topk

pytestmark = pytest.mark.usefixtures("small_chunks")


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
    rows = {
        "topk": topk(logprobs_NV, [1, 2]),
        "sampled": sampled(logprobs_NV),
        "tilted": tilted(logprobs_NV),
    }.get(kind)
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
        made = {"sampled": sampled, "tilted": tilted}
        rows = topk(logprobs_NV, [1, 6, V - 1, 0]) if kind == "topk" else made[kind](logprobs_NV)
        rows = in_dtype(in_dtype(rows, torch.float16), torch.float64)
    whole = logprobs_NV if kind == "whole" else None
    logits_NV = random_logprobs(5, V, scale=scale, seed=seed)
    found, wanted = both(identity(), logits_NV, Terms(alpha, loss, temperature), rows, whole)
    # Logarithms of about `scale` over T, known to 1e-7 of that, are factors of the gradient, times T squared.
    close(found, wanted, smallest=max(1e-2, temperature, 0.1 * scale * temperature))
    if kind not in ("sampled", "tilted"):  # estimates
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


@pytest.mark.parametrize("kind", ["sampled", "tilted"])
def test_the_sampled_gradient_is_q_less_the_rows_by_hand(kind: str) -> None:
    """T times q at T, less head values and draws of weight R / m; of tilted rows q times the row's mass."""
    temperature = 2.0
    rows, logits_NV = rows_of(kind), 4 * random_logprobs(N, V, scale=1.0, seed=3).float()
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
    said_NV = torch.zeros(N, V, dtype=torch.float64)
    for n in range(N):
        kept = slice(int(rows.head_offsets[n]), int(rows.head_offsets[n + 1]))
        drawn = slice(int(rows.draw_offsets[n]), int(rows.draw_offsets[n + 1]))
        said_NV[n, rows.head_ids[kept].long()] += rows.head_logprobs[kept].exp()
        for d in range(drawn.start, drawn.stop):
            weight = rows.tail_mass[n] / (drawn.stop - drawn.start)
            if kind == "tilted":
                assert rows.draw_weights is not None
                weight = rows.draw_weights[d]
            said_NV[n, rows.draw_ids[d]] += weight
    mass_N1 = said_NV.sum(1, keepdim=True)
    assert (float((mass_N1 - 1).abs().max()) > 0.01) == (kind == "tilted")
    g_NV = mass_N1 * (logits_NV.detach().double() / temperature).softmax(1) - said_NV
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
