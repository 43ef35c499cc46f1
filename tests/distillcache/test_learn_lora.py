"""Claims about LoRA: little is trained, the saved student is whole and plain, the adapter lies beside it."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from distillcache.errors import ConfigError
from distillcache.learn.events import Event, Started, Step
from distillcache.learn.run import learn
from tests.distillcache.learning import Make, Stopped, losses, refusal, same_weights, stop_after
from tests.distillcache.tiny_cache import NUM_IDS
from tests.distillcache.tiny_models import save_teacher, tiny


@pytest.fixture
def start(tmp_path: Path) -> Path:
    """A student to continue from that is not the teacher."""
    return save_teacher(tmp_path / "start", tiny("llama", seed=3, vocab_size=NUM_IDS))


def test_the_saved_student_is_plain_and_is_what_was_evaluated(config: Make, start: Path) -> None:
    """Merged: it loads without peft, has the scores that the adapter had, and moved where it was trained."""
    events: list[Event] = []
    chosen = config(student=str(start), lora_rank=4, lora_targets=("q_proj", "down_proj"), max_steps=20)
    result = learn(chosen, on_event=events.append)
    begun = events[0]
    assert isinstance(begun, Started) and begun.num_adapter_parameters is not None
    # Two layers, 32 wide and 48 inside: rank x (in + out) each.
    assert begun.num_adapter_parameters == 2 * (4 * (32 + 32) + 4 * (48 + 32))
    assert begun.num_parameters == result.num_parameters

    before, after = load_file(start / "model.safetensors"), load_file(result.output / "model.safetensors")
    assert before.keys() == after.keys()
    moved = {name for name in after if not torch.equal(before[name], after[name])}
    assert {name.split(".")[-2] for name in moved} == {"q_proj", "down_proj"}
    model = AutoModelForCausalLM.from_pretrained(result.output)
    assert type(model).__name__ == "LlamaForCausalLM" and model.num_parameters() == result.num_parameters

    again = learn(
        config(student=str(result.output), max_steps=1, learning_rate=1e-12, output=chosen.output / "again")
    )
    assert result.after is not None and again.before is not None
    assert again.before.kl == pytest.approx(result.after.kl, rel=1e-4)
    assert result.before is not None and result.after.kl < result.before.kl
    assert "LoRA, merged | rank 4, on q_proj, down_proj" in (result.output / "README.md").read_text()


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")  # peft, of transformers
def test_the_adapter_lies_beside_the_student_and_gives_it_back(config: Make, start: Path) -> None:
    """As peft reads it, without a path of this machine; checkpoints hold nothing more of the model."""
    from peft import PeftModel

    result = learn(config(student=str(start), lora_rank=2, lora_alpha=3.0))
    about = json.loads((result.output / "adapter" / "adapter_config.json").read_text())
    assert (about["r"], about["lora_alpha"], about["base_model_name_or_path"]) == (2, 3.0, "start")
    base = AutoModelForCausalLM.from_pretrained(start)
    adapted = PeftModel.from_pretrained(base, result.output / "adapter").eval()
    merged = AutoModelForCausalLM.from_pretrained(result.output).eval()
    ids_1T = torch.arange(3, 40)[None]
    torch.testing.assert_close(adapted(ids_1T).logits, merged(ids_1T).logits, rtol=1e-4, atol=1e-4)
    assert not list((result.output / "checkpoints").rglob("model*.safetensors"))


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_every_linear_layer_but_the_head_is_trained_unless_told_otherwise(
    config: Make, tmp_path: Path, family: str
) -> None:
    """Also where they are called otherwise and lie transposed; in bf16, with dropout, computed twice."""
    student = save_teacher(tmp_path / "start", tiny(family, vocab_size=NUM_IDS))
    found = {}
    for checkpointing in (True, False):
        events: list[Event] = []
        output = tmp_path / str(checkpointing)
        learn(
            config(
                student=str(student),
                lora_rank=2,
                lora_dropout=0.2,
                dtype="bf16",
                max_steps=3,
                output=output,
                gradient_checkpointing=checkpointing,
            ),
            on_event=events.append,
        )
        found[checkpointing] = losses(events)
        before, after = load_file(student / "model.safetensors"), load_file(output / "model.safetensors")
        moved = {name.split(".")[-2] for name in after if not torch.equal(before[name], after[name])}
        wanted = {
            "llama": {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"},
            "gpt2": {"c_attn", "c_proj", "c_fc"},
        }
        assert moved == wanted[family]
    # The same dropout, drawn again for the second pass.
    assert found[True] == pytest.approx(found[False], rel=1e-2)


def test_a_run_with_an_adapter_goes_on_where_it_was_stopped(
    config: Make, start: Path, tmp_path: Path
) -> None:
    """Dropout and all: same losses, same bits."""
    settings = {"student": str(start), "lora_rank": 2, "lora_dropout": 0.5, "max_steps": 8, "save_every": 3}
    whole: list[Event] = []
    learn(config(**settings, output=tmp_path / "whole"), on_event=whole.append)
    chosen = config(**settings)
    first: list[Event] = []
    with pytest.raises(Stopped):
        learn(chosen, on_event=stop_after(5, first))
    second: list[Event] = []
    learn(chosen, on_event=second.append)
    assert {**losses(first), **losses(second)} == losses(whole)
    assert min(event.step for event in second if isinstance(event, Step)) == 4
    assert same_weights(chosen.output, tmp_path / "whole")
    assert same_weights(
        chosen.output / "adapter", tmp_path / "whole" / "adapter", "adapter_model.safetensors"
    )


@pytest.mark.parametrize("target", ["query", "lm_head", "embed_tokens"])
def test_layers_that_are_not_there_or_may_not_be_taken_are_refused(
    config: Make, start: Path, target: str
) -> None:
    """With the names of those that may."""
    text = refusal(config(student=str(start), lora_rank=2, lora_targets=("q_proj", target)), ConfigError)
    assert text.startswith("--lora-targets: ") and f"{target!r}" in text and "down_proj" in text


def test_an_adapter_of_another_rank_is_another_run(config: Make, start: Path) -> None:
    """And the old adapter goes with the old student."""
    result = learn(config(student=str(start), lora_rank=2, max_steps=1))
    assert "lora_rank is 2 there and 3 here" in refusal(config(student=str(start), lora_rank=3, max_steps=1))
    assert (result.output / "adapter").is_dir()
    learn(config(student=str(start), max_steps=1, overwrite=True))
    assert not (result.output / "adapter").exists()
