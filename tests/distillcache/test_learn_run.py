"""Claims about `learn`: a model that loads and writes, a run that goes on where it stopped, refusals."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from distillcache.errors import ConfigError, DistillcacheError, StudentError
from distillcache.learn.config import LearnConfig
from distillcache.learn.events import Done, Evaluated, Event, Started, Step
from distillcache.learn.result import LearnResult
from distillcache.learn.run import learn
from distillcache_shards.errors import MissingShardError
from tests.distillcache.tiny_cache import sentences, small_teacher, write_cache
from tests.distillcache.tiny_models import save_teacher

ROOT = Path(__file__).parents[2]
SIZES = """hidden_size = 32
intermediate_size = 48
num_hidden_layers = 2
num_attention_heads = 4
max_position_embeddings = 128
"""


class Stopped(Exception):
    """Whatever may stop a run."""


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Caches of both kinds of row, a file of sizes, and the teacher."""
    room = tmp_path_factory.mktemp("learn")
    (room / "small.toml").write_text(SIZES)
    write_cache(room / "cache", small_teacher(), sentences())
    write_cache(room / "sampled", small_teacher(), sentences(), tau=1 / 16, temperature=2.0)
    save_teacher(room / "teacher", small_teacher())
    return room


@pytest.fixture
def config(room: Path, tmp_path: Path) -> Callable[..., LearnConfig]:
    """A config for a few steps of a small student on this CPU."""

    def make(**given: Any) -> LearnConfig:
        settings: dict[str, Any] = {
            "cache": room / "cache",
            "output": tmp_path / "student",
            "student": str(room / "small.toml"),
            "max_steps": 6,
            "batch_size": 4,
            "learning_rate": 1e-2,
            "held_out": 0.2,
            "logging_every": 1,
            "device": "cpu",
            "dtype": "fp32",
        }
        return LearnConfig(**{**settings, **given})

    return make


def losses(events: list[Event]) -> dict[int, float]:
    """The loss of every step that was reported."""
    return {event.step: event.loss for event in events if isinstance(event, Step)}


def stop_after(step: int, events: list[Event]) -> Callable[[Event], None]:
    """Collects events, and stops the run like a crash once a step is reported."""

    def hear(event: Event) -> None:
        events.append(event)
        if isinstance(event, Step) and event.step == step:
            raise Stopped

    return hear


def same_weights(one: Path, other: Path) -> bool:
    """Bit for bit."""
    a, b = load_file(one / "model.safetensors"), load_file(other / "model.safetensors")
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_a_student_is_written_that_loads_and_generates(
    config: Callable[..., LearnConfig], capfd: pytest.CaptureFixture[str]
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


def test_a_finished_run_is_not_run_again(config: Callable[..., LearnConfig]) -> None:
    """The same result comes back at once; reports and checkpoints may be asked for otherwise."""
    first = learn(config(max_steps=2))
    events: list[Event] = []
    again = learn(config(max_steps=2, logging_every=2, save_every=7, workers=1), on_event=events.append)
    assert again == first
    assert events == [Done(output=first.output, already=True)]
    assert LearnResult.from_dict(json.loads(json.dumps(first.to_dict())), first.output) == first


@pytest.mark.parametrize("kind", ["output", "logit", "hybrid"])
@pytest.mark.parametrize("cache", ["cache", "sampled"])
def test_every_type_learns_from_every_kind_of_row(
    config: Callable[..., LearnConfig], room: Path, kind: str, cache: str
) -> None:
    """And every one is told how far it is from the teacher."""
    events: list[Event] = []
    result = learn(config(cache=room / cache, type=kind), on_event=events.append)
    assert result.before is not None and result.after is not None
    assert result.after.hard_loss < result.before.hard_loss
    steps = [event for event in events if isinstance(event, Step)]
    assert all((step.kl is None) == (step.soft_loss is None) == (kind == "output") for step in steps)


def test_a_student_that_is_the_teacher_has_nothing_to_learn(
    config: Callable[..., LearnConfig], room: Path
) -> None:
    """From a model folder; its KL to the cache is 0 within fp32."""
    result = learn(config(student=str(room / "teacher"), max_steps=1, learning_rate=1e-12))
    assert result.before is not None and abs(result.before.kl) < 1e-5
    assert result.before.top1_agreement == 1.0


def test_a_run_that_was_stopped_goes_on_as_if_it_had_not_been(
    config: Callable[..., LearnConfig], tmp_path: Path
) -> None:
    """In the middle of an epoch and of the intervals between checkpoints: same losses, same bits."""
    whole: list[Event] = []
    reference = learn(config(max_steps=12, output=tmp_path / "whole"), on_event=whole.append)
    chosen = config(max_steps=12, save_every=4)
    first: list[Event] = []
    with pytest.raises(Stopped):
        learn(chosen, on_event=stop_after(7, first))
    (chosen.output / "checkpoints" / "checkpoint-6").mkdir()  # killed while it wrote this one
    second: list[Event] = []
    result = learn(chosen, on_event=second.append)
    assert isinstance(second[0], Started) and second[0].first_step == 4
    assert list(losses(second)) == list(range(5, 13))
    assert {**losses(first), **losses(second)} == losses(whole)
    assert same_weights(chosen.output, tmp_path / "whole")
    assert (result.before, result.after) == (reference.before, reference.after)


def test_a_run_that_was_stopped_before_it_wrote_the_student_only_writes_it(
    config: Callable[..., LearnConfig], tmp_path: Path
) -> None:
    """No step is taken twice, none too many."""
    reference = learn(config(output=tmp_path / "whole"))
    chosen = config()

    def stop(event: Event) -> None:
        if isinstance(event, Done):
            raise Stopped

    with pytest.raises(Stopped):
        learn(chosen, on_event=stop)
    record = json.loads((chosen.output / "learn.json").read_text())
    (chosen.output / "config.json").unlink()
    (chosen.output / "learn.json").write_text(json.dumps({**record, "result": None}))
    events: list[Event] = []
    result = learn(chosen, on_event=events.append)
    assert losses(events) == {}
    assert same_weights(chosen.output, tmp_path / "whole")
    assert (result.before, result.after) == (reference.before, reference.after)
    assert result.tokens_per_second is None


def test_accumulation_weighs_tokens_and_not_batches(
    config: Callable[..., LearnConfig], tmp_path: Path
) -> None:
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


def test_checkpointing_the_body_and_reading_ahead_change_nothing(
    config: Callable[..., LearnConfig], tmp_path: Path
) -> None:
    """Bit for bit, on one thread."""
    learn(config(max_steps=3))
    learn(config(max_steps=3, gradient_checkpointing=False, workers=2, output=tmp_path / "other"))
    assert same_weights(tmp_path / "student", tmp_path / "other")


def test_mixed_precision_keeps_weights_in_fp32(config: Callable[..., LearnConfig]) -> None:
    """bf16, which every CPU can emulate."""
    result = learn(config(dtype="bf16", max_steps=1))
    weights = load_file(result.output / "model.safetensors")
    assert {each.dtype for each in weights.values()} == {torch.float32}
    assert result.before is not None and result.after is not None
    assert result.after.hard_loss < result.before.hard_loss
    with pytest.raises(ConfigError, match="--dtype: a CPU cannot train in fp16"):
        learn(config(dtype="fp16", overwrite=True))


def test_trackers_get_every_report(config: Callable[..., LearnConfig], tmp_path: Path) -> None:
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


def refusal(chosen: LearnConfig, error: type[DistillcacheError] = ConfigError) -> str:
    """The line that a run is refused with."""
    with pytest.raises(error) as caught:
        learn(chosen)
    text = str(caught.value)
    assert "\n" not in text and ": " in text
    return text


def test_a_folder_of_another_run_is_refused_and_named_what_differs(
    config: Callable[..., LearnConfig], room: Path, tmp_path: Path
) -> None:
    """Settings, student and cache; nothing in it is touched.

    `overwrite` removes our files and no others, and none if the new run is refused.
    """
    learn(config(max_steps=1))
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "student").rglob("*")}
    assert "learning_rate is 0.01 there and 0.02 here" in refusal(config(max_steps=1, learning_rate=0.02))
    assert "student" in refusal(config(max_steps=1, student=str(room / "teacher")))
    assert "cache is" in refusal(config(max_steps=1, cache=room / "sampled"))
    assert "5 steps" in refusal(config(max_steps=None, warmup_steps=9, overwrite=True))
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "student").rglob("*")} == before

    (tmp_path / "student" / "notes.txt").write_text("mine")
    result = learn(config(max_steps=2, overwrite=True))
    assert result.num_steps == 2
    assert (tmp_path / "student" / "notes.txt").read_text() == "mine"


def test_a_folder_of_something_else_is_refused(config: Callable[..., LearnConfig], tmp_path: Path) -> None:
    """Also with `overwrite`."""
    (tmp_path / "student").mkdir()
    (tmp_path / "student" / "thesis.txt").write_text("mine")
    assert "is not empty" in refusal(config(overwrite=True))
    assert [path.name for path in (tmp_path / "student").iterdir()] == ["thesis.txt"]
    assert "is a file" in refusal(config(output=tmp_path / "student" / "thesis.txt"))


def test_a_damaged_record_of_a_run_is_refused(config: Callable[..., LearnConfig], tmp_path: Path) -> None:
    """It is not taken for no record."""
    learn(config(max_steps=1))
    (tmp_path / "student" / "learn.json").write_text("{}")
    assert "cannot be read" in refusal(config(max_steps=1))


def test_what_sampled_rows_do_not_allow_is_refused(config: Callable[..., LearnConfig], room: Path) -> None:
    """Another loss, another temperature; their own is taken."""
    sampled = {"cache": room / "sampled", "max_steps": 1}
    assert refusal(config(**sampled, loss="js")).startswith("--loss: sampled rows")
    assert "sampled at 2, found 1" in refusal(config(**sampled, temperature=1.0))
    learn(config(**sampled, temperature=2.0))


def test_a_cache_that_is_not_finished_is_refused(config: Callable[..., LearnConfig], tmp_path: Path) -> None:
    """Before anything is written."""
    write_cache(tmp_path / "half", small_teacher(), sentences(), shards=[0, 2])
    text = refusal(config(cache=tmp_path / "half"), MissingShardError)
    assert "1 of 3 shards" in text and not (tmp_path / "student").exists()


def test_warm_up_longer_than_the_run_is_refused(config: Callable[..., LearnConfig]) -> None:
    """Also where steps follow from epochs; nothing is left that would stand in the way of the next try."""
    chosen = config(max_steps=None, epochs=1.0, warmup_steps=5)
    assert "5 steps of this run" in refusal(chosen)
    assert not chosen.output.exists()


def test_a_loss_that_is_no_number_stops_the_run(config: Callable[..., LearnConfig]) -> None:
    """At the next report, with the remedy."""
    assert "lower --learning-rate" in refusal(config(learning_rate=1e30, max_grad_norm=None), StudentError)


COMMAND = """
import sys
from pathlib import Path
from distillcache.learn.config import LearnConfig
from distillcache.learn.run import learn
cache, student, output = sys.argv[1:]
learn(
    LearnConfig(cache=Path(cache), output=Path(output), student=student, max_steps=200, batch_size=4,
                held_out=0.2, save_every=20, logging_every=5, device="cpu", dtype="fp32"),
    on_event=lambda event: print(event, flush=True),
)
"""


@pytest.mark.slow
def test_killed_at_any_moment_the_run_ends_with_the_same_student(room: Path, tmp_path: Path) -> None:
    """SIGKILL, three times at moments that differ, then left alone."""

    def command(output: str) -> list[str]:
        return [sys.executable, "-c", COMMAND, str(room / "cache"), str(room / "small.toml"), output]

    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(command(str(tmp_path / "whole")), check=True, capture_output=True, env=environment)
    output = tmp_path / "killed"
    for lines in (4, 15, 30):
        with subprocess.Popen(
            command(str(output)), stdout=subprocess.PIPE, text=True, env=environment
        ) as process:
            assert process.stdout is not None
            for number, _ in enumerate(process.stdout):
                if number >= lines:
                    break
            process.send_signal(signal.SIGKILL)
        assert process.returncode == -signal.SIGKILL
    subprocess.run(command(str(output)), check=True, capture_output=True, env=environment)
    assert same_weights(output, tmp_path / "whole")


@pytest.mark.slow
def test_two_ranks_learn_what_one_learns(room: Path, tmp_path: Path) -> None:
    """Over gloo: the same batches a step, the same scores within the order of sums.

    Three steps, within an epoch: at its end two ranks may take a batch twice, to fill their last step.
    """
    script = tmp_path / "run.py"
    script.write_text(
        "import sys\n"
        "from pathlib import Path\n"
        "from distillcache.learn.config import LearnConfig\n"
        "from distillcache.learn.run import learn\n"
        "cache, student, output, accumulation = sys.argv[1:]\n"
        "learn(LearnConfig(cache=Path(cache), output=Path(output), student=student, max_steps=3,\n"
        "      learning_rate=1e-2, batch_size=3, held_out=0.2, logging_every=1, device='cpu', dtype='fp32',\n"
        "      gradient_accumulation=int(accumulation)), on_event=lambda event: print(event, flush=True))\n"
    )
    outputs = []
    for ranks in (1, 2):
        launch = [
            sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(ranks),
            str(script), str(room / "cache"), str(room / "small.toml"), str(tmp_path / str(ranks)),
            str(2 // ranks),
        ]  # fmt: skip
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        ran = subprocess.run(launch, capture_output=True, text=True, env=environment, check=False)
        assert ran.returncode == 0, ran.stderr[-2000:]
        outputs.append(json.loads((tmp_path / str(ranks) / "learn.json").read_text())["result"])
    one, two = outputs
    for moment in ("before", "after"):
        assert two[moment] == pytest.approx(one[moment], rel=1e-4)
