"""Never pay twice: what was said is on the disk before it counts, and a killed run goes on where it was."""

import multiprocessing
import os
import random
import time
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path

import pytest
from api_run import KEY, Served, Taught, config_for
from logprob_server import LogprobServer

from distillcache.errors import ConfigError, TeacherError
from distillcache.generate.estimate import Estimate
from distillcache.teach.events import Aligned, Asked
from distillcache.teach.run import teach
from distillcache_cli.app import run as cli
from distillcache_shards.cache import Cache
from distillcache_shards.errors import MismatchError

Run = Callable[..., Taught]
Prompts = Callable[[int], Path]

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(
    ["distillcache_cli.app", "distillcache.teach.run", "distillcache.teach.api.source"]
)


def command(server: LogprobServer, cache: Path, source: Path, tokenizer: Path) -> list[str]:
    """A run with four requests under way; without a key, since forks have an older environment."""
    return [
        "teach", str(cache), "--sources", str(source), "--teacher", "openai:tiny", "--tokenizer",
        str(tokenizer), "--base-url", server.url, "--price", "0", "0",
        "--max-tokens", "6", "--concurrency", "4", "--shard-rows", "32",
    ]  # fmt: skip


def killed(byte_teacher: Served, source: Path, tmp_path: Path, kills: int, count: int) -> None:
    """Kill so often while the API is asked; then all answers are there, and few were asked again."""
    chance = random.Random(kills)
    with LogprobServer(
        byte_teacher.model, byte_teacher.tokenizer, speakable=byte_teacher.ascii, seconds=0.03
    ) as server:
        arguments = command(server, tmp_path / "killed", source, byte_teacher.folder)
        for _ in range(kills):
            before = len(server.bodies)
            process = FORKS.Process(target=cli, args=(arguments,))
            process.start()
            while len(server.bodies) == before:
                assert process.is_alive()
                time.sleep(0.002)
            time.sleep(chance.uniform(0, 0.2))
            assert process.exitcode is None
            process.kill()
            process.join()
        assert cli(arguments) == 0
        assert len(server.asked) == count
        assert sum(n - 1 for n in server.asked.values()) <= kills * 4
        # The same bytes as of a run that was not killed, by a server that says the same.
        assert cli(command(server, tmp_path / "whole", source, byte_teacher.folder)) == 0
    ours, theirs = (sorted((tmp_path / name).glob("*.*")) for name in ("killed", "whole"))
    assert [each.read_bytes() for each in ours] == [each.read_bytes() for each in theirs] and len(ours) > 2


def test_killed_while_asking(byte_teacher: Served, prompts: Prompts, tmp_path: Path) -> None:
    """Nothing is asked twice beyond what was under way, and the cache is the same bytes."""
    killed(byte_teacher, prompts(50), tmp_path, 2, 50)


@pytest.mark.slow
def test_killed_many_times(byte_teacher: Served, prompts: Prompts, tmp_path: Path) -> None:
    """The same, twenty times."""
    killed(byte_teacher, prompts(600), tmp_path, 20, 600)


def test_a_finished_cache_asks_nothing(byte_teacher: Served, prompts: Prompts, run: Run) -> None:
    """Nor does a lost shard: it is made again from what was said."""
    with LogprobServer(byte_teacher.model, byte_teacher.tokenizer, speakable=byte_teacher.ascii) as server:
        taught = run(server, prompts(8), byte_teacher.folder)
        shard = taught.cache.folder / "shard-00001.safetensors"
        whole = shard.read_bytes()
        shard.unlink()
        run(server, prompts(8), byte_teacher.folder)
        assert shard.read_bytes() == whole and len(server.bodies) == 8


def test_another_cache_of_the_same_answers_is_free(byte_teacher: Served, prompts: Prompts, run: Run) -> None:
    """The answers are kept beside the cache: more prompts and another codec pay only for what is new."""
    with LogprobServer(byte_teacher.model, byte_teacher.tokenizer, speakable=byte_teacher.ascii) as server:
        first = run(server, prompts(5), byte_teacher.folder)
        answers = first.cache.folder.with_name("cache.answers")
        other = run(server, prompts(7), byte_teacher.folder, name="other", codec="plain", answers=answers)
    assert len(other.cache) == 7 and len(server.bodies) == 7


def test_a_grown_corpus_is_refused_before_anything_is_paid(
    byte_teacher: Served, prompts: Prompts, run: Run
) -> None:
    """A cache is of the corpus that it was made from."""
    with LogprobServer(byte_teacher.model, byte_teacher.tokenizer, speakable=byte_teacher.ascii) as server:
        run(server, prompts(3), byte_teacher.folder)
        with pytest.raises(ConfigError, match="made without 1 of the 4 questions"):
            run(server, prompts(4), byte_teacher.folder)
        assert len(server.bodies) == 3


def test_other_settings_on_the_same_folders_are_refused(
    byte_teacher: Served, prompts: Prompts, run: Run
) -> None:
    """The cache names its teacher, the folder of answers what was asked for."""
    with LogprobServer(byte_teacher.model, byte_teacher.tokenizer, speakable=byte_teacher.ascii) as server:
        answers = run(server, prompts(3), byte_teacher.folder).cache.folder.with_name("cache.answers")
        with pytest.raises(MismatchError, match="teacher"):
            run(server, prompts(3), byte_teacher.folder, temperature=0.5)
        with pytest.raises(ConfigError, match=r"made with other settings; temperature was null, is 0\.5"):
            run(server, prompts(3), byte_teacher.folder, name="b", temperature=0.5, answers=answers)


def test_what_was_said_and_damaged_since_is_named(byte_teacher: Served, prompts: Prompts, run: Run) -> None:
    """A checksum tells, and nothing is made of it."""
    with LogprobServer(byte_teacher.model, byte_teacher.tokenizer, speakable=byte_teacher.ascii) as server:
        answers = run(server, prompts(2), byte_teacher.folder).cache.folder.with_name("cache.answers")
        said = answers / "said.bin"
        data = bytearray(said.read_bytes())
        data[20] ^= 1
        said.write_bytes(data)
        with pytest.raises(TeacherError, match=r"said\.bin: damaged at byte 0"):
            run(server, prompts(2), byte_teacher.folder)


def test_max_cost_holds_and_the_next_start_goes_on(byte_teacher: Served, prompts: Prompts, run: Run) -> None:
    """The budget is not passed; what was paid is kept, and no cache is made of half the answers."""
    with LogprobServer(byte_teacher.model, byte_teacher.tokenizer, speakable=byte_teacher.ascii) as server:
        settings = {"price_input": 1000.0, "price_output": 1000.0, "concurrency": 4}
        with pytest.raises(TeacherError, match=r"stopped at --max-cost of 0\.8 US dollars; .* kept"):
            run(server, prompts(20), byte_teacher.folder, max_cost=0.8, **settings)
        asked = len(server.bodies)
        taught = run(server, prompts(20), byte_teacher.folder, max_cost=100.0, **settings)
    (event,) = (each for each in taught.events if isinstance(each, Aligned))
    one = Decimal(event.ledger["total"]["cost_usd"]) / 20
    assert 0 < asked < 20 and one * asked <= Decimal("0.8")
    assert len(server.bodies) == 20 == len(taught.cache)


def test_the_ledger_is_what_the_server_reported(byte_teacher: Served, prompts: Prompts, run: Run) -> None:
    """Tokens and dollars, to the last digit."""
    with LogprobServer(byte_teacher.model, byte_teacher.tokenizer, speakable=byte_teacher.ascii) as server:
        taught = run(server, prompts(4), byte_teacher.folder)
    (event,) = (each for each in taught.events if isinstance(each, Aligned))
    prompt = sum(len(each.tokens) - 10 for each in (taught.cache[n] for n in range(4)))
    total = event.ledger["total"]
    assert total["input_tokens"] == prompt and total["output_tokens"] == 40
    assert Decimal(total["cost_usd"]) == Decimal(prompt * 1 + 40 * 5) / 1_000_000
    far = [each for each in taught.events if isinstance(each, Asked)]
    assert far[-1].answered == far[-1].total == 4 and far[-1].spent_usd == Decimal(total["cost_usd"])


def test_an_estimate_that_is_not_confirmed_costs_nothing(
    byte_teacher: Served, prompts: Prompts, tmp_path: Path
) -> None:
    """Nor does a call from Python that says nothing of it; what is free is not asked about."""
    shown: list[Estimate] = []
    with LogprobServer(byte_teacher.model, byte_teacher.tokenizer, speakable=byte_teacher.ascii) as server:
        config = config_for(server, tmp_path / "cache", prompts(2), byte_teacher.folder)
        with pytest.raises(TeacherError, match="not confirmed; nothing was asked"):
            teach(config, confirm=lambda estimate: bool(shown.append(estimate)))
        with pytest.raises(TeacherError, match="not confirmed; nothing was asked"):
            teach(config)
        assert not server.bodies and shown[0].requests == 2 and shown[0].ceiling_usd
        free = config_for(
            server, tmp_path / "cache", prompts(2), byte_teacher.folder, price_input=0.0, price_output=0.0
        )
        teach(free)
    assert len(Cache.open(tmp_path / "cache")) == 2


def test_the_key_is_in_no_file(byte_teacher: Served, prompts: Prompts, run: Run, tmp_path: Path) -> None:
    """Sent to the server, which says it again in an error, and found nowhere else."""

    def fault(number: int) -> int | None:
        return 400 if number == 1 else None

    with LogprobServer(
        byte_teacher.model, byte_teacher.tokenizer, speakable=byte_teacher.ascii, fault=fault
    ) as server:
        server.error = f"bad key {KEY}"
        taught = run(server, prompts(3), byte_teacher.folder, concurrency=1)
    assert all(each["authorization"] == f"Bearer {KEY}" for each in server.headers)
    assert "[key]" in str(taught.events) and KEY not in str(taught.events)
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or KEY.encode() not in path.read_bytes(), path
    assert os.environ["TEST_KEY"] == KEY
