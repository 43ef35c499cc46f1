"""LoRA: small matrices beside the linear layers of a student, trained in their place (arXiv:2106.09685).

By peft, in place: the student stays the model that it is, so that its output head is found where it was.
Checkpoints hold the adapter alone; in the end it is merged, and nobody needs peft to load the student.
Knows nothing of training.
"""

import contextlib
import importlib.util
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from distillcache.errors import ConfigError
from distillcache.learn.config import LearnConfig
from distillcache.learn.student import Student

__all__ = ["Adapter", "add_lora"]


class Adapter:
    """The adapter of one student, whose own weights are frozen."""

    def __init__(self, tuned: Any) -> None:
        self._tuned = tuned  # peft's wrapper, never called: the student itself runs

    def save(self, folder: Path) -> None:
        """As peft reads it."""
        with _quiet():
            # Else it asks the hub whether the vocabulary grew.
            self._tuned.save_pretrained(str(folder), save_embedding_layers=False)
        (folder / "README.md").unlink(missing_ok=True)  # a card with blanks to fill in

    def load(self, folder: Path) -> None:
        """Weights that `save` wrote."""
        from peft import load_peft_weights, set_peft_model_state_dict

        with _quiet():
            set_peft_model_state_dict(self._tuned, load_peft_weights(str(folder), device="cpu"))

    def merge(self) -> PreTrainedModel:
        """Add it to the student's weights; afterwards the student is a plain model, and this is of no use."""
        with _quiet():
            model: PreTrainedModel = self._tuned.merge_and_unload(safe_merge=True)
        # A note of peft's for transformers, which would save an adapter.
        model.__dict__.pop("peft_config", None)
        return model


def add_lora(student: Student, config: LearnConfig) -> Adapter:
    """Give the student an adapter as the settings ask for it, and freeze everything else.

    Raises ConfigError where peft is missing, or the student has no layers of the names that are asked for.
    """
    assert config.lora_rank is not None
    if importlib.util.find_spec("peft") is None:
        raise ConfigError(
            "--lora-rank: the package peft is not installed; run `pip install 'distillcache[lora]'`"
        )
    from peft import LoraConfig, get_peft_model

    _check_targets(student.model, config.lora_targets)
    # A caller's own random numbers go on as if nothing had been drawn.
    with _quiet(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        tuned = get_peft_model(
            student.model,
            LoraConfig(
                task_type="CAUSAL_LM",
                r=config.lora_rank,
                lora_alpha=2 * config.lora_rank if config.lora_alpha is None else config.lora_alpha,  # type: ignore[arg-type]
                lora_dropout=config.lora_dropout or 0.0,
                target_modules=list(config.lora_targets) or "all-linear",
                base_model_name_or_path=student.name,  # no path of this machine
            ),
        )
    tuned.peft_config["default"].base_model_name_or_path = student.name
    return Adapter(tuned)


def _check_targets(model: PreTrainedModel, targets: tuple[str, ...]) -> None:
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()  # type: ignore[no-untyped-call]
    linear = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear | Conv1D) and module not in (head, embedding)
    }
    for target in targets:
        if not any(name == target or name.endswith(f".{target}") for name in linear):
            ends = sorted({name.rsplit(".", 1)[-1] for name in linear})
            raise ConfigError(
                f"--lora-targets: {type(model).__name__} has no linear layer of that name but in its output "
                f"head, found {target!r}; take some of {', '.join(ends)}"
            )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without peft's remarks on how weights of GPT-2 lie, and on what it cannot know of the base model."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
