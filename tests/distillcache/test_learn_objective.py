"""Claims about the objective: chunks are the whole, heads are the model's own, rows meet their positions."""

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from distillcache.head import OutputHead
from distillcache.learn import objective as module
from distillcache.learn.data import IGNORED, collate
from distillcache.learn.objective import SUMS, Objective, batch_sums, perplexity, scores
from distillcache.losses import TeacherRows, row_losses
from distillcache_shards.cache import Cache
from tests.distillcache.tiny_cache import NUM_IDS, sentences, small_teacher, write_cache
from tests.distillcache.tiny_models import TINY, odd_head, tiny

LOGIT = Objective(alpha=0.5, soft_loss="forward-kl", temperature=2.0, row_kind="topk", row_temperature=1.0)


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


@pytest.mark.parametrize("family", [*TINY, "odd head"])
def test_loss_and_gradients_are_those_of_whole_logits(
    batch: dict[str, Any], family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For heads that scale, cap and bias, and for one that cannot be run apart; in chunks of 13 rows."""
    model = odd_head() if family == "odd head" else TINY[family]()
    monkeypatch.setattr(module, "CHUNK_BYTES", 13 * 4 * model.config.vocab_size)
    head = OutputHead.of(model, batch["input_ids"][:1, :10])
    assert head.whole_logits == (family == "odd head")
    loss, sums = batch_sums(head, LOGIT, batch, agreement=False)
    wanted = whole(model, batch)
    torch.testing.assert_close(loss, wanted, rtol=1e-5, atol=1e-5)
    for ours, theirs in zip(gradients(model, loss), gradients(model, wanted), strict=True):
        # Padding is masked, so only the order of sums differs.
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=2e-4)
    assert sums[SUMS.index("rows")] == (batch["labels"] != IGNORED).sum()
    assert not sums.requires_grad


def test_logits_are_not_kept_for_the_backward_pass(
    batch: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is kept for it, weights aside, is far less than the logits of all rows."""
    model = tiny("llama", vocab_size=16_384)
    monkeypatch.setattr(module, "CHUNK_BYTES", 8 * 4 * 16_384)
    head = OutputHead.of(model)
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss, _ = batch_sums(head, LOGIT, batch, agreement=False)
    loss.backward()
    for parameter in model.parameters():
        kept.pop(parameter.untyped_storage().data_ptr(), None)
    logits_bytes = 4 * 16_384 * int((batch["labels"] != IGNORED).sum())
    assert sum(kept.values()) < logits_bytes / 3


def test_a_student_that_is_the_teacher_has_no_kl_and_a_shift_by_one_gives_it_some(
    batch: dict[str, Any],
) -> None:
    """So rows stand where their predictions are made."""
    head = OutputHead.of(small_teacher())
    with torch.no_grad():
        right = scores(
            dict(zip(SUMS, batch_sums(head, LOGIT, batch, agreement=True)[1].tolist(), strict=True))
        )
    assert abs(right.kl) < 1e-5 and right.top1_agreement == 1.0
    rows = dict(batch["rows"])
    k = 16
    for name in ("head_ids", "head_logprobs"):
        rows[name] = rows[name].roll(k)
    rows["tail_mass"] = rows["tail_mass"].roll(1)
    with torch.no_grad():
        sums = batch_sums(head, LOGIT, {**batch, "rows": rows}, agreement=True)[1].tolist()
    shifted = scores(dict(zip(SUMS, sums, strict=True)))
    assert shifted.kl > 0.5 and shifted.top1_agreement is not None and shifted.top1_agreement < 0.5


def test_without_rows_there_is_a_hard_loss_alone(batch: dict[str, Any]) -> None:
    """Of `output`, which weighs it with 1."""
    head = OutputHead.of(tiny("llama", vocab_size=NUM_IDS))
    output = Objective(alpha=1.0, soft_loss=None, temperature=1.0, row_kind="topk", row_temperature=1.0)
    bare = {name: value for name, value in batch.items() if name != "rows"}
    loss, sums = batch_sums(head, output, bare, agreement=False)
    found = dict(zip(SUMS, sums.tolist(), strict=True))
    assert float(loss.detach()) == pytest.approx(found["hard"]) and found["kl"] == found["soft"] == 0
    with_rows = dict(zip(SUMS, batch_sums(head, output, batch, agreement=True)[1].tolist(), strict=True))
    assert with_rows["hard"] == pytest.approx(found["hard"]) and with_rows["kl"] > 0


def test_perplexity_of_a_lost_student_is_a_number_or_infinite() -> None:
    """Never an overflow."""
    assert perplexity(0.0) == 1.0
    assert perplexity(699.0) < float("inf") == perplexity(701.0)


def test_sampled_rows_without_a_head_ask_for_no_agreement() -> None:
    """A teacher so unsure that no id reaches the threshold does not say its first."""
    found = scores({"hard": 1.0, "kl": 1.0, "rows": 1.0, "agree": 0.0, "asked": 0.0})
    assert found.top1_agreement is None
