"""The output head of a causal model: logits of chosen positions, a chunk at a time, as the model has them.

Splits a model where its body ends: `hidden` runs the body, `logits` the rest, on as few rows as memory likes.
Knows nothing of teachers, students, losses or ids that a tokenizer lacks.

The rest is the model's own forward with its body taken out, never a formula of ours.
What families do after the last norm has no common name.
`logits_scaling` divides logits in Granite, multiplies them in HyperCLOVAX, divides hidden states in MiniCPM3.
Cohere multiplies by `logit_scale`, Gemma caps, Phi adds a bias, Inkling cuts off the vocabulary's padding.

B sequences, T positions, V vocabulary, N rows, D hidden size.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast

from distillcache.head_form import HeadForm, is_plain
from distillcache.linear_head import LinearHead
from distillcache.packing import packed_inputs

__all__ = ["OutputHead"]

# Largest difference of two logits, over the largest logit, that is noise: the two ways multiply matrices of
# other shapes, so sums run in another order. fp32 allows for the TF32 of a GPU. A wrong scale is far above.
NOISE = {torch.float32: 1e-3, torch.float16: 5e-3, torch.bfloat16: 3e-2}


class OutputHead:
    """The body and the output head of one model, whose mode, dtype and gradients are the caller's.

    `whole_logits` is True where body and head cannot be run apart, and `warning` says why.
    `rows_logits` then runs the whole model, one sequence at a time.
    Neither path turns gradients off.
    A wrapped model (DistributedDataParallel, PEFT, torch.compile) must be handed over unwrapped.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        body = model.base_model
        self.model = model
        self.body: nn.Module = body
        self.warning: str | None = None
        self._form: HeadForm | None = None
        if body is model:
            self.warning = f"{type(model).__name__} has no body apart from its output head; {REMEDY}"

    @classmethod
    def of(cls, model: PreTrainedModel, probe_ids_BT: Tensor | None = None) -> "OutputHead":
        """The head of a model, checked on a probe of real token ids if there is one."""
        head = cls(model)
        if probe_ids_BT is not None:
            head.check(probe_ids_BT)
        return head

    @property
    def device(self) -> torch.device:
        """Where token ids go in."""
        return _first_device(self.model)

    @property
    def whole_logits(self) -> bool:
        """True if only the whole model gives logits: `hidden` and `logits` must not be used."""
        return self.warning is not None

    def hidden(
        self,
        input_ids_BT: Tensor,
        attention_mask_BT: Tensor | None = None,
        position_ids: Tensor | None = None,
    ) -> Tensor:
        """Hidden states after the final norm, [B, T, D], in the model's dtype, where its last layer is.

        Padding stands on the right, so positions count from the left as the model itself does.
        `position_ids`, [1, T]: of sequences packed into one row, each from 0; see `distillcache.packing`.
        """
        inputs: dict[str, Any] = _inputs(self.model, input_ids_BT, attention_mask_BT)
        if position_ids is not None:
            inputs |= packed_inputs(self.model, position_ids.to(inputs["input_ids"].device))
        out = self.body(**inputs, use_cache=False)
        hidden_BTD: Tensor = out[0]
        return hidden_BTD

    def logits(self, hidden_ND: Tensor) -> Tensor:
        """Logits of N hidden states, [N, V], in fp32, on the device of the head.

        Scale, cap and bias are the model's own, applied in its dtype.
        """
        projection = self.model.get_output_embeddings()  # type: ignore[no-untyped-call]
        weight = getattr(projection, "weight", None)
        if isinstance(weight, Tensor) and weight.device.type != "meta":
            hidden_ND = hidden_ND.to(weight.device)
        return self._without_body_logits(hidden_ND, {}).float()

    def _without_body_logits(self, hidden_ND: Tensor, others: dict[str, nn.Module]) -> Tensor:
        """What the model makes of hidden states, [N, V], with other modules in place of some of its own."""
        headless = _without_body(self.model)
        headless._modules.update(others)
        # By the class: a forward of the instance (accelerate's hooks) is bound to the model with its body.
        out = type(self.model).forward(headless, inputs_embeds=hidden_ND[None], use_cache=False)
        logits_1NV: Tensor = out.logits
        return logits_1NV[0]

    def linear(self) -> LinearHead | None:
        """The head as a matrix with what stands around it; None where it is more than that, or elsewhere.

        Parameters are those of this moment, so ask anew at each step.
        """
        projection = self.model.get_output_embeddings()  # type: ignore[no-untyped-call]
        if self.whole_logits or not is_plain(projection):
            return None
        if self._form is None or self._form.projection is not projection:
            self._form = self._found_form(projection)
        return self._form.head()

    def _found_form(self, projection: nn.Linear) -> HeadForm:
        names = [name for name, module in self.model._modules.items() if module is projection]

        def with_another(hidden_ND: Tensor, another: nn.Module) -> Tensor:
            return self._without_body_logits(hidden_ND, {names[0]: another})

        if len(names) != 1:
            return HeadForm(projection, None)
        with torch.autocast(projection.weight.device.type, enabled=False):
            return HeadForm.found(projection, with_another, self.logits, tolerance=_noise(self.model.dtype))

    def model_logits(
        self,
        input_ids_BT: Tensor,
        attention_mask_BT: Tensor | None = None,
        position_ids: Tensor | None = None,
    ) -> Tensor:
        """Logits of all positions, [B, T, V], in fp32, from the whole model."""
        inputs: dict[str, Any] = _inputs(self.model, input_ids_BT, attention_mask_BT)
        if position_ids is not None:
            inputs |= packed_inputs(self.model, position_ids.to(inputs["input_ids"].device))
        logits_BTV: Tensor = self.model(**inputs, use_cache=False).logits
        return logits_BTV.float()

    def rows_logits(
        self,
        input_ids_BT: Tensor,
        attention_mask_BT: Tensor | None,
        sequences_N: Tensor,
        positions_N: Tensor,
        rows_per_chunk: int,
        *,
        position_ids: Tensor | None = None,
    ) -> Iterator[Tensor]:
        """Logits of the positions (sequences_N[n], positions_N[n]), in their order, in chunks.

        Each chunk [n, V] in fp32, n at most `rows_per_chunk`.
        `position_ids` as in `hidden`.
        `sequences_N` ascends, as `torch.nonzero` of a mask gives it.
        One chunk of logits is alive at a time, beside those of one sequence where logits must be whole.
        """
        if len(sequences_N) == 0:
            return
        if not self.whole_logits:
            hidden_BTD = self.hidden(input_ids_BT, attention_mask_BT, position_ids)
            here = hidden_BTD.device
            hidden_ND = hidden_BTD[sequences_N.to(here), positions_N.to(here)]
            del hidden_BTD
            for chunk_nD in torch.split(hidden_ND, rows_per_chunk):
                yield self.logits(chunk_nD)
            return
        for b in torch.unique_consecutive(sequences_N).tolist():
            rows = positions_N[sequences_N == b]
            mask_1T = None if attention_mask_BT is None else attention_mask_BT[b : b + 1]
            places_1T = None if position_ids is None else position_ids[b : b + 1]
            logits_TV = self.model_logits(input_ids_BT[b : b + 1], mask_1T, places_1T)[0]
            for positions_n in torch.split(rows.to(logits_TV.device), rows_per_chunk):
                yield logits_TV[positions_n]

    @torch.no_grad()
    def check(self, probe_ids_BT: Tensor, *, tolerance: float | None = None) -> bool:
        """Whether head on body gives the model's own logits on a probe; if not, `warning` says so.

        `tolerance`: largest difference over the largest logit; None takes what the model's dtype makes noise.
        Raises what the model itself raises on the probe.
        """
        if self.whole_logits:
            return False
        tolerance = _noise(self.model.dtype) if tolerance is None else tolerance
        name = type(self.model).__name__
        theirs_BTV = self.model_logits(probe_ids_BT)
        try:
            ours_BTV = self.logits(self.hidden(probe_ids_BT).flatten(0, 1)).to(theirs_BTV.device)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # the code of any model, also from the hub, may fail in any way
            what = (str(error).splitlines() or [""])[0][:200]
            self.warning = (
                f"{name}: its output head does not run apart ({type(error).__name__}: {what}); {REMEDY}"
            )
            return False
        theirs_NV = theirs_BTV.flatten(0, 1)
        if ours_BTV.shape != theirs_NV.shape:
            self.warning = (
                f"{name}: its output head alone gives logits of shape {tuple(ours_BTV.shape)}, "
                f"the model {tuple(theirs_NV.shape)}; {REMEDY}"
            )
            return False
        difference = float((ours_BTV - theirs_NV).abs().max() / theirs_NV.abs().max().clamp_min(1e-6))
        if not difference <= tolerance:  # also where it is not a number
            self.warning = (
                f"{name}: its output head alone differs from the model's own logits by {difference:.1e} "
                f"of the largest (at most {tolerance:.0e} is noise); {REMEDY}"
            )
        return not self.whole_logits


def _noise(dtype: torch.dtype) -> float:
    return NOISE.get(dtype, 3e-2)


REMEDY = "whole logits are computed instead, slower and with more memory"


class _BodyOutput(BaseModelOutputWithPast):
    """Hidden states, and None for what else a family asks of its body (caches, attentions)."""

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)


class _NoBody(nn.Module):
    """Stands where a body was: the hidden states it is given are those it returns."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.__dict__["body"] = body  # not a submodule: nobody walks into it

    def __getattr__(self, name: str) -> Any:
        # Falcon-H1 reads its multiplier off the body.
        return getattr(self.__dict__["body"], name)

    def forward(self, *_: object, inputs_embeds: Tensor, **__: object) -> BaseModelOutputWithPast:
        return _BodyOutput(last_hidden_state=inputs_embeds)


def _without_body(model: PreTrainedModel) -> PreTrainedModel:
    """A view of the model that shares its head, config and mode, and has no body; the model is not touched.

    Made at each call, which is cheap, so that it never outlives a change of mode or of the embeddings.
    """
    headless = object.__new__(type(model))
    headless.__dict__.update(model.__dict__)
    headless.__dict__["_modules"] = dict(model._modules)
    headless._modules[model.base_model_prefix] = _NoBody(model.base_model)
    return headless


def _inputs(
    model: PreTrainedModel, input_ids_BT: Tensor, attention_mask_BT: Tensor | None
) -> dict[str, Tensor]:
    """Keyword arguments of a forward pass, where the embedding wants them."""
    device = _first_device(model)
    inputs = {"input_ids": input_ids_BT.to(device)}
    if attention_mask_BT is not None:
        inputs["attention_mask"] = attention_mask_BT.to(device)
    return inputs


def _first_device(model: PreTrainedModel) -> torch.device:
    embedding: Any = model.get_input_embeddings()
    hook = getattr(embedding, "_hf_hook", None)  # accelerate's: knows where offloaded weights will run
    device = getattr(hook, "execution_device", None)
    return embedding.weight.device if device is None else torch.device(device)
