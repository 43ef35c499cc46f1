"""Claims about resuming: the same command makes what is missing, and touches nothing else."""

import shutil
from pathlib import Path

import pytest

from distillcache.errors import TeacherError
from distillcache.teach.events import Planned, Progress, Warned
from distillcache_cli.app import run
from distillcache_shards.cache import Cache
from tests.distillcache.tiny_models import save_teacher, tiny
from tests.teach.teaching import command_line, contents, teach_into, written_at

MIB = 1 << 20


def test_only_missing_shards_are_taught(teacher: Path, corpus: Path, taught: Path, cache: Path) -> None:
    """The others keep the time of their writing; the report counts what this run taught."""
    lost = (0, 3, 6)
    for number in lost:
        (cache / f"shard-{number:05d}.safetensors").unlink()
    before = written_at(cache)
    report = teach_into(cache, teacher, corpus)
    assert contents(cache) == contents(taught)
    assert {name: each for name, each in written_at(cache).items() if name in before} == before
    whole = Cache.open(taught)
    assert report.tokens_taught == sum(whole.shard(number).num_tokens for number in lost)
    assert (report.shards_missing, report.shards_redone) == (0, 0)


def flip_a_row(shard: Path) -> None:
    """One bit in the middle."""
    damaged = bytearray(shard.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    shard.write_bytes(damaged)


def cut(shard: Path) -> None:
    """The second half is gone."""
    shard.write_bytes(shard.read_bytes()[: shard.stat().st_size // 2])


def empty(shard: Path) -> None:
    """Nothing is left but the name."""
    shard.write_bytes(b"")


@pytest.mark.parametrize("damage", [flip_a_row, cut, empty])
def test_damaged_shard_is_set_aside_and_taught_again(
    damage: object, teacher: Path, corpus: Path, taught: Path, cache: Path
) -> None:
    """Under `.bad`, with a warning that names it; what takes its place is the same bytes as ever."""
    assert callable(damage)
    shard = cache / "shard-00002.safetensors"
    damage(shard)
    bad, events = shard.read_bytes(), []
    report = teach_into(cache, teacher, corpus, on_event=events.append)
    assert report.shards_redone == 1
    found = contents(cache)
    assert found.pop("shard-00002.safetensors.bad") == bad
    assert found == contents(taught)
    warnings = [each.text for each in events if isinstance(each, Warned)]
    assert len([text for text in warnings if text.startswith(f"{shard}: ")]) == 1


def test_finished_cache_needs_no_teacher_and_writes_nothing(corpus: Path, tmp_path: Path) -> None:
    """The teacher's weights are spoiled where no fingerprint looks: only who loads them finds out."""
    teacher = save_teacher(tmp_path / "wide", tiny("llama", intermediate_size=6000))
    arguments = command_line(tmp_path / "cache", teacher, corpus)
    assert run(arguments) == 0
    weights = teacher / "model.safetensors"
    assert weights.stat().st_size > 3 * MIB
    with weights.open("r+b") as stream:
        stream.seek(MIB + MIB // 2)
        stream.write(b"\xff" * 4096)  # not numbers
    finished, before = contents(tmp_path / "cache"), written_at(tmp_path / "cache")
    assert run(arguments) == 0
    assert written_at(tmp_path / "cache") == before
    # The same command loads them as soon as there is something to teach.
    (tmp_path / "cache" / "shard-00000.safetensors").unlink()
    with pytest.raises(TeacherError, match="not numbers"):
        teach_into(tmp_path / "cache", teacher, corpus)
    del finished["shard-00000.safetensors"]
    assert contents(tmp_path / "cache") == finished


@pytest.mark.parametrize("name", ["index.safetensors", "tokenizer", "tokenizer/tokenizer.json"])
def test_lost_part_is_written_again(
    name: str, teacher: Path, corpus: Path, taught: Path, cache: Path
) -> None:
    """Index and tokenizer come from the plan's own corpus and teacher; no shard is touched."""
    part = cache / name
    shutil.rmtree(part) if part.is_dir() else part.unlink()
    before = written_at(cache)
    report = teach_into(cache, teacher, corpus)
    assert report.tokens_taught == 0
    assert contents(cache) == contents(taught)
    shards = {file: each for file, each in before.items() if file.startswith("shard-")}
    assert shards.items() <= written_at(cache).items()


@pytest.mark.parametrize("name", ["index.safetensors", "tokenizer/tokenizer.json"])
def test_damaged_part_is_written_again(
    name: str, teacher: Path, corpus: Path, taught: Path, cache: Path
) -> None:
    """Index and tokenizer are known by their hash."""
    flip_a_row(cache / name)
    teach_into(cache, teacher, corpus)
    assert contents(cache) == contents(taught)


def test_dtype_auto_goes_on_in_the_dtype_of_the_cache(teacher: Path, corpus: Path, tmp_path: Path) -> None:
    """Whatever this machine would choose for a new one."""
    for dtype in ("bf16", "fp32"):
        cache = tmp_path / dtype
        teach_into(cache, teacher, corpus, dtype=dtype)
        whole = contents(cache)
        (cache / "shard-00001.safetensors").unlink()
        teach_into(cache, teacher, corpus, dtype="auto")
        assert contents(cache) == whole
    assert contents(tmp_path / "bf16") != contents(tmp_path / "fp32")


def test_batches_go_on_in_the_size_of_the_cache(teacher: Path, corpus: Path, tmp_path: Path) -> None:
    """In bf16 the size of a batch shows in the bytes, so an unstated one is that of the first run."""
    cache = tmp_path / "cache"
    teach_into(cache, teacher, corpus, dtype="bf16", batch_tokens=50)
    assert Cache.open(cache).about["batch_tokens"] == 50
    whole, shard = contents(cache), cache / "shard-00001.safetensors"
    told: dict[int | None, int] = {}
    for batch_tokens in (None, 100_000):
        shard.unlink()
        events: list[object] = []
        teach_into(cache, teacher, corpus, dtype="bf16", batch_tokens=batch_tokens, on_event=events.append)
        told[batch_tokens] = len([each for each in events if isinstance(each, Progress)])
        if batch_tokens is None:
            assert contents(cache) == whole
    # One event a batch and one a shard: the whole shard was one batch when that was asked for.
    assert told[None] > told[100_000] == 2


def test_resuming_counts_its_own_work(teacher: Path, corpus: Path, cache: Path) -> None:
    """Shards that were there are done from the first event on; tokens are those of this run."""
    for number in (1, 2):
        (cache / f"shard-{number:05d}.safetensors").unlink()
    events: list[object] = []
    report = teach_into(cache, teacher, corpus, on_event=events.append)
    far = [each for each in events if isinstance(each, Progress)]
    assert isinstance(events[0], Planned) and events[0].num_shards == report.shards
    assert far[0].shards_done == report.shards - 2
    assert far[-1].shards_done == far[-1].shards_total == report.shards
    assert far[-1].tokens_done == far[-1].tokens_total == report.tokens_taught < report.tokens
