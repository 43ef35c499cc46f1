"""Claims about `evaluate` on rows: figures equal to whole logits in float64, on what `learn` held out."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

import distillcache.evaluate.rows as rows_module
from distillcache.errors import ConfigError, DistillcacheError, TeacherError
from distillcache.evaluate.config import EvaluateConfig
from distillcache.evaluate.events import Event, Progress, Warned
from distillcache.evaluate.result import EvaluateResult, Figure
from distillcache.evaluate.run import evaluate
from distillcache.learn.config import LearnConfig
from distillcache.learn.run import learn
from distillcache.model_source import ModelSource
from distillcache.tokenizer import load_tokenizer, text_bytes
from distillcache_shards.cache import Cache
from distillcache_shards.errors import CacheError, MismatchError
from tests.distillcache.tiny_cache import NUM_IDS, PROMPT_TOKENS, sentences, small_teacher, write_cache
from tests.distillcache.tiny_models import byte_tokenizer, save_teacher, tiny

TAU = 1 / 16


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Caches of both kinds of row, their teacher, and another model of the same tokenizer."""
    room = tmp_path_factory.mktemp("evaluate")
    write_cache(room / "topk", small_teacher(), sentences())
    write_cache(room / "sampled", small_teacher(), sentences(), tau=TAU)
    write_cache(room / "warm", small_teacher(), sentences(), tau=TAU, temperature=2.0)
    save_teacher(room / "teacher", small_teacher())
    save_teacher(room / "student", tiny("llama", seed=3, vocab_size=NUM_IDS))
    save_teacher(room / "wider", tiny("llama", seed=3))  # 320 ids, of which the tokenizer has 259
    return room


@pytest.fixture
def run(room: Path) -> Callable[..., EvaluateResult]:
    """Evaluate a model of the room on all sequences of one of its caches."""

    def evaluated(student: str, cache: str, **given: Any) -> EvaluateResult:
        on_event = given.pop("on_event", None)
        settings: dict[str, Any] = {"split": "all", "device": "cpu", "dtype": "fp32", **given}
        if "against" in settings:
            settings["against"] = str(room / settings["against"])
        return evaluate(
            EvaluateConfig(student=str(room / student), cache=room / cache, **settings), on_event=on_event
        )

    return evaluated


def figures(result: EvaluateResult, *, exact: bool = False) -> dict[str, Figure]:
    """By name."""
    assert result.rows is not None
    found = result.rows.exact if exact else result.rows.figures
    assert found is not None
    return {each.name: each for each in found}


def values(result: EvaluateResult, *, exact: bool = False) -> dict[str, float]:
    """Those that there are."""
    return {name: each.value for name, each in figures(result, exact=exact).items() if each.value is not None}


@torch.no_grad()
def dense(room: Path, student: PreTrainedModel) -> dict[str, float]:
    """The same figures from whole logits in float64, a sequence at a time, by their definitions."""
    cache, teacher = Cache.open(room / "topk"), small_teacher().double()
    student = student.double()
    sums = dict.fromkeys(("kl", "hard", "right", "agree", "accept"), 0.0)
    num_rows = 0
    for index in range(len(cache)):
        read = cache[index]
        ids_T = torch.from_numpy(read.tokens.astype(np.int64))
        for position in np.flatnonzero(read.supervised) - 1:
            p = teacher(ids_T[None]).logits[0, position].softmax(0)
            q_all = student(ids_T[None]).logits[0, position].softmax(0)
            q = q_all[: len(p)]
            target = ids_T[position + 1]
            sums["kl"] += float((p * (p / q).log()).sum())
            sums["hard"] -= float(q_all[target].log())
            sums["right"] += float(q_all.argmax() == target)
            sums["agree"] += float(q_all.argmax() == p.argmax())
            sums["accept"] += float(torch.minimum(p, q).sum())
            num_rows += 1
    return {name: total / num_rows for name, total in sums.items()}


@pytest.mark.parametrize("student", ["student", "wider"])
@pytest.mark.parametrize("chunk_bytes", [4 * 320 * 3, 24 << 20])
def test_figures_are_those_of_whole_logits_in_float64(
    room: Path,
    run: Callable[..., EvaluateResult],
    student: str,
    chunk_bytes: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In chunks of three positions or all at once; also where embeddings are padded. 1e-5 is fp32's noise."""
    monkeypatch.setattr(rows_module, "CHUNK_BYTES", chunk_bytes)
    result = run(student, "topk", against="teacher")
    model = tiny("llama", seed=3, **({"vocab_size": NUM_IDS} if student == "student" else {}))
    truth, mine, exact = dense(room, model), values(result), values(result, exact=True)
    assert exact["kl_nats"] == pytest.approx(truth["kl"], rel=1e-5)
    assert exact["acceptance"] == pytest.approx(truth["accept"], rel=1e-5)
    assert exact["top1_agreement"] == mine["top1_agreement"] == pytest.approx(truth["agree"], rel=1e-9)
    assert mine["hard_loss_nats"] == pytest.approx(truth["hard"], rel=1e-5)
    assert mine["perplexity"] == pytest.approx(math.exp(truth["hard"]), rel=1e-4)
    assert mine["next_token_accuracy"] == pytest.approx(truth["right"], rel=1e-9)
    # What K ids tell.
    assert mine["kl_nats"] < exact["kl_nats"]
    assert mine["acceptance_min"] < exact["acceptance"] < mine["acceptance_max"]


def test_a_student_that_is_the_teacher_differs_from_no_row(run: Callable[..., EvaluateResult]) -> None:
    """KL 0 within the noise of fp32, the same first id everywhere, every draft accepted."""
    result = run("teacher", "topk", against="teacher")
    mine, exact = values(result), values(result, exact=True)
    assert mine["kl_nats"] == pytest.approx(0, abs=1e-5) and exact["kl_nats"] == pytest.approx(0, abs=1e-5)
    assert mine["top1_agreement"] == exact["top1_agreement"] == 1.0
    assert exact["acceptance"] == pytest.approx(1, abs=1e-5)
    assert mine["acceptance_max"] == pytest.approx(1, abs=1e-5)
    assert exact["teacher_hard_loss_nats"] == pytest.approx(mine["hard_loss_nats"], rel=1e-5)


def test_sampled_rows_estimate_what_the_whole_teacher_says(run: Callable[..., EvaluateResult]) -> None:
    """KL within four of its standard errors, acceptance between its bounds within as much."""
    result = run("student", "sampled", against="teacher")
    mine, exact = figures(result), values(result, exact=True)
    kl, low, high = mine["kl_nats"], mine["acceptance_min"], mine["acceptance_max"]
    assert kl.value is not None and kl.stderr is not None
    assert abs(kl.value - exact["kl_nats"]) < 4 * kl.stderr
    assert low.value is not None and high.value is not None
    assert low.value - 0.02 < exact["acceptance"] < high.value + 0.02
    assert low.value < high.value
    assert kl.note is not None and kl.note.startswith("estimated without bias")


def test_rows_of_another_temperature_say_so(run: Callable[..., EvaluateResult]) -> None:
    """Their KL is that of tempered distributions, and is not passed off as the other."""
    note = figures(run("student", "warm"))["kl_nats"].note
    assert note is not None and note.endswith("at temperature 2")


def test_figures_do_not_depend_on_the_batch(run: Callable[..., EvaluateResult]) -> None:
    """Padded beside others or alone."""
    one, many = (values(run("student", "topk", batch_size=size)) for size in (1, 24))
    assert one.keys() == many.keys()
    for name in one:
        assert one[name] == pytest.approx(many[name], rel=1e-5)


def test_a_model_of_whole_logits_is_measured_all_the_same(
    room: Path, run: Callable[..., EvaluateResult], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Chunks of both models still end at the same rows."""
    plain = values(run("student", "topk", against="teacher"))
    monkeypatch.setattr(rows_module, "CHUNK_BYTES", 4 * 320 * 3)
    monkeypatch.setattr(
        "distillcache.head.OutputHead.whole_logits",
        property(lambda head: head.model.config.initializer_range == 0.5),
    )
    config = json.loads((room / "student" / "config.json").read_text()) | {"initializer_range": 0.5}
    for each in (room / "student").iterdir():
        (tmp_path / each.name).write_bytes(each.read_bytes())
    (tmp_path / "config.json").write_text(json.dumps(config))
    whole = values(run(str(tmp_path), "topk", against="teacher"))
    for name, value in plain.items():
        assert whole[name] == pytest.approx(value, rel=1e-5)


def test_bits_a_byte_are_over_the_text_of_the_supervised_tokens(
    room: Path, run: Callable[..., EvaluateResult]
) -> None:
    """Of a tokenizer of bytes every token is one; the prompt's are not counted."""
    mine = figures(run("student", "topk"))
    num_bytes = sum(len(each.encode()) - PROMPT_TOKENS for each in sentences())
    assert mine["bits_per_byte"].over == f"{num_bytes:,} bytes of their text"
    hard, bits = mine["hard_loss_nats"].value, mine["bits_per_byte"].value
    assert hard is not None and bits is not None
    # One token a byte, so the ratio is that of the units.
    assert bits == pytest.approx(hard / math.log(2), rel=1e-12)


def test_bytes_of_text_are_what_supervised_tokens_add() -> None:
    """Special tokens add none; a character cut in two counts once, where it is whole."""
    tokenizer = byte_tokenizer()
    text = "a€b"
    tokens = np.array([*tokenizer.encode(text), tokenizer.eos_token_id])
    assert len(tokens) == 6
    everything = np.array([False, True, True, True, True, True])
    assert text_bytes(tokenizer, tokens, everything) == 4
    runs = np.array([True, False, False, False, True, True])
    assert text_bytes(tokenizer, tokens, runs) == 2
    assert text_bytes(tokenizer, tokens, np.zeros(6, bool)) == 0


def test_standard_errors_are_by_record(
    room: Path, run: Callable[..., EvaluateResult], tmp_path: Path
) -> None:
    """Sequences of one record count as one: with all in one, there is no error to give."""
    write_cache(tmp_path / "one", small_teacher(), sentences(), records=[0] * 24)
    assert all(each.stderr is not None for each in [figures(run("student", "topk"))["kl_nats"]])
    assert figures(run("student", str(tmp_path / "one")))["kl_nats"].stderr is None


def test_every_figure_says_what_it_is_over(run: Callable[..., EvaluateResult]) -> None:
    """And JSON has them by their names."""
    result = run("student", "sampled", against="teacher")
    assert result.rows is not None and result.rows.exact is not None
    assert all(each.over for each in (*result.rows.figures, *result.rows.exact))
    data = json.loads(json.dumps(result.to_dict()))["rows"]
    assert data["figures"]["kl_nats"]["value"] == values(result)["kl_nats"]
    assert data["exact"]["acceptance"]["over"] == f"{data['num_rows']:,} tokens"
    assert sum(each["num_rows"] for each in data["bins"]) == data["num_rows"]
    assert "of" in data["figures"]["top1_agreement"]["over"]  # not every row tells the likeliest id


def test_another_teacher_than_the_cache_s_is_warned_of(
    room: Path, run: Callable[..., EvaluateResult]
) -> None:
    """Its exact figures are then not those that the rows estimate."""
    heard: list[Event] = []
    run("student", "topk", against="teacher", on_event=heard.append)
    # The tests' own cache names no real fingerprint.
    assert (
        ModelSource.of(str(room / "teacher"), TeacherError).sha256()
        != Cache.open(room / "topk").plan["teacher"]["sha256"]
    )
    assert [type(each) for each in heard if not isinstance(each, Progress)] == [Warned]


@pytest.fixture(scope="module")
def learned(room: Path) -> Path:
    """A student that `learn` made, with a fifth of the records held out by seed 7."""
    sizes = "hidden_size = 32\nintermediate_size = 48\nnum_hidden_layers = 2\nnum_attention_heads = 4\n"
    (room / "small.toml").write_text(sizes + "max_position_embeddings = 128\n")
    learn(
        LearnConfig(
            cache=room / "topk",
            output=room / "learned",
            student=str(room / "small.toml"),
            max_steps=4,
            batch_size=4,
            learning_rate=1e-2,
            held_out=0.2,
            seed=7,
            device="cpu",
            dtype="fp32",
        )
    )
    return room / "learned"


def test_the_records_that_learn_held_out_are_found(learned: Path, run: Callable[..., EvaluateResult]) -> None:
    """The figures are the very ones that `learn` wrote down; its seed and share may be repeated."""
    result = run("learned", "topk", split="held-out")
    told = json.loads((learned / "learn.json").read_text())["result"]
    mine = values(result)
    assert result.rows is not None
    assert (result.rows.split, result.rows.num_sequences) == ("held-out", told["num_held_out"])
    assert mine["kl_nats"] == pytest.approx(told["after"]["kl"], rel=1e-5)
    assert mine["hard_loss_nats"] == pytest.approx(told["after"]["hard_loss"], rel=1e-5)
    assert mine["top1_agreement"] == told["after"]["top1_agreement"]
    for name in ("bits_per_byte", "calibration_error", "acceptance_min", "acceptance_max"):
        assert mine[name] == pytest.approx(told["after"][name], rel=1e-5)
    assert result.rows.num_rows == told["after"]["num_rows"]
    again = run("learned", "topk", split="held-out", seed=7, held_out=0.2)
    assert again == result


def test_a_student_from_elsewhere_is_told_what_was_held_out(run: Callable[..., EvaluateResult]) -> None:
    """By hand, and other seeds hold out others."""
    found = [values(run("student", "topk", split="held-out", held_out=0.2, seed=seed)) for seed in (7, 7, 8)]
    assert found[0] == found[1] != found[2]


@pytest.mark.parametrize(
    ("student", "cache", "given", "line"),
    [
        ("student", "topk", {"split": "held-out"}, "it is not a folder that `learn` made"),
        ("student", "topk", {"split": "held-out", "seed": 1}, "it is not a folder that `learn` made"),
        ("learned", "sampled", {"split": "held-out"}, "it was learned from another cache"),
        ("learned", "topk", {"split": "held-out", "seed": 8}, "--seed: this student was learned with 7"),
        ("learned", "topk", {"split": "held-out", "held_out": 0.5}, "learned with 0.2, found 0.5"),
        ("small.toml", "topk", {}, "a student that was never trained"),
        ("nothing", "topk", {}, "no such folder"),
        ("student", "topk", {"output": Path("no/such/place.json")}, "--output: no folder"),
    ],
)  # fmt: skip
def test_what_cannot_be_evaluated_is_refused_by_name(
    learned: Path,
    run: Callable[..., EvaluateResult],
    student: str,
    cache: str,
    given: dict[str, Any],
    line: str,
) -> None:
    """In one line, before any model is run."""
    with pytest.raises(ConfigError if student != "nothing" else DistillcacheError, match=line) as refusal:
        run(student, cache, **given)
    assert "\n" not in str(refusal.value)


def test_a_student_with_nothing_held_out_is_refused(room: Path, run: Callable[..., EvaluateResult]) -> None:
    """It was trained on every record."""
    (room / "all").mkdir()
    for each in (room / "student").iterdir():
        (room / "all" / each.name).write_bytes(each.read_bytes())
    cache = Cache.open(room / "topk").plan_sha256
    record = {"format": 1, "run": {"cache": cache, "held_out": 0.0, "seed": 1}, "result": None, "files": []}
    (room / "all" / "learn.json").write_text(json.dumps(record))
    with pytest.raises(ConfigError, match="held nothing out of this cache; take --split all"):
        run("all", "topk", split="held-out")
    (room / "all" / "learn.json").write_text("{}")
    with pytest.raises(ConfigError, match="cannot be read as the record of a run"):
        run("all", "topk", split="held-out")


def test_a_student_of_another_tokenizer_is_refused(
    room: Path, tmp_path: Path, run: Callable[..., EvaluateResult]
) -> None:
    """Its ids would mean something else."""
    save_teacher(tmp_path / "other", small_teacher())
    tokenizer = load_tokenizer(tmp_path / "other")
    tokenizer.add_tokens(["<|new|>"])
    tokenizer.save_pretrained(tmp_path / "other")
    with pytest.raises(MismatchError, match=r"<\|new\|>"):
        run(str(tmp_path / "other"), "topk")


def test_too_few_positions_and_missing_shards_are_refused(
    room: Path, tmp_path: Path, run: Callable[..., EvaluateResult]
) -> None:
    """The longest sequence of those that are evaluated decides."""
    save_teacher(tmp_path / "short", tiny("llama", vocab_size=NUM_IDS, max_position_embeddings=16))
    with pytest.raises(ConfigError, match="too few positions"):
        run(str(tmp_path / "short"), "topk")
    write_cache(tmp_path / "half", small_teacher(), sentences(), shards=[0])
    with pytest.raises(CacheError, match="2 of 3 shards are not taught yet"):
        run("student", str(tmp_path / "half"))


def test_the_result_is_written_where_it_is_asked_for(
    run: Callable[..., EvaluateResult], room: Path, tmp_path: Path
) -> None:
    """And nowhere else: the student's folder stays as it was."""
    before = {each: each.stat().st_mtime_ns for each in (room / "student").iterdir()}
    result = run("student", "topk", output=tmp_path / "result.json")
    assert json.loads((tmp_path / "result.json").read_text()) == json.loads(json.dumps(result.to_dict()))
    assert {each: each.stat().st_mtime_ns for each in (room / "student").iterdir()} == before
