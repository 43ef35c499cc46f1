"""Facts as tables: every fact is shown, in the unit of its name."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distillcache_cli.facts import print_facts, value_words


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("num_rows", 1234567, "1,234,567"),
        ("shard_bytes", 3_440_000, "3.4 MB"),
        ("teach_seconds", 185.2, "3 min 05 s"),
        ("mean_kl_nats", 0.000123456, "0.0001235"),
        ("tokens_per_second", 12345.6, "12,346"),
        ("bytes_a_token", 119.25, "119.2"),
        ("revision", None, "-"),
        ("complete", True, "yes"),
        ("codec", "zstd", "zstd"),
        ("missing", [3, 14], "3, 14"),
        ("missing", [], "-"),
        ("mass_kept", float("nan"), "nan"),
    ],
)
def test_a_value_is_in_the_unit_of_its_name(name: str, value: object, words: str) -> None:
    """As people read it."""
    assert value_words(name, value) == words


def test_every_fact_is_shown_however_deep(capsys: pytest.CaptureFixture[str]) -> None:
    """Plain ones first, then a table for every mapping and every list of mappings."""
    facts = {
        "teacher": {"name": "smol", "weights": {"sha256": "ab12"}},
        "num_rows": 5000,
        "shards": [{"shard": 0, "rows": 10}, {"shard": 1, "rows": None}],
        "missing": [],
        "masks": {},
    }
    print_facts("cache", facts)
    text = " ".join(capsys.readouterr().out.split())
    assert text.startswith("cache num rows 5,000 missing -")
    for words in (
        "cache: teacher name smol",
        "cache: teacher: weights sha256 ab12",
        "cache: shards shard rows",
    ):
        assert words in text
    assert "0 10" in text
    assert "1 -" in text


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.integers() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    )
)
def test_no_value_that_json_can_hold_stops_the_table(value: object) -> None:
    """What a later release adds to the facts is shown by this one."""
    print_facts("facts", {"any": value, "any_bytes": value})
