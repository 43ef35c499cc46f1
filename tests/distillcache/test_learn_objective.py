"""Claims about the objective: chunks are the whole, heads are the model's own, rows meet their positions."""

import dataclasses
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from distillcache import chunked_loss
from distillcache.head import OutputHead
from distillcache.learn import objective as module
from distillcache.learn.data import IGNORED, collate
from distillcache.learn.objective import SUMS, Objective, batch_sums
from distillcache.learn.scores import score_sums, scores
from distillcache.losses import TeacherRows, full_losses, row_losses
from distillcache.metrics import means, perplexity, row_metrics, summed
from distillcache.packing import packed_positions
from distillcache_shards.cache import Cache
from tests.distillcache.tiny_cache import NUM_IDS, sentences, small_teacher, write_cache
from tests.distillcache.tiny_models import TINY, odd_head, tiny

LOGIT = Objective(
    alpha=0.5, soft_loss="forward-kl", temperature=2.0, row_kind="topk", row_temperature=1.0, row_tau=None
)


@pytest.fixture(scope="module")
def batch(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Six sequences of unequal lengths, with rows."""
    folder = tmp_path_factory.mktemp("objective") / "cache"
    return collate(Cache.open(write_cache(folder, small_teacher(), sentences(6))).read(range(6)))


def whole(model: PreTrainedModel, batch: dict[str, Any]) -> Tensor:
    """The same loss from the model's own logits of all positions."""
    logits_BTV = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits.float()
    targets_BT = batch["labels"][:, 1:]
    wanted_BT = targets_BT != IGNORED
    rows = TeacherRows("topk", **batch["rows"])
    losses = row_losses(logits_BTV[:, :-1][wanted_BT], targets_BT[wanted_BT], rows, temperature=2.0)
    assert losses.soft_N is not None
    return (0.5 * losses.hard_N + 0.5 * losses.soft_N).sum()


def gradients(model: PreTrainedModel, loss: Tensor) -> list[Tensor]:
    """Of all parameters."""
    return list(torch.autograd.grad(loss, list(model.parameters())))


class Adapted(nn.Linear):
    """A head with a small matrix beside it and dropout before that, as LoRA adds them."""

    def __init__(self, plain: nn.Linear) -> None:
        super().__init__(plain.in_features, plain.out_features, bias=False)
        self.weight = plain.weight
        self.down = nn.Parameter(torch.randn(2, plain.in_features))
        self.up = nn.Parameter(torch.randn(plain.out_features, 2) / 4)

    def forward(self, hidden: Tensor) -> Tensor:
        dropped = nn.functional.dropout(hidden, 0.5, self.training)
        return super().forward(hidden) + dropped @ self.down.t() @ self.up.t()


def adapted() -> PreTrainedModel:
    """A model whose head is more than a matrix, but runs apart."""
    model = tiny("llama", tie_word_embeddings=False)
    torch.manual_seed(0)
    model.lm_head = Adapted(model.lm_head)
    return model.eval()


STUDENTS = {**TINY, "odd head": odd_head, "adapted head": adapted}


@pytest.mark.parametrize("family", STUDENTS)
def test_loss_and_gradients_are_those_of_whole_logits(
    batch: dict[str, Any], family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For heads that scale, cap and bias, for one that is more, and for one that cannot be run apart."""
    model = STUDENTS[family]()
    for each in (module, chunked_loss):
        monkeypatch.setattr(each, "CHUNK_BYTES", 13 * 4 * model.config.vocab_size)
    head = OutputHead.of(model, batch["input_ids"][:1, :10])
    assert head.whole_logits == (family == "odd head")
    assert (head.linear() is None) == (family not in TINY)
    loss, sums = batch_sums(head, LOGIT, batch)
    wanted = whole(model, batch)
    torch.testing.assert_close(loss, wanted, rtol=1e-5, atol=1e-5)
    for ours, theirs in zip(gradients(model, loss), gradients(model, wanted), strict=True):
        # Padding is masked, so only the order of sums differs.
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=2e-4)
    assert sums[SUMS.index("rows")] == (batch["labels"] != IGNORED).sum()
    assert not sums.requires_grad


def test_logits_are_not_kept_for_the_backward_pass_of_a_head_that_is_more_than_a_matrix(
    batch: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is kept for it, weights aside, is far less than the logits of all rows."""
    model = tiny("llama", vocab_size=16_384, tie_word_embeddings=False)
    model.lm_head = Adapted(model.lm_head)
    monkeypatch.setattr(module, "CHUNK_BYTES", 8 * 4 * 16_384)
    head = OutputHead.of(model)
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss, _ = batch_sums(head, LOGIT, batch)
    loss.backward()
    for parameter in model.parameters():
        kept.pop(parameter.untyped_storage().data_ptr(), None)
    logits_bytes = 4 * 16_384 * int((batch["labels"] != IGNORED).sum())
    assert sum(kept.values()) < logits_bytes / 3


def test_a_head_that_drops_out_drops_the_same_when_it_is_formed_again(batch: dict[str, Any]) -> None:
    """Gradients are those of the loss that was seen, not of another draw."""
    model = adapted().train()
    head, found = OutputHead.of(model), []
    rows = TeacherRows("topk", **batch["rows"])
    places_BT = batch["labels"][:, 1:] != IGNORED
    for ours in (True, False):
        torch.manual_seed(3)
        if ours:
            loss, _ = batch_sums(head, LOGIT, batch)
        else:
            hidden_ND = head.hidden(batch["input_ids"], batch["attention_mask"])[:, :-1][places_BT]
            targets_N = batch["labels"][:, 1:][places_BT]
            losses = row_losses(head.logits(hidden_ND), targets_N, rows, temperature=2.0)
            assert losses.soft_N is not None
            loss = (0.5 * losses.hard_N + 0.5 * losses.soft_N).sum()
        found.append([loss.detach(), *gradients(model, loss)])
    for mine, theirs in zip(*found, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=2e-4)


@pytest.mark.parametrize("loss", ["forward-kl", "reverse-kl", "js"])
@pytest.mark.parametrize(
    ("student", "teacher"),
    [
        ("llama_tied", "granite_scale_divides"),
        ("gemma2_soft_cap", "odd head"),
        ("adapted head", "adapted head"),
        ("odd head", "llama_tied"),
    ],
)
def test_a_whole_teacher_is_learned_from_a_chunk_at_a_time(
    batch: dict[str, Any], student: str, teacher: str, loss: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the heads of both are; ids that the tokenizer lacks have no part in what it says."""
    model, taught = STUDENTS[student](), STUDENTS[teacher]()
    for each in (module, chunked_loss):
        monkeypatch.setattr(each, "CHUNK_BYTES", 13 * 4 * model.config.vocab_size)
    probe = batch["input_ids"][:1, :10]
    head, teacher_head = OutputHead.of(model, probe), OutputHead.of(taught, probe)
    bare = {name: value for name, value in batch.items() if name != "rows"}
    objective = dataclasses.replace(LOGIT, soft_loss=loss)
    total, sums = batch_sums(head, objective, bare, teacher=teacher_head, num_ids=NUM_IDS)
    places_BT = batch["labels"][:, 1:] != IGNORED

    def logits_of(each: PreTrainedModel) -> Tensor:
        found = each(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        return found[:, :-1][places_BT].float()

    with torch.no_grad():
        teacher_NU = logits_of(taught)[:, :NUM_IDS]
    logits_NV = logits_of(model)
    targets_N = batch["labels"][:, 1:][places_BT]
    losses = full_losses(logits_NV, targets_N, teacher_NU, loss=loss, temperature=2.0)
    assert losses.soft_N is not None and losses.kl_N is not None
    wanted = (0.5 * losses.hard_N + 0.5 * losses.soft_N).sum()
    torch.testing.assert_close(total, wanted, rtol=1e-5, atol=1e-5)
    for ours, theirs in zip(gradients(model, total), gradients(model, wanted), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=5e-4)
    found = dict(zip(SUMS, sums.tolist(), strict=True))
    assert found["kl"] == pytest.approx(float(losses.kl_N.sum()), rel=1e-5)
    assert found["rows"] == len(targets_N)
    assert all(parameter.grad is None for parameter in taught.parameters())


@pytest.mark.parametrize("student", ["llama_tied", "adapted head", "odd head"])
@pytest.mark.parametrize("online", [False, True])
def test_packed_sequences_have_the_loss_of_padded_ones(
    batch: dict[str, Any], student: str, online: bool
) -> None:
    """Against rows and against a whole teacher, also where logits must be whole."""
    model = STUDENTS[student]()
    real_BT = batch["attention_mask"].bool()
    lengths = real_BT.sum(1).tolist()
    packed = {
        "input_ids": batch["input_ids"][real_BT][None],
        "labels": batch["labels"][real_BT][None],
        "position_ids": packed_positions(lengths)[None],
    }
    padded = {name: value for name, value in batch.items() if name != "rows"}
    head = OutputHead.of(model, batch["input_ids"][:1, :10])
    found = []
    for each in (packed, padded):
        if online:
            settings = {"teacher": OutputHead.of(tiny("llama", seed=4), batch["input_ids"][:1, :10])}
            sums = batch_sums(head, LOGIT, each, **settings)[1]
        else:
            sums = batch_sums(head, LOGIT, {**each, "rows": batch["rows"]})[1]
        found.append(sums)
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-4)


def test_a_student_that_is_the_teacher_has_no_kl_and_a_shift_by_one_gives_it_some(
    batch: dict[str, Any],
) -> None:
    """So rows stand where their predictions are made."""
    head = OutputHead.of(small_teacher())
    _, right = scores(score_sums(head, LOGIT, batch), 100)
    assert abs(right.kl) < 1e-5 and right.top1_agreement == 1.0
    rows = dict(batch["rows"])
    k = 16
    for name in ("head_ids", "head_logprobs"):
        rows[name] = rows[name].roll(k)
    rows["tail_mass"] = rows["tail_mass"].roll(1)
    _, shifted = scores(score_sums(head, LOGIT, {**batch, "rows": rows}), 100)
    assert shifted.kl > 0.5 and shifted.top1_agreement is not None and shifted.top1_agreement < 0.5


def test_without_rows_there_is_a_hard_loss_alone(batch: dict[str, Any]) -> None:
    """Of `output`, which weighs it with 1."""
    head = OutputHead.of(tiny("llama", vocab_size=NUM_IDS))
    output = Objective(
        alpha=1.0, soft_loss=None, temperature=1.0, row_kind="topk", row_temperature=1.0, row_tau=None
    )
    bare = {name: value for name, value in batch.items() if name != "rows"}
    loss, sums = batch_sums(head, output, bare)
    found = dict(zip(SUMS, sums.tolist(), strict=True))
    assert float(loss.detach()) == pytest.approx(found["hard"]) and found["kl"] == found["soft"] == 0
    with_rows = dict(zip(SUMS, batch_sums(head, output, batch)[1].tolist(), strict=True))
    assert with_rows["hard"] == pytest.approx(found["hard"]) and with_rows["kl"] > 0


@pytest.mark.parametrize("family", ["llama_tied", "adapted head", "odd head"])
def test_scores_are_means_of_losses_and_metrics(
    batch: dict[str, Any], family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of whole logits at once, however many chunks there were; text is counted in bits a byte."""
    model = STUDENTS[family]()
    monkeypatch.setattr(module, "CHUNK_BYTES", 13 * 4 * model.config.vocab_size)
    head = OutputHead.of(model, batch["input_ids"][:1, :10])
    loss, found = scores(score_sums(head, LOGIT, batch), 100)
    places_BT = batch["labels"][:, 1:] != IGNORED
    with torch.no_grad():
        whole_logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        logits_NV = whole_logits[:, :-1][places_BT].float()
        targets_N = batch["labels"][:, 1:][places_BT]
        rows = TeacherRows("topk", **batch["rows"])
        wanted = means(summed(row_metrics(logits_NV, targets_N, rows)))
    total, _ = batch_sums(head, LOGIT, batch)
    assert loss * found.num_rows == pytest.approx(float(total.detach()), rel=1e-5)
    assert found.hard_loss == pytest.approx(wanted.hard_loss, rel=1e-5)
    assert found.bits_per_byte == pytest.approx(wanted.hard_loss * found.num_rows / math.log(2) / 100)
    assert found.kl == pytest.approx(wanted.kl, rel=1e-5)
    assert found.top1_agreement == wanted.top1_agreement
    assert found.calibration_error == pytest.approx(wanted.calibration_error, rel=1e-4)
    assert (found.acceptance_min, found.acceptance_max) == pytest.approx(
        (wanted.acceptance_low, wanted.acceptance_high), rel=1e-5
    )
    assert scores(score_sums(head, LOGIT, batch), 0)[1].bits_per_byte is None


def test_perplexity_of_a_lost_student_is_a_number_or_infinite() -> None:
    """Never an overflow."""
    assert perplexity(0.0) == 1.0
    assert perplexity(699.0) < float("inf") == perplexity(701.0)
