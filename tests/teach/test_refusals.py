"""Refusals of `teach` before there is a cache: one clear line, a non-zero exit, and nothing on the disk."""

import re
import shutil
from pathlib import Path

import pytest

from distillcache_cli.app import run
from tests.distillcache.tiny_models import byte_tokenizer, save_teacher, tiny
from tests.teach.refusing import Refuse, refusal
from tests.teach.teaching import NUM_IDS, command_line, documents, teach_into, write_records


@pytest.fixture
def refuse(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Refuse:
    """Run a command line that must be refused; nothing in `tmp_path` may change."""
    return lambda arguments: refusal(arguments, tmp_path, capfd)


def test_unknown_key_is_refused_with_the_nearest_named(
    teacher: Path, corpus: Path, tmp_path: Path, refuse: Refuse
) -> None:
    """A misspelt key of a file is never ignored."""
    config = tmp_path / "teach.toml"
    config.write_text("max_lenght = 64\n")
    line = refuse(command_line(tmp_path / "cache", teacher, corpus, config=config))
    assert line == f"{config}: unknown key `max_lenght`; did you mean `max_length`?"


def test_k_of_0_is_refused(teacher: Path, corpus: Path, tmp_path: Path, refuse: Refuse) -> None:
    """A row keeps something."""
    line = refuse(command_line(tmp_path / "cache", teacher, corpus, k=0))
    assert line == "--k: must be at least 1, found 0"


def test_k_may_be_the_vocabulary_and_no_more(
    teacher: Path, corpus: Path, tmp_path: Path, refuse: Refuse
) -> None:
    """The limit is the tokenizer's ids, not the wider embedding matrix; both sides of it."""
    line = refuse(command_line(tmp_path / "cache", teacher, corpus, k=NUM_IDS + 1))
    assert line.startswith(f"--k: must be at most {NUM_IDS}") and line.endswith(f"found {NUM_IDS + 1}")
    report = teach_into(tmp_path / "cache", teacher, corpus, k=NUM_IDS)
    # The mass of each row is in 259 values of f16, and nothing is left for the tail.
    assert report.mass_kept == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", "no supervised token in 0 records"),
        ('{"text": "  "}\n', "1 empty, first {}:1"),
        ('{"prompt": "why?", "response": ""}\n', "1 empty, first {}:1"),
        ('{"messages": [{"role": "user", "content": "hello?"}]}\n', "1 without a supervised token, first"),
    ],
    ids=["no record", "blank", "no answer", "only a user"],
)
def test_corpus_without_a_supervised_token_is_refused(
    text: str, found: str, teacher: Path, tmp_path: Path, refuse: Refuse
) -> None:
    """It says what became of the records, and where the first of them stands."""
    source = tmp_path / "corpus.jsonl"
    source.write_text(text)
    line = refuse(command_line(tmp_path / "cache", teacher, source))
    assert line.startswith("corpus: no supervised token")
    assert found.format(source) in line


def test_missing_corpus_is_refused(teacher: Path, tmp_path: Path, refuse: Refuse) -> None:
    """By its name, before a model is loaded."""
    line = refuse(command_line(tmp_path / "cache", teacher, tmp_path / "gone.jsonl"))
    assert line.startswith(f"{tmp_path / 'gone.jsonl'}: no such file")


@pytest.mark.parametrize("bad", ['{"text": "half', "not JSON", '["text"]', '{"txet": "x"}', '{"text": 3}'])
def test_record_that_is_none_is_refused_with_its_line(
    bad: str, teacher: Path, tmp_path: Path, refuse: Refuse
) -> None:
    """Even the last of many, after all others were read."""
    source = write_records(tmp_path / "corpus.jsonl", documents(300))
    with source.open("a") as stream:
        stream.write(bad + "\n")
    line = refuse(command_line(tmp_path / "cache", teacher, source))
    assert re.match(rf"{re.escape(str(source))}(:| line )301: ", line)


@pytest.mark.parametrize("name", ["/no/such/teacher", "./gone", "nobody/no-such-model"])
def test_missing_teacher_is_refused(name: str, corpus: Path, tmp_path: Path, refuse: Refuse) -> None:
    """A folder that is not there, and a name that neither the hub's cache nor a network has."""
    assert refuse(command_line(tmp_path / "cache", name, corpus)).startswith(f"{name}: ")


def test_folder_without_a_model_is_no_teacher(corpus: Path, tmp_path: Path, refuse: Refuse) -> None:
    """An empty folder, and one whose weights are gone."""
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "no config.json" in refuse(command_line(tmp_path / "cache", empty, corpus))


def test_model_without_a_chat_template_refuses_chats(
    teacher: Path, corpus: Path, tmp_path: Path, refuse: Refuse
) -> None:
    """The record is named, since only some may be chats."""
    plain = shutil.copytree(teacher, tmp_path / "plain")
    (plain / "chat_template.jinja").unlink()
    byte_tokenizer(chat=False).save_pretrained(plain)
    assert "has no chat template" in refuse(command_line(tmp_path / "cache", plain, corpus))


def test_sequences_longer_than_the_teacher_has_positions_are_refused(tmp_path: Path, refuse: Refuse) -> None:
    """A model of learned positions has no row for the next one; found before the first shard."""
    teacher = save_teacher(tmp_path / "gpt2", tiny("gpt2", n_positions=256))
    source = write_records(tmp_path / "corpus.jsonl", [{"text": "hello world " * 60}])
    line = refuse(command_line(tmp_path / "cache", teacher, source, max_length=512))
    assert "256" in line and "--max-length" in line


def test_cache_that_is_a_file_is_refused(teacher: Path, corpus: Path, tmp_path: Path, refuse: Refuse) -> None:
    """The file keeps its bytes."""
    (tmp_path / "cache").write_text("mine")
    line = refuse(command_line(tmp_path / "cache", teacher, corpus))
    assert line == f"{tmp_path / 'cache'}: is a file; name a folder for the cache"


def test_cache_below_a_file_is_refused(teacher: Path, corpus: Path, tmp_path: Path, refuse: Refuse) -> None:
    """No folder can be made there."""
    (tmp_path / "file").write_text("mine")
    assert str(tmp_path / "file") in refuse(command_line(tmp_path / "file" / "cache", teacher, corpus))


def test_folder_that_holds_something_else_is_refused(
    teacher: Path, corpus: Path, tmp_path: Path, refuse: Refuse
) -> None:
    """Naming what is found there; an empty folder is taken."""
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "thesis.tex").write_text("years of work")
    line = refuse(command_line(tmp_path / "cache", teacher, corpus))
    assert line.startswith(f"{tmp_path / 'cache'}: is neither empty nor a cache; found thesis.tex; ")
    (tmp_path / "cache" / "thesis.tex").unlink()
    assert run(command_line(tmp_path / "cache", teacher, corpus)) == 0


def test_shards_without_their_plan_are_refused(
    teacher: Path, corpus: Path, cache: Path, tmp_path: Path, refuse: Refuse
) -> None:
    """A folder that lost its plan is not given another one, under which its shards would be foreign."""
    (cache / "cache.json").unlink()
    assert "shard-00000" in refuse(command_line(cache, teacher, corpus, k=4))
    assert run(command_line(cache, teacher, corpus)) == 0
