"""Claims about what stands around an output head's matrix: found where it is simple, refused where not."""

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from distillcache.head import OutputHead
from tests.distillcache.tiny_models import BASE, TINY, loud, odd_head, tiny

PROBE = torch.arange(3, 30)[None]
# Factors of hidden states and of biases, and caps.
WANTED = {
    "gemma2_soft_cap": (1.0, 1.0, 3.0),
    "gemma3_soft_cap": (1.0, 1.0, 3.0),
    "cohere_scale_multiplies": (0.0625, 0.0625, None),
    "granite_scale_divides": (0.125, 0.125, None),
    "minicpm3_scale_divides_hidden": (0.5, 1.0, None),
    "falcon_h1_scale_on_the_body": (0.3, 0.3, None),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", TINY)
def test_every_family_is_understood_by_what_it_does(family: str, dtype: torch.dtype) -> None:
    """Scales and caps come out as they are in its config, and logits as its own."""
    model = TINY[family]().to(dtype)
    head = OutputHead.of(model, PROBE)
    found = head.linear()
    assert found is not None
    hidden_scale, bias_scale, cap = WANTED.get(family, (1.0, 1.0, None))
    assert (found.hidden_scale, found.bias_scale) == pytest.approx((hidden_scale, bias_scale), rel=1e-6)
    assert found.cap == cap
    assert (found.bias_V is not None) == (family == "phi_bias")
    with torch.no_grad():
        hidden_ND = head.hidden(PROBE)[0]
        ours, theirs = found.logits(hidden_ND), head.logits(hidden_ND)
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    assert (ours - theirs).abs().max() <= tolerance * theirs.abs().max()


def test_parameters_are_those_of_the_moment() -> None:
    """A step later, or with other embeddings."""
    model = TINY["llama_tied"]()
    head = OutputHead.of(model, PROBE)
    first = head.linear()
    assert first is not None and first.weight_VD is model.model.embed_tokens.weight
    model.resize_token_embeddings(340, mean_resizing=False)
    second = head.linear()
    assert second is not None and second.vocab_size == 340


class Bent(LlamaForCausalLM):
    """Logits bent by something that is neither a scale nor a cap."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:  # type: ignore[override]
        out = super().forward(*args, **kwargs)
        out.logits = out.logits.sign() * out.logits.abs().sqrt()
        return out


class Shifted(LlamaForCausalLM):
    """One id is pushed down, whatever comes."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:  # type: ignore[override]
        out = super().forward(*args, **kwargs)
        out.logits = out.logits - nn.functional.one_hot(torch.tensor(5), out.logits.shape[-1])
        return out


class CutOff(LlamaForCausalLM):
    """Fewer logits than rows of the matrix."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:  # type: ignore[override]
        out = super().forward(*args, **kwargs)
        out.logits = out.logits[..., :-4]
        return out


class Twice(LlamaForCausalLM):
    """A nonlinearity before the matrix."""

    def forward(self, input_ids: Any = None, **kwargs: Any) -> Any:  # type: ignore[override]
        out = self.model(input_ids=input_ids, **{k: v for k, v in kwargs.items() if k == "inputs_embeds"})
        return type("Out", (), {"logits": self.lm_head(out[0].tanh())})


@pytest.mark.parametrize("kind", [Bent, Shifted, CutOff, Twice])
def test_what_is_not_understood_is_not_taken_for_something_else(kind: type[LlamaForCausalLM]) -> None:
    """It runs apart all the same, by its own code."""
    torch.manual_seed(0)
    head = OutputHead.of(loud(kind(LlamaConfig(**BASE))), PROBE)
    assert head.linear() is None and not head.whole_logits


def _with_hook(projection: nn.Linear) -> nn.Module:
    projection.register_forward_hook(lambda module, args, out: 2 * out)
    return projection


def _replaced(projection: nn.Linear) -> nn.Module:
    own = projection.forward
    projection.forward = lambda hidden: own(hidden)  # type: ignore[method-assign]
    return projection


class Another(nn.Linear):
    """A linear layer of another kind, as peft and quantisation put one in its place."""


def _another(projection: nn.Linear) -> nn.Module:
    other = Another(projection.in_features, projection.out_features, bias=False)
    other.weight = projection.weight
    return other


@pytest.mark.parametrize("change", [_with_hook, _replaced, _another, parametrizations.weight_norm])
def test_a_projection_that_does_more_is_left_to_itself(change: Callable[[nn.Linear], nn.Module]) -> None:
    """With hooks, a forward of its own, parametrised, or of another class: also when that comes later."""
    model = tiny("llama", tie_word_embeddings=False)
    head = OutputHead.of(model, PROBE)
    assert head.linear() is not None
    model.lm_head = change(model.lm_head)
    assert head.linear() is None


def test_lora_on_the_head_is_left_to_itself() -> None:
    """And on other layers leaves the head as it was, with a frozen matrix."""
    from peft import LoraConfig, get_peft_model

    for targets, is_plain in ((["lm_head"], False), (["q_proj"], True)):
        model = tiny("llama", tie_word_embeddings=False)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # peft asks transformers by an older name
            get_peft_model(model, LoraConfig(r=2, target_modules=targets))
        found = OutputHead.of(model, PROBE).linear()
        assert (found is not None) == is_plain
        assert found is None or not found.weight_VD.requires_grad


def test_a_model_that_cannot_be_run_apart_has_none() -> None:
    """Its logits are whole."""
    assert OutputHead.of(odd_head(), PROBE).linear() is None


def test_it_is_found_in_fp32_also_inside_autocast() -> None:
    """Where a step of mixed precision asks for the first time."""
    head = OutputHead.of(TINY["granite_scale_divides"](), PROBE)
    with torch.autocast("cpu", torch.bfloat16):
        found = head.linear()
        assert found is not None and found.product_dtype == torch.bfloat16
    assert found.hidden_scale == 0.125 and found.product_dtype == torch.float32


def test_the_model_is_left_as_it_was() -> None:
    """Its projection is the one that it had, and gradients are as they were."""
    model: PreTrainedModel = TINY["gemma2_soft_cap"]()
    before: Tensor = model(PROBE).logits
    projection = model.get_output_embeddings()
    OutputHead.of(model, PROBE).linear()
    assert model.get_output_embeddings() is projection
    assert torch.equal(model(PROBE).logits, before)
    assert all(each.grad is None for each in model.parameters())
