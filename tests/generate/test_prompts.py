"""Prompts: balanced, seeded, distinct, about real code."""

import ast
import json
import re
import time
from collections import Counter
from pathlib import Path

import pytest

from distillcache.errors import ConfigError
from distillcache.generate.languages import LANGUAGES, syntax_fault
from distillcache.generate.own_prompts import read_prompts
from distillcache.generate.prompts import make_prompts, space_size

TINY = """
category = "tiny"
[[template]]
languages = ["python"]
texts = ["Say {word} in {language}. {how}"]
[template.slots]
word = ["one", "two", "three"]
how.easy = ["Loudly.", "Softly."]
how.medium = ["Twice."]
"""


@pytest.fixture
def tiny(tmp_path: Path) -> str:
    """A user's template file that holds 6 easy and 3 medium prompts, none that is hard."""
    (tmp_path / "tiny.toml").write_text(TINY)
    return str(tmp_path / "tiny.toml")


def test_ten_thousand_prompts_are_balanced_distinct_and_quick() -> None:
    """Every category and language has its share within 2 %, no text comes twice, and it takes under 5 s."""
    seconds = []
    for _ in range(2):
        begun = time.process_time()
        prompts = make_prompts(10_000, seed=7)
        seconds.append(time.process_time() - begun)
        if seconds[-1] < 5:
            break  # a busy machine may slow one try down, and has a second one
    assert min(seconds) < 5
    assert len({prompt.text for prompt in prompts}) == 10_000
    for key, kinds in (("category", 8), ("language", 9), ("difficulty", 3)):
        counts = Counter(getattr(prompt, key) for prompt in prompts)
        assert len(counts) == kinds
        assert max(counts.values()) <= 10_000 / kinds * 1.02
        assert min(counts.values()) >= 10_000 / kinds * 0.98


def test_the_first_prompts_are_balanced_too() -> None:
    """A run that is stopped early has asked each category equally often."""
    prompts = make_prompts(160, seed=3)
    assert set(Counter(prompt.category for prompt in prompts[:80]).values()) == {10}


def test_a_seed_gives_the_same_prompts_and_another_seed_others() -> None:
    """The seed alone decides."""
    first, again, other = (make_prompts(64, seed=seed) for seed in (1, 1, 2))
    assert first == again
    assert len({p.id for p in first} & {p.id for p in other}) < 16


def test_no_slot_is_left_open() -> None:
    """Outside the quoted code no `{name}` remains, and the language that is meant is named."""
    for prompt in make_prompts(400, seed=5):
        outside = re.sub(r"(`{3,})\w*\n.*?\n\1", "", prompt.text, flags=re.S)
        assert not re.search(r"(?<!\$)\{\w+\}", outside), outside
        assert prompt.language is not None and LANGUAGES[prompt.language].name.split()[0] in outside


def test_code_prompts_hold_real_code_with_its_origin() -> None:
    """Bug fix, refactoring, explanation and review quote a function of the standard library, as it is
    there.
    """
    import sysconfig

    root = Path(sysconfig.get_paths()["stdlib"])
    seen = Counter()
    for prompt in make_prompts(160, seed=9):
        if prompt.category not in ("bug_fix", "refactoring", "explanation", "review"):
            assert prompt.origin is None
            continue
        seen[prompt.category] += 1
        block = re.search(r"(`{3,})python\n(.*?)\n\1", prompt.text, re.S)
        assert block is not None and prompt.origin is not None
        name, _, line = prompt.origin.rpartition(":")
        real = (root / name).read_text().split("\n")[int(line) - 1].strip()
        assert ast.parse(block[2]).body
        if prompt.category != "bug_fix":
            assert block[2].split("\n")[0].strip() == real
    assert set(seen.values()) == {20}


def test_a_bug_fix_prompt_holds_one_change_that_still_parses() -> None:
    """The mutation is recorded, and the function that is shown differs from its source in that line only."""
    import sysconfig
    import textwrap

    root = Path(sysconfig.get_paths()["stdlib"])
    prompts = make_prompts(60, seed=4, categories=("bug_fix",))
    for prompt in prompts:
        block = re.search(r"(`{3,})python\n(.*?)\n\1", prompt.text, re.S)
        assert block is not None and prompt.origin is not None and prompt.mutation is not None
        assert syntax_fault("python", block[2]) is None
        name, _, line = prompt.origin.rpartition(":")
        shown = block[2].split("\n")
        lines = (root / name).read_text().split("\n")[int(line) - 1 :][: len(shown)]
        source = textwrap.dedent("\n".join(lines)).split("\n")
        changed = [i + 1 for i, (a, b) in enumerate(zip(shown, source, strict=True)) if a != b]
        at = int(re.match(r"line (\d+)", prompt.mutation)[1])  # type: ignore[index]
        assert changed == [at]


def test_code_of_the_users_own_language_is_cut_and_mutated(tmp_path: Path) -> None:
    """Rust files named by the user give Rust prompts with Rust code, and no path of this machine."""
    bodies = [
        f"fn rule_{i}(x: i32, y: i32) -> i32 {{\n    let mut sum = {i};\n    if x < y {{\n"
        f"        sum = x + {i};\n    }}\n    sum - y\n}}\n"
        for i in range(6)
    ]
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "rules.rs").write_text("\n".join(bodies))
    prompts = make_prompts(
        6, code=(str(tmp_path),), categories=("bug_fix",), languages=("rust",), difficulties=("easy",)
    )
    for prompt in prompts:
        assert prompt.origin is not None and prompt.origin.startswith("src/rules.rs:")
        assert "```rust\nfn rule_" in prompt.text and prompt.mutation is not None
        assert str(tmp_path) not in prompt.text


def test_a_space_too_small_is_refused_with_its_size(tiny: str) -> None:
    """Asking for more than the templates hold names the number they hold; exactly that number works."""
    how = {"templates": (tiny,), "difficulties": ("easy",)}
    assert space_size(**how) == 6  # type: ignore[arg-type]
    assert len({p.text for p in make_prompts(6, **how)}) == 6  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"hold 6 in all"):
        make_prompts(7, **how)  # type: ignore[arg-type]


def test_a_slot_may_leave_a_difficulty_out(tiny: str) -> None:
    """The tiny templates have no hard prompts, and none is made."""
    prompts = make_prompts(6, templates=(tiny,))
    assert Counter(p.difficulty for p in prompts) == {"easy": 3, "medium": 3}
    assert {p.category for p in prompts} == {"tiny"}


def test_own_templates_join_the_builtin_ones(tiny: str) -> None:
    """`builtin` and a file together give nine categories."""
    assert len({p.category for p in make_prompts(18, templates=("builtin", tiny))}) == 9


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("category = 'x'\n", "holds no template"),
        ("cat = 'x'\n", "unknown key `cat`"),
        ("category = 'x'\n[[template]]\ntexts = ['{gap}']\n", "uses {gap}"),
        ("category = 'x'\n[[template]]\ntexts = ['{']\n", "write a brace twice"),
        ("category = 'x'\n[[template]]\nlanguages = ['cobol']\ntexts = ['a']\n", "unknown language `cobol`"),
        ("category = 'x'\nneeds_source = true\n[[template]]\ntexts = ['a']\n", "lacks {source}"),
        ("category = 'x'\nanswer_tokens = [5, 1]\n[[template]]\ntexts = ['a']\n", "answer_tokens"),
        ("category = 'x'\n[[template]]\ntexts = ['{a}']\nslots.a = ['b', 'b']\n", "holds a text twice"),
        ("category = ", "not TOML"),
    ],
)
def test_a_faulty_template_file_is_refused_by_name(tmp_path: Path, text: str, says: str) -> None:
    """One line with the file's name and what is wrong."""
    path = tmp_path / "own.toml"
    path.write_text(text)
    with pytest.raises(ConfigError) as fault:
        make_prompts(1, templates=(str(path),))
    assert str(path) in str(fault.value) and says in str(fault.value)


def test_own_prompts_are_read_with_what_they_say(tmp_path: Path) -> None:
    """JSONL keeps category, language, system and whether code is due; a repeated prompt comes once."""
    path = tmp_path / "own.jsonl"
    line = {
        "prompt": "Sort it.",
        "category": "sorting",
        "language": "go",
        "code_due": True,
        "system": "Be brief.",
    }
    path.write_text("\n".join(json.dumps(each) for each in (line, line, {"prompt": "Why?"})))
    sort, why = read_prompts(path)
    assert (sort.category, sort.language, sort.code_due, sort.system) == ("sorting", "go", True, "Be brief.")
    assert (why.category, why.language, why.code_due) == ("own", None, False)


@pytest.mark.parametrize(
    "line",
    ["{", "[]", '{"prompt": ""}', '{"prompt": "a", "langauge": "go"}', '{"prompt": "a", "language": 3}'],
)
def test_a_faulty_line_of_own_prompts_is_refused_by_number(tmp_path: Path, line: str) -> None:
    """The message names file and line."""
    path = tmp_path / "own.jsonl"
    path.write_text('{"prompt": "fine"}\n' + line + "\n")
    with pytest.raises(ConfigError, match=r"own\.jsonl:2: "):
        read_prompts(path)


def test_a_category_without_prompts_in_a_language_is_refused_with_the_remedy() -> None:
    """There is no SQL code in the standard library to repair."""
    with pytest.raises(ConfigError, match=r"nothing to ask in category bug_fix with languages sql; .*--code"):
        make_prompts(1, categories=("bug_fix",), languages=("sql",))


@pytest.mark.parametrize("name", ["categories", "languages", "difficulties"])
def test_an_unknown_choice_is_refused_with_those_there_are(name: str) -> None:
    """The flag, the word, and the list."""
    with pytest.raises(ConfigError, match=rf"--{name}: .*`cobol`; "):
        make_prompts(1, **{name: ("cobol",)})  # type: ignore[arg-type]


def test_code_that_is_not_there_is_refused(tmp_path: Path) -> None:
    """A folder that does not exist, and one without code."""
    with pytest.raises(ConfigError, match="nothing to take code from"):
        make_prompts(1, code=(str(tmp_path / "absent"),))
    with pytest.raises(ConfigError, match="holds no file of a known language"):
        make_prompts(1, code=(str(tmp_path),))
