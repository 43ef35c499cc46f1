"""Claims about the output head: it gives the model's own logits, or says that it cannot."""

import math

import pytest
import torch
from accelerate import cpu_offload, dispatch_model
from torch import Tensor
from transformers import PreTrainedModel

from distillcache.head import OutputHead
from tests.distillcache.tiny_models import TINY, odd_head, tiny

# Same weights, same sums in another order: fp32 noise.
FP32 = 1e-5


def _ids(num_sequences: int = 2, length: int = 24, seed: int = 0) -> Tensor:
    return torch.randint(3, 250, (num_sequences, length), generator=torch.Generator().manual_seed(seed))


def _all_rows(head: OutputHead, ids_BT: Tensor, mask_BT: Tensor | None, rows_per_chunk: int) -> Tensor:
    mask = torch.ones_like(ids_BT) if mask_BT is None else mask_BT
    sequences_N, positions_N = mask.nonzero(as_tuple=True)
    chunks = list(head.rows_logits(ids_BT, mask_BT, sequences_N, positions_N, rows_per_chunk))
    assert all(len(chunk) <= rows_per_chunk for chunk in chunks)
    return torch.cat(chunks)


@pytest.mark.parametrize("family", TINY)
@torch.no_grad()
def test_chunked_logits_are_the_models_own(family: str) -> None:
    """Whatever a family does after its last norm, chunks through the head give what the model gives."""
    model = TINY[family]()
    head = OutputHead.of(model, _ids(seed=1))
    assert head.warning is None
    ids_BT = _ids()
    theirs_NV = model(ids_BT).logits.flatten(0, 1)
    ours_NV = _all_rows(head, ids_BT, None, rows_per_chunk=7)
    assert ours_NV.dtype == torch.float32
    torch.testing.assert_close(ours_NV, theirs_NV, rtol=FP32, atol=FP32 * float(theirs_NV.abs().max()))


@pytest.mark.parametrize("family", TINY)
@torch.no_grad()
def test_padding_on_the_right_changes_no_row(family: str) -> None:
    """Rows of sequences of unequal lengths in one batch are those of each sequence alone."""
    head = OutputHead.of(TINY[family]())
    lengths = (5, 24, 13)
    mask_BT = (torch.arange(24) < torch.tensor(lengths)[:, None]).long()
    ids_BT = _ids(3) * mask_BT
    batch_NV = _all_rows(head, ids_BT, mask_BT, rows_per_chunk=50)
    alone = [head.model(ids_BT[b : b + 1, :length]).logits[0] for b, length in enumerate(lengths)]
    # Attention sums in blocks that depend on the padded length.
    torch.testing.assert_close(batch_NV, torch.cat(alone), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_head_that_cannot_run_apart_falls_back_to_whole_logits_and_says_so() -> None:
    """A model that adds something of its own to the logits is run whole; the user is told."""
    model = odd_head()
    head = OutputHead.of(model, _ids(seed=1))
    assert head.whole_logits
    assert head.warning is not None and "OddHead" in head.warning and "whole logits" in head.warning
    assert "\n" not in head.warning
    ids_BT = _ids()
    theirs_NV = model(ids_BT).logits.flatten(0, 1)
    torch.testing.assert_close(_all_rows(head, ids_BT, None, 10), theirs_NV, rtol=FP32, atol=FP32)


@torch.no_grad()
def test_head_that_fails_to_run_apart_falls_back_too() -> None:
    """A model whose forward cannot do without its body is run whole."""

    class Stubborn(type(TINY["llama_tied"]())):  # type: ignore[misc]
        def forward(self, input_ids: Tensor | None = None, **kwargs: object) -> object:
            assert input_ids is not None, "token ids\nor nothing"
            return super().forward(input_ids=input_ids, **kwargs)

    model = Stubborn(TINY["llama_tied"]().config).eval()
    head = OutputHead.of(model, _ids())
    assert head.whole_logits
    assert head.warning is not None and "token ids" in head.warning and "\n" not in head.warning


@torch.no_grad()
def test_check_refuses_a_cap_left_out() -> None:
    """A check that compares with the model tells when scale or cap are not the model's."""
    model = tiny("gemma2", final_logit_softcapping=3.0, query_pre_attn_scalar=8)
    head = OutputHead.of(model)
    uncapped = model.get_output_embeddings()
    head.logits = lambda hidden_ND: uncapped(hidden_ND).float()  # type: ignore[method-assign]
    assert not head.check(_ids())
    assert head.warning is not None


@torch.no_grad()
def test_half_precision_is_not_taken_for_another_head() -> None:
    """In bf16 the noise of the dtype is within the check's tolerance, and logits still come in fp32."""
    model = TINY["cohere_scale_multiplies"]().to(torch.bfloat16)
    head = OutputHead.of(model, _ids())
    assert head.warning is None
    assert head.logits(head.hidden(_ids())[0]).dtype == torch.float32


def test_gradients_through_the_head_are_those_of_the_model() -> None:
    """A loss on chunks of rows trains body and head as the same loss on the whole logits does."""

    def gradients(model: PreTrainedModel, chunked: bool) -> list[Tensor]:
        head, ids_BT = OutputHead.of(model), _ids()
        model.zero_grad()
        if chunked:
            logits_NV = _all_rows(head, ids_BT, None, 10)
        else:
            logits_NV = model(ids_BT).logits.flatten(0, 1)
        torch.logsumexp(logits_NV, 1).sum().backward()
        return [each.grad for each in model.parameters() if each.grad is not None]

    model = TINY["gemma2_soft_cap"]()
    ours, theirs = gradients(model, True), gradients(model, False)
    assert len(ours) == len(theirs) > 5
    for mine, reference in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, reference, rtol=1e-4, atol=1e-4 * float(reference.abs().max()))


@torch.no_grad()
def test_no_more_than_a_chunk_of_logits_exists() -> None:
    """The matrix product of the head never sees more rows than a chunk, whatever the batch holds."""
    model = TINY["llama_untied"]()
    rows: list[int] = []
    model.lm_head.register_forward_hook(lambda module, args, out: rows.append(math.prod(out.shape[:-1])))
    _all_rows(OutputHead.of(model), _ids(), None, rows_per_chunk=9)
    assert sum(rows) == 48 and max(rows) == 9


@torch.no_grad()
def test_no_position_runs_no_model() -> None:
    """A batch without a supervised position yields nothing and computes nothing."""
    model = TINY["llama_tied"]()
    model.model.register_forward_hook(lambda *_: pytest.fail("the body ran"))
    none = torch.zeros(0, dtype=torch.long)
    assert list(OutputHead.of(model).rows_logits(_ids(), None, none, none, 8)) == []


@torch.no_grad()
def test_model_is_left_as_it_was() -> None:
    """Running the head takes nothing out of the model: it still generates the same afterwards."""
    model = TINY["llama_tied"]()
    before = model(_ids()).logits
    body = model.model
    OutputHead.of(model, _ids())
    assert model.model is body
    assert torch.equal(model(_ids()).logits, before)


@pytest.mark.parametrize("family", ["llama_tied", "phi_bias"])
@pytest.mark.parametrize("spread", ["dispatched", "offloaded"])
@torch.no_grad()
def test_model_under_accelerates_hooks_gives_the_same_logits(family: str, spread: str) -> None:
    """A model spread over devices or held elsewhere until it runs, as one too large for a GPU is."""
    plain_NV = _all_rows(OutputHead.of(TINY[family]()), _ids(), None, 10)
    if spread == "dispatched":
        model = dispatch_model(TINY[family](), {"": "cpu"}, force_hooks=True)
    else:
        model = TINY[family]()
        cpu_offload(model, torch.device("cpu"))
        assert model.get_input_embeddings().weight.device.type == "meta"
    head = OutputHead.of(model, _ids())
    assert head.warning is None
    assert head.device == torch.device("cpu")
    torch.testing.assert_close(_all_rows(head, _ids(), None, 10), plain_NV, rtol=FP32, atol=FP32)
