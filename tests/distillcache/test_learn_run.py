"""Claims about `learn`: a model that loads and writes, from every kind of row, reported as it learns."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from distillcache.errors import ConfigError
from distillcache.learn.events import Done, Evaluated, Event, Started, Step
from distillcache.learn.result import LearnResult
from distillcache.learn.run import learn
from tests.distillcache.learning import Make, losses, same_weights


def test_a_student_is_written_that_loads_and_generates(
    config: Make, capfd: pytest.CaptureFixture[str]
) -> None:
    """With its tokenizer and card; nothing is printed, no path of the machine and no pickle is left in it."""
    chosen = config(max_steps=30, alpha=0.0, temperature=1.0, eval_every=10, save_every=20, keep_last=1)
    events: list[Event] = []
    result = learn(chosen, on_event=events.append)
    assert capfd.readouterr() == ("", "")

    assert isinstance(events[0], Started) and isinstance(events[-1], Done)
    assert (events[0].num_train, events[0].num_held_out, events[0].num_steps) == (19, 5, 30)
    assert [event.step for event in events if isinstance(event, Evaluated)] == [0, 10, 20, 30]
    assert list(losses(events)) == list(range(1, 31))
    assert result.before is not None and result.after is not None
    assert result.after.kl < 0.9 * result.before.kl
    assert result.tokens_per_second is not None and result.tokens_per_second > 0

    output = chosen.output
    model = AutoModelForCausalLM.from_pretrained(output)
    tokenizer = AutoTokenizer.from_pretrained(output)
    assert model.num_parameters() == result.num_parameters == events[0].num_parameters
    ids = tokenizer("the teacher", return_tensors="pt")
    assert model.generate(**ids, max_new_tokens=4, do_sample=False).shape[1] > ids["input_ids"].shape[1]
    assert model.config.use_cache

    card = (output / "README.md").read_text()
    for wanted in ("tiny-teacher", "forward KL", f"{result.after.kl:.4f}", "19 sequences", "topk rows"):
        assert wanted in card
    texts = [path for path in output.iterdir() if path.suffix in (".md", ".json")]
    assert len(texts) >= 4
    for path in texts:
        if path.name != "learn.json":  # names the output folder to whoever asked for it
            assert str(output.parent) not in path.read_text()
    assert not list(output.glob("*.bin")) and not (output / ".student").exists()
    assert [path.name for path in (output / "checkpoints").glob("checkpoint-*")] == ["checkpoint-30"]


def test_a_finished_run_is_not_run_again(config: Make) -> None:
    """The same result comes back at once; reports and checkpoints may be asked for otherwise."""
    first = learn(config(max_steps=2))
    events: list[Event] = []
    again = learn(config(max_steps=2, logging_every=2, save_every=7, workers=1), on_event=events.append)
    assert again == first
    assert events == [Done(output=first.output, already=True)]
    assert LearnResult.from_dict(json.loads(json.dumps(first.to_dict())), first.output) == first


@pytest.mark.parametrize("kind", ["output", "logit", "hybrid"])
@pytest.mark.parametrize("cache", ["cache", "sampled"])
def test_every_type_learns_from_every_kind_of_row(config: Make, room: Path, kind: str, cache: str) -> None:
    """And every one is told how far it is from the teacher."""
    events: list[Event] = []
    result = learn(config(cache=room / cache, type=kind), on_event=events.append)
    assert result.before is not None and result.after is not None
    assert result.after.hard_loss < result.before.hard_loss
    steps = [event for event in events if isinstance(event, Step)]
    assert all((step.kl is None) == (step.soft_loss is None) == (kind == "output") for step in steps)


def test_a_student_that_is_the_teacher_has_nothing_to_learn(config: Make, room: Path) -> None:
    """From a model folder; its KL to the cache is 0 within fp32."""
    result = learn(config(student=str(room / "teacher"), max_steps=1, learning_rate=1e-12))
    assert result.before is not None and abs(result.before.kl) < 1e-5
    assert result.before.top1_agreement == 1.0


def test_accumulation_weighs_tokens_and_not_batches(config: Make, tmp_path: Path) -> None:
    """All sequences in one step, in one batch or in batches of unequal sizes: the same losses."""
    found = []
    for number, settings in enumerate(
        ({"batch_size": 24}, {"batch_size": 4, "gradient_accumulation": 100}, {"batch_tokens": 150})
    ):
        events: list[Event] = []
        many = {"gradient_accumulation": 100} if number == 2 else {}
        learn(
            config(**settings, **many, max_steps=3, output=tmp_path / str(number), held_out=0.0),
            on_event=events.append,
        )
        found.append(losses(events))
    for other in found[1:]:
        assert list(other.values()) == pytest.approx(list(found[0].values()), rel=1e-5)


def test_checkpointing_the_body_and_reading_ahead_change_nothing(config: Make, tmp_path: Path) -> None:
    """Bit for bit, on one thread."""
    learn(config(max_steps=3))
    learn(config(max_steps=3, gradient_checkpointing=False, workers=2, output=tmp_path / "other"))
    assert same_weights(tmp_path / "student", tmp_path / "other")


def test_mixed_precision_keeps_weights_in_fp32(config: Make) -> None:
    """bf16, which every CPU can emulate."""
    result = learn(config(dtype="bf16", max_steps=1))
    weights = load_file(result.output / "model.safetensors")
    assert {each.dtype for each in weights.values()} == {torch.float32}
    assert result.before is not None and result.after is not None
    assert result.after.hard_loss < result.before.hard_loss
    with pytest.raises(ConfigError, match="--dtype: a CPU cannot train in fp16"):
        learn(config(dtype="fp16", overwrite=True))


def test_trackers_get_every_report(config: Make, tmp_path: Path) -> None:
    """TensorBoard's files lie in the output folder, and nowhere else."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    before = set(Path.cwd().iterdir())
    learn(config(max_steps=3, report_to=("tensorboard",)))
    assert set(Path.cwd().iterdir()) == before
    (log,) = (tmp_path / "student").rglob("events.out.*")
    read = EventAccumulator(str(log))
    read.Reload()
    names = set(read.Tags()["scalars"])
    assert {"train/hard_loss", "train/soft_loss", "train/kl", "train/perplexity", "eval/kl"} <= names
    assert len(read.Scalars("eval/kl")) == 2 and len(read.Scalars("train/hard_loss")) == 3
