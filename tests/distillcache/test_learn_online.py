"""Claims about a teacher in the loop: whole logits in place of rows, and everything else the same."""

from pathlib import Path

import pytest

from distillcache.errors import TeacherError
from distillcache.learn.events import Event, Started, Step, Warned
from distillcache.learn.run import learn
from distillcache_shards.cache import Cache
from distillcache_shards.errors import MismatchError
from tests.distillcache.learning import Make, losses, refusal
from tests.distillcache.tiny_cache import NUM_IDS, sentences, small_teacher, write_cache
from tests.distillcache.tiny_models import save_teacher, tiny


def test_rows_of_all_ids_teach_what_the_whole_teacher_teaches(config: Make, tmp_path: Path) -> None:
    """The same batches and losses, packed or padded, and the same scores against the rows.

    All ids but one, whose mass is the tail.
    """
    cache = write_cache(tmp_path / "cache", small_teacher(), sentences(), k=NUM_IDS - 1)
    teacher = save_teacher(tmp_path / "teacher", small_teacher())
    for packing in (True, False):
        found, results = [], []
        for online in (None, str(teacher)):
            events: list[Event] = []
            output = tmp_path / f"{packing}-{online is None}"
            chosen = config(cache=cache, output=output, online=online, packing=packing, temperature=1.0)
            results.append(learn(chosen, on_event=events.append))
            found.append(losses(events))
            begun = next(event for event in events if isinstance(event, Started))
            assert (begun.online, begun.packed) == (online and "teacher", packing)
        assert list(found[1].values()) == pytest.approx(list(found[0].values()), rel=1e-4)
        assert results[0].after is not None and results[1].after is not None
        assert results[1].after.kl == pytest.approx(results[0].after.kl, rel=1e-3)
    card = (tmp_path / "True-False" / "README.md").read_text()
    assert "A student of teacher, distilled from its logits" in card


def test_rows_are_not_read_while_it_learns(config: Make, room: Path, tmp_path: Path) -> None:
    """A cache whose rows are damaged still has tokens and masks; without held-out records it is enough."""
    cache = write_cache(tmp_path / "cache", small_teacher(), sentences())
    for number in range(Cache.open(cache).num_shards):
        container = Cache.open(cache).shard(number).container
        with container.file.open("r+b") as stream:
            stream.seek(container.span("rows")[0] + 64)
            stream.write(b"damaged")
    learn(config(cache=cache, online=str(room / "teacher"), held_out=0.0))


def test_sampled_rows_do_not_bind_a_whole_teacher(config: Make, room: Path) -> None:
    """Any loss at any temperature; they still say how far the student is."""
    chosen = config(
        cache=room / "sampled", online=str(room / "teacher"), loss="js", temperature=1.0, temperature_end=3.0
    )
    events: list[Event] = []
    result = learn(chosen, on_event=events.append)
    assert result.before is not None and result.after is not None
    assert result.after.hard_loss < result.before.hard_loss
    assert all(event.kl is not None for event in events if isinstance(event, Step))


def test_a_teacher_wider_than_the_tokenizer_is_cut(config: Make, tmp_path: Path) -> None:
    """Its padding stands for no token: a student of the tokenizer's width learns from it."""
    teacher = save_teacher(tmp_path / "wide", tiny("llama", vocab_size=NUM_IDS + 61))
    result = learn(config(online=str(teacher), max_steps=2))
    assert result.num_steps == 2


def test_another_teacher_than_the_cache_had_is_named(config: Make, room: Path) -> None:
    """It is no error: held-out scores are against the cache's all the same."""
    events: list[Event] = []
    learn(config(online=str(room / "teacher"), max_steps=1), on_event=events.append)
    (warning,) = [event.text for event in events if isinstance(event, Warned)]
    assert warning.startswith("teacher is not the teacher whose rows the cache holds (tiny-teacher)")


def test_what_cannot_teach_is_refused(config: Make, room: Path, tmp_path: Path) -> None:
    """No folder, another tokenizer, fewer ids; and a folder whose weights changed is another run."""
    assert "no such folder" in refusal(config(online=str(tmp_path / "none")), TeacherError)
    other = save_teacher(tmp_path / "other", small_teacher())
    from tests.distillcache.tiny_tokenizer import tiny_tokenizer

    tiny_tokenizer().save_pretrained(other)
    refusal(config(online=str(other)), MismatchError)
    narrow = save_teacher(tmp_path / "narrow", tiny("llama", vocab_size=100))
    assert "too few embeddings" in refusal(config(online=str(narrow)), TeacherError)
    short = save_teacher(tmp_path / "short", tiny("llama", vocab_size=NUM_IDS, max_position_embeddings=16))
    assert "too few positions" in refusal(config(online=str(short)), TeacherError)
    learn(config(online=str(room / "teacher"), max_steps=1))
    changed = save_teacher(tmp_path / "teacher", small_teacher(seed=9))
    assert "online.weights is" in refusal(config(online=str(changed), max_steps=1))
    assert "online is" in refusal(config(max_steps=1))
