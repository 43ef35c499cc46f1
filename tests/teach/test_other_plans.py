"""A folder belongs to one plan: whatever makes another cache of it is refused, and named."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from distillcache_cli.app import run
from tests.distillcache.tiny_models import byte_tokenizer, save_teacher, tiny
from tests.teach.refusing import Refuse, refusal
from tests.teach.teaching import SETTINGS, command_line, teach_into, written_at


@pytest.fixture
def refuse(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Refuse:
    """Run a command line that must be refused; nothing in `tmp_path` may change."""
    return lambda arguments: refusal(arguments, tmp_path, capfd)


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"k": 9}, "rows.k is 8 there and 9 here"),
        ({"top_p": 0.9}, "rows.top_p is none there and 0.9 here"),
        ({"keep": "sampled", "k": None}, "rows.draw_units is none there and 4 here"),
        ({"codec": "plain"}, "codec.asked.max_kl_nats is 0.0001 there and none here"),
        ({"max_kl": 0.001}, "codec.asked.max_kl_nats is 0.0001 there and 0.001 here"),
        ({"bytes_per_token": 50}, "codec.asked.max_kl_nats is 0.0001 there and none here"),
        ({"block_rows": 100}, "codec.block_rows is 512 there and 100 here"),
        ({"max_length": 65}, "settings.max_length is 64 there and 65 here"),
        ({"stride": 9}, "settings.stride is 8 there and 9 here"),
        ({"shard_rows": 201}, "settings.shard_rows is 200 there and 201 here"),
        ({"supervise": "all"}, "settings.supervise is assistant there and all here"),
        ({"system": "Be brief."}, "settings.system is none there and Be brief. here"),
        ({"special_tokens": "token"}, "settings.special_tokens is text there and token here"),
        ({"dtype": "bf16"}, "teacher.dtype is fp32 there and bf16 here"),
        ({"limit": 20}, "corpus."),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else "",
)
def test_other_setting_is_refused_by_name(
    changed: dict[str, Any], named: str, teacher: Path, corpus: Path, cache: Path, refuse: Refuse
) -> None:
    """One setting at a time, on a finished cache."""
    line = refuse(command_line(cache, teacher, corpus, **changed))
    assert line.startswith(f"{cache}: holds a cache of another plan: {named}")


def test_unfinished_cache_is_not_finished_by_another_plan(
    teacher: Path, corpus: Path, cache: Path, refuse: Refuse
) -> None:
    """Where a shard is missing, nothing is written either."""
    (cache / "shard-00001.safetensors").unlink()
    assert "rows.k is 8 there and 9 here" in refuse(command_line(cache, teacher, corpus, k=9))


def test_other_text_is_refused(
    teacher: Path, corpus: Path, cache: Path, tmp_path: Path, refuse: Refuse
) -> None:
    """One letter of one record, with all counts as they were."""
    text = corpus.read_text()
    other = tmp_path / "other.jsonl"
    other.write_text(text.replace("teacher", "teachex", 1))
    line = refuse(command_line(cache, teacher, other))
    assert "another plan: corpus.index_header_sha256 is " in line


def test_same_text_in_another_place_is_the_same_corpus(
    teacher: Path, corpus: Path, cache: Path, tmp_path: Path
) -> None:
    """The plan knows tokens, not paths: whoever moved the corpus may go on."""
    before = written_at(cache)
    moved = shutil.copy(corpus, tmp_path / "moved.jsonl")
    assert run(command_line(cache, teacher, moved)) == 0
    assert written_at(cache) == before


def test_other_weights_are_refused(corpus: Path, cache: Path, tmp_path: Path, refuse: Refuse) -> None:
    """A model of the same shape, trained otherwise, in a folder of the same name."""
    other = save_teacher(tmp_path / "tiny", tiny("llama", seed=1))
    assert "another plan: teacher.sha256 is " in refuse(command_line(cache, other, corpus))


def other_template(tokenizer: Any) -> None:
    """A chat template that says another word."""
    tokenizer.chat_template = tokenizer.chat_template.replace("assistant", "helper")


def one_token_more(tokenizer: Any) -> None:
    """A token that the corpus does not use."""
    tokenizer.add_tokens(["<extra>"])


@pytest.mark.parametrize("change", [other_template, one_token_more])
def test_other_tokenizer_is_refused(
    change: Callable[[Any], None], teacher: Path, corpus: Path, cache: Path, tmp_path: Path, refuse: Refuse
) -> None:
    """With the same weights beside it."""
    other = shutil.copytree(teacher, tmp_path / "other")
    tokenizer = byte_tokenizer()
    change(tokenizer)
    tokenizer.save_pretrained(other)
    assert "another plan: tokenizer.sha256 is " in refuse(command_line(cache, other, corpus))


def test_shard_of_another_cache_is_refused(
    teacher: Path, corpus: Path, cache: Path, tmp_path: Path, refuse: Refuse
) -> None:
    """Copied into the folder, it is named, and neither taken nor set aside nor taught over."""
    name = "shard-00001.safetensors"
    teach_into(tmp_path / "other", teacher, corpus, k=4)
    shutil.copy(tmp_path / "other" / name, cache / name)
    line = refuse(command_line(cache, teacher, corpus))
    assert line.startswith(f"{cache / name}: belongs to another plan, ")


def test_shard_under_anothers_name_is_refused(
    teacher: Path, corpus: Path, cache: Path, refuse: Refuse
) -> None:
    """It is sound, but its sequences are others."""
    shutil.copy(cache / "shard-00000.safetensors", cache / "shard-00001.safetensors")
    line = refuse(command_line(cache, teacher, corpus))
    assert line == f"{cache / 'shard-00001.safetensors'}: is shard 0 under another's name; rename it"


def test_damaged_plan_is_refused(teacher: Path, corpus: Path, cache: Path, refuse: Refuse) -> None:
    """A plan of which a byte changed is not trusted, nor written over."""
    plan = cache / "cache.json"
    plan.write_bytes(plan.read_bytes().replace(b'"k":8', b'"k":9'))
    line = refuse(command_line(cache, teacher, corpus))
    assert line.startswith(f"{plan}: ") and "checksum" in line


def test_settings_that_do_not_shape_the_cache_may_change(teacher: Path, corpus: Path, cache: Path) -> None:
    """Batches and the device are how, not what."""
    before = written_at(cache)
    assert SETTINGS["device"] == "cpu"
    assert run(command_line(cache, teacher, corpus, batch_tokens=77, device="auto")) == 0
    assert written_at(cache) == before
