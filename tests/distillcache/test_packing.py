"""Claims about packing: sequences in one row come out as they do alone, or the model is told apart."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from distillcache.head import OutputHead
from distillcache.packing import can_pack, pack_attention, packed_positions, unpack_attention
from tests.distillcache.tiny_models import TINY, tiny

LENGTHS = (5, 17, 1, 30)
PACKS = (
    "llama_tied", "llama_untied", "gpt2_learned_positions", "phi_bias", "qwen2", "qwen3", "gemma3_soft_cap",
    "cohere_scale_multiplies", "granite_scale_divides", "minicpm3_scale_divides_hidden",
)  # fmt: skip
WINDOW = {"sliding_window": 4, "use_sliding_window": True, "max_window_layers": 1}


def sequences() -> list[Tensor]:
    """Random ids, one sequence of a single token among them."""
    random = torch.Generator().manual_seed(0)
    return [torch.randint(3, 300, (length,), generator=random) for length in LENGTHS]


@pytest.mark.parametrize("family", [*PACKS, "qwen2_sliding_window"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_logits_and_gradients_of_packed_sequences_are_those_of_each_alone(
    family: str, checkpointing: bool
) -> None:
    """Also where layers are computed again, and where a sequence does not see all of itself."""
    make: Callable[[], PreTrainedModel] = (
        (lambda: tiny("qwen2", **WINDOW)) if family == "qwen2_sliding_window" else TINY[family]
    )
    model, ids = make(), sequences()
    head = OutputHead.of(model)
    if checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
        model.train()
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
    alone_TV = torch.cat([head.logits(head.hidden(each[None])[0]) for each in ids])
    weights_TV = torch.randn(alone_TV.shape, generator=torch.Generator().manual_seed(1))
    wanted = torch.autograd.grad((alone_TV * weights_TV).sum(), list(model.parameters()), allow_unused=True)
    assert pack_attention(model)
    packed_TV = head.logits(head.hidden(torch.cat(ids)[None], None, packed_positions(LENGTHS)[None])[0])
    torch.testing.assert_close(packed_TV, alone_TV, rtol=1e-4, atol=1e-4)
    found = torch.autograd.grad((packed_TV * weights_TV).sum(), list(model.parameters()), allow_unused=True)
    for ours, theirs in zip(found, wanted, strict=True):
        if theirs is not None:
            assert ours is not None
            # Sums of a hundred terms of either sign, in another order.
            torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3 * float(theirs.abs().max()) + 1e-6)


@pytest.mark.parametrize("family", PACKS)
def test_the_probe_lets_these_families_pack(family: str) -> None:
    """And afterwards gives them their own attention back."""
    model = TINY[family]()
    assert pack_attention(model) and can_pack(OutputHead.of(model), sequences())
    unpack_attention(model)
    assert model.config.get_text_config()._attn_implementation == "sdpa"
    assert "distillcache" not in model.config.to_json_string()


@pytest.mark.parametrize("family", ["falcon_h1_scale_on_the_body", "mamba_no_attention"])
def test_the_probe_finds_sequences_that_leak(family: str) -> None:
    """State spaces carry on from one sequence to the next, whatever positions say."""
    model = TINY[family]()
    pack_attention(model)
    assert not can_pack(OutputHead.of(model), sequences())
    assert not can_pack(OutputHead.of(model), sequences()[:1])


def test_attention_of_another_kind_is_left_alone() -> None:
    """Gemma 2 caps its scores, which torch's kernel does not."""
    model = TINY["gemma2_soft_cap"]()
    assert not pack_attention(model)
    assert model.config._attn_implementation == "eager"


def test_padded_batches_run_as_before_on_a_model_that_packs() -> None:
    """A mask is heeded where there is one."""
    model = TINY["qwen2"]()
    ids_BT = torch.stack([sequences()[3], sequences()[3].flip(0)])
    mask_BT = torch.ones_like(ids_BT)
    ids_BT[0, :10], mask_BT[0, :10] = 0, 0  # on the left, where causality alone would not hide it
    wanted_BTV = model(input_ids=ids_BT, attention_mask=mask_BT).logits
    pack_attention(model)
    found_BTV = model(input_ids=ids_BT, attention_mask=mask_BT).logits
    real_BT = mask_BT.bool()
    torch.testing.assert_close(found_BTV[real_BT], wanted_BTV[real_BT])
    written = model.generate(sequences()[1][None], max_new_tokens=5, do_sample=False)
    unpack_attention(model)
    assert torch.equal(written, model.generate(sequences()[1][None], max_new_tokens=5, do_sample=False))
