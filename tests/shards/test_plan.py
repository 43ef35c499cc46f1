"""Plans: read as they were written, equal or different by name, and bounded."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distillcache_shards.canonical import canonical, parse, sha256_of
from distillcache_shards.errors import CacheError, MismatchError
from distillcache_shards.plan import MAX_VOCABULARY, Plan
from tests.shards.small_cache import small_cache

JSON = st.recursive(
    st.none() | st.booleans() | st.floats(allow_nan=False, allow_infinity=False) | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


@pytest.fixture
def plan() -> Plan:
    """A plan, with something told about it."""
    return small_cache(about={"teacher": "Lehrer \u2713"}).plan()


def test_a_plan_is_read_as_it_was_written(plan: Plan, tmp_path: Path) -> None:
    """Data, hash, and what is told of it; in one spelling, which people can read too."""
    plan.write(tmp_path)
    found = Plan.read(tmp_path)
    assert (found.data, found.about, found.sha256) == (plan.data, plan.about, plan.sha256)
    text = (tmp_path / "cache.json").read_bytes()
    assert text == canonical(json.loads(text)) + b"\n"
    found.write(tmp_path)
    assert (tmp_path / "cache.json").read_bytes() == text


def test_a_plan_is_named_by_its_data_alone(plan: Plan) -> None:
    """Not by what is told of it, nor by the order of its entries; any entry changes it."""
    reordered = {name: dict(reversed(section.items())) for name, section in reversed(plan.data.items())}
    assert Plan(reordered, {"teacher": "another"}).sha256 == plan.sha256
    assert Plan({**plan.data, "more": None}, plan.about).sha256 != plan.sha256


@pytest.mark.parametrize(
    ("section", "name", "value", "words"),
    [
        ("rows", "kind", "sampled", "rows.kind is topk there and sampled here"),
        ("codec", "block_rows", 9, "codec.block_rows is 8 there and 9 here"),
        ("codec", "params", {"logprobs": "f16"}, "codec.params.logprobs is f32 there and f16 here"),
        ("teacher", "sha256", "c" * 64, "teacher.sha256 is bbbbbbbbbbbb... there and cccccccccccc... here"),
        ("teacher", "dtype", "bf16", "teacher.dtype is none there and bf16 here"),
        ("corpus", "shards", 3.0, "corpus.shards is 3 there and 3.0 here"),
    ],
)
def test_another_plan_is_told_by_its_first_difference(
    plan: Plan, section: str, name: str, value: object, words: str
) -> None:
    """Which entry, what is there, what is here, and what to do."""
    other = copy.deepcopy(plan.data)
    plan.require_same(other, Path("cache"))
    other[section][name] = value
    with pytest.raises(MismatchError) as caught:
        plan.require_same(other, Path("cache"))
    remedy = "name another folder, or ask for what is there"
    assert str(caught.value) == f"cache: holds a cache of another plan: {words}; {remedy}"


def test_sections_that_are_not_known_yet_are_not_compared(plan: Plan) -> None:
    """A run knows its teacher before its corpus."""
    plan.require_same({"teacher": plan.data["teacher"]}, Path("cache"))


@pytest.mark.parametrize(
    ("section", "name", "sound", "faulty"),
    [
        ("tokenizer", "vocab_size", 1, 0),
        ("tokenizer", "vocab_size", MAX_VOCABULARY, MAX_VOCABULARY + 1),
        ("codec", "block_rows", 1, 0),
        ("corpus", "sequences", 0, -1),
        ("corpus", "rows", 0, -1),
        ("rows", "kind", "sampled", "Sampled"),
        ("codec", "id", "any", 7),
        ("codec", "params", {}, []),
        ("corpus", "tokens", 1, True),
    ],
)
def test_a_plan_is_bounded(plan: Plan, section: str, name: str, sound: Any, faulty: Any) -> None:
    """From both sides of each bound."""
    data = copy.deepcopy(plan.data)
    data[section][name] = sound
    assert Plan(data, {}).data == data
    data[section][name] = faulty
    with pytest.raises(CacheError, match=f"is no plan: {section}.{name}"):
        Plan(data, {})


@given(JSON)
def test_json_has_one_spelling(data: object) -> None:
    """Equal data are equal bytes, ASCII alone, and read as what they were."""
    text = canonical(data)
    assert text.isascii() and b"\n" not in text
    assert parse(text) == data
    assert canonical(parse(text)) == text
    assert sha256_of(parse(text)) == sha256_of(data)


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_what_is_no_json_is_not_written(number: float) -> None:
    """A plan with such a number would be read by nobody."""
    with pytest.raises(ValueError, match="JSON compliant"):
        canonical({"a": [number]})


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (b'[{"a":1,"b":0,"a":1}]', "key 'a' comes twice"),
        (b"NaN", "NaN is no JSON"),
        (b"[-Infinity]", "-Infinity is no JSON"),
        (b'{"a":1}{}', "Extra data"),
        (b"", "Expecting value"),
        (b"\xff", "decode"),
    ],
)
def test_what_is_no_json_is_not_read(text: bytes, fault: str) -> None:
    """Even what Python would take."""
    with pytest.raises(ValueError, match=fault):
        parse(text)
