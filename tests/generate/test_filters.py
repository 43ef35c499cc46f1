"""Filters: each rejects what it names and leaves the rest alone."""

from collections.abc import Callable
from typing import Any

import pytest

from distillcache.generate.filters import FILTERS, Filters, code_blocks
from distillcache.generate.languages import LANGUAGES, syntax_fault
from distillcache.generate.leaks import fingerprint, leaked_problem, word_runs
from distillcache.generate.prompts import Prompt

PYTHON = "Here you are:\n\n```python\ndef add(left, right):\n    return left + right\n```\n"


def filters(**settings: Any) -> Filters:
    """Filters as a run has them."""
    known: dict[str, Any] = {
        "min_response_chars": 40,
        "min_code_chars": 20,
        "near_duplicate": 0.85,
        "leak_share": 0.5,
        "parse": tuple(LANGUAGES),
    }
    return Filters(**(known | settings))


def prompt(text: str = "Write it.", language: str | None = "python", code_due: bool = True) -> Prompt:
    """A prompt that wants code."""
    return Prompt(text, "function", language, "easy", code_due)


def reason(text: str, finish: str = "stop", asked: Prompt | None = None, **settings: Any) -> str | None:
    """Name of the filter that rejects, or None."""
    rejection = filters(**settings).judge(asked or prompt(), text, finish)
    return None if rejection is None else rejection.filter


@pytest.mark.parametrize(
    ("text", "finish", "expected"),
    [
        (PYTHON, "stop", None),
        ("", "stop", "empty"),
        (PYTHON, "length", "cut_off"),
        (PYTHON, "refusal", "refusal"),
        ("I'm sorry, but I can't help with writing this function for you today.", "stop", "refusal"),
        ("I cannot assist with that request. It goes against what I am allowed to do.", "stop", "refusal"),
        ("As an AI language model, I do not write functions that could be used so.", "stop", "refusal"),
        ("Just use sum().", "stop", "too_short"),
        ("You take the first number and the second one and then you add them up.", "stop", "no_code"),
        ("Look:\n\n```python\nx\n```\nthis is all the code there is to say here.", "stop", "no_code"),
        ("Look:\n\n```rust\nfn add(a: i32, b: i32) -> i32 { a + b }\n```\nin Rust.", "stop", "no_code"),
        (PYTHON.replace("left, right)", "left, right"), "stop", "does_not_parse"),
        (PYTHON.replace("python", ""), "stop", None),
        ("def add(left, right):\n    # no fence around it\n    return left + right\n", "stop", None),
        ("````python\ntext = '''\n```\nnot the end\n```\n'''\nprint(text)\n````\n", "stop", None),
        ("  Method:\n\n```py\n    def add(self, other):\n        return self.x + other\n```\n", "stop", None),
    ],
)  # fmt: skip
def test_an_answer_is_judged_by_the_first_filter_that_applies(
    text: str, finish: str, expected: str | None
) -> None:
    """One answer, one reason."""
    assert reason(text, finish) == expected


@pytest.mark.parametrize(
    "text",
    [
        "The function says sorry when I cannot connect, which is fine; the retry loop says why.",
        "I would start with the loop. I can't see a reason to copy it, so the slice in line three can go.",
        "I cannot recommend this design: three of its five methods share state, and nothing guards it.",
        "Unfortunately the loop is quadratic; here is why that matters for long inputs, and what to do.",
    ],
)
def test_advice_is_no_refusal(text: str) -> None:
    """Words of regret inside an answer do not make it a refusal."""
    assert reason(text, asked=prompt(code_due=False)) is None


GOOD = {
    "python": "def f(x):\n    return x + 1  # one more",
    "javascript": "export const f = async (x) => (x?.y ?? 1) + 1;",
    "typescript": "function f<T extends object>(x: T): T { return x; }",
    "java": "record Point(int x, int y) { int sum() { return x + y; } }",
    "go": "func Map[T, U any](xs []T, f func(T) U) []U { return nil }",
    "rust": "pub fn f<'a, T: Clone>(x: &'a [T]) -> Option<&'a T> { x.first() }",
    "cpp": "template <typename T> auto f(const T& x) { return [&] { return x; }(); }",
    "bash": 'for name in "$@"; do [[ -f $name ]] && echo "$name"; done',
    "sql": "WITH t AS (SELECT 1 AS a) SELECT a, COUNT(*) FROM t GROUP BY a;",
}


@pytest.mark.parametrize("language", list(LANGUAGES))
def test_code_of_every_language_is_parsed(language: str) -> None:
    """Sound code passes, the same code without its last third does not."""
    code = GOOD[language]
    assert syntax_fault(language, code) is None
    assert syntax_fault(language, code[: len(code) * 2 // 3].rstrip(";}) \n") + " ((") is not None


def test_languages_left_out_of_parse_are_not_parsed() -> None:
    """The list is a setting."""
    broken = PYTHON.replace("left, right)", "left, right")
    assert reason(broken, parse=("rust",)) is None


def test_thresholds_are_settings_and_hold_from_both_sides() -> None:
    """Exactly the least length passes, one less does not."""
    text, asked = "x" * 50, prompt(code_due=False)
    assert reason(text, asked=asked, min_response_chars=50) is None
    assert reason(text, asked=asked, min_response_chars=51) == "too_short"


def test_duplicates_and_near_duplicates_are_kept_once() -> None:
    """White space does not make an answer new; one changed word in two hundred hardly does; another text
    does.
    """
    words = [f"word{i * 7919 % 1000}" for i in range(200)]
    judge = filters()
    asked = [prompt(f"Number {i}", code_due=False) for i in range(4)]
    assert judge.judge(asked[0], " ".join(words), "stop") is None
    same = judge.judge(asked[1], "\n".join(words), "stop")
    assert same is not None and same.filter == "duplicate" and asked[0].id in same.detail
    near = judge.judge(asked[2], " ".join([*words[:100], "other", *words[101:]]), "stop")
    assert near is not None and near.filter == "near_duplicate"
    assert judge.judge(asked[3], " ".join(words[::-1]), "stop") is None


def test_near_duplicates_may_be_left_on() -> None:
    """None turns the filter off; exact duplicates go all the same."""
    judge = filters(near_duplicate=None)
    text = " ".join(f"word{i}" for i in range(100))
    assert judge.judge(prompt("a", code_due=False), text, "stop") is None
    assert judge.judge(prompt("b", code_due=False), text + " more", "stop") is None
    assert judge.judge(prompt("c", code_due=False), text, "stop") is not None


HUMANEVAL_0 = (
    "Check if in given list of numbers, are any two numbers closer to each other than given threshold. "
    "from typing import List def has_close_elements(numbers: List[float], threshold: float) -> bool: "
    "has_close_elements([1.0, 2.0, 3.0], 0.5) False "
    "has_close_elements([1.0, 2.8, 3.0, 4.0, 5.0, 2.0], 0.3) True"
)
MBPP_2 = "Write a function to find the similar elements from the given two tuple lists."


@pytest.mark.parametrize(("text", "problem"), [(HUMANEVAL_0, "HumanEval/0"), (MBPP_2, "MBPP/2")])
def test_an_evaluation_problem_is_found_in_prompt_and_answer(text: str, problem: str) -> None:
    """In either place, with other words around it."""
    around = f"Please help me with this task. {text} Thank you, and good bye."
    assert leaked_problem(around, 0.5) == problem
    assert reason(PYTHON, asked=prompt(around)) == "evaluation_leak"
    assert reason(PYTHON + around) == "evaluation_leak"
    assert reason(PYTHON + around, leak_share=None) is None


def test_half_a_problem_leaks_and_less_does_not() -> None:
    """The share is a threshold, from both sides."""
    words = MBPP_2.split()
    runs = len(word_runs(MBPP_2))
    some = " ".join(words[: 4 + runs // 2])
    share = len(word_runs(some)) / runs
    assert leaked_problem(some, share) == "MBPP/2"
    assert leaked_problem(some, share + 0.01) is None


def test_builtin_prompts_and_standard_library_code_do_not_leak() -> None:
    """No false alarm among a thousand of our own prompts."""
    from distillcache.generate.prompts import make_prompts

    assert [p.text for p in make_prompts(1000, seed=21) if leaked_problem(p.text, 0.5)] == []


def test_fingerprint_holds_hashes_and_no_text() -> None:
    """The data file cannot give the problems away."""
    secret = "quite unusual words nobody would ever write into such a task description"
    data = fingerprint([("X/1", [secret])])
    assert b"unusual" not in data and b"X/1" not in secret.encode()


def test_code_blocks_reads_tags_and_leaves_open_blocks_out() -> None:
    """A block ends with the fence that began it."""
    blocks = code_blocks("```Python title=x\na\n```\ntext\n~~~sql\nb\n~~~\n```go\nopen")
    assert [(b.tag, b.code) for b in blocks] == [("python", "a\n"), ("sql", "b\n")]


def test_every_filter_has_its_count_and_sample_in_the_report(run: Callable[..., dict[str, Any]]) -> None:
    """One answer for most filters; the counts add up to the rejected records."""
    from vendor_server import VendorServer

    texts = {
        "0": "I'm sorry, but I can't help with this at all, whatever you say.",
        "1": "Short.",
        "2": "This is a fine answer of some length, with words.",
        "3": "This is a fine answer of some length, with words.",
        "4": MBPP_2,
    }
    with VendorServer(answer=lambda asked: texts[asked.split()[2]]) as server:
        report = run(server, ask=5)
    counts = {name: entry["count"] for name, entry in report["filters"].items() if entry["count"]}
    assert counts == {"refusal": 1, "too_short": 1, "duplicate": 1, "evaluation_leak": 1}
    assert list(report["filters"]) == list(FILTERS)
    assert sum(counts.values()) == report["rejected"] == 4 and report["kept"] == 1
    assert all(report["filters"][name]["sample"]["response"] for name in counts)
