"""Never pay twice: a run that is killed at any moment goes on where it was."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from run_config import config_for
from vendor_server import VendorServer

from distillcache.errors import ConfigError, CorpusError
from distillcache.generate.progress import Progress
from distillcache.generate.run import generate

Run = Callable[..., dict[str, Any]]

SCRIPT = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from run_config import config_for
from distillcache.generate.run import generate
class Server:
    openai_url = sys.argv[2]
    address = sys.argv[2].removesuffix("/v1")
config = config_for(Server, sys.argv[5], Path(sys.argv[3]), Path(sys.argv[4]), concurrency=8)
generate(config, confirm=lambda _: True)
"""


def start(server: VendorServer, folder: Path, prompts: Path, vendor: str) -> subprocess.Popen[bytes]:
    """A run in a process of its own."""
    here = str(Path(__file__).parent)
    command = [sys.executable, "-c", SCRIPT, here, server.openai_url, str(folder), str(prompts), vendor]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def killed_runs(tmp_path: Path, prompts: Path, kills: int, count: int, vendor: str) -> None:
    """Kill so often, each time at a random moment after requests have begun; then check everything."""
    chance = random.Random(kills)
    with VendorServer(answer_seconds=0.02) as server:
        done = False
        for _ in range(kills):
            before = sum(server.asked.values())
            process = start(server, tmp_path / "run", prompts, vendor)
            while sum(server.asked.values()) == before and process.poll() is None:
                time.sleep(0.005)
            time.sleep(chance.uniform(0, 0.15))
            done = process.poll() is not None
            process.send_signal(signal.SIGKILL)
            _, err = process.communicate()
            assert process.returncode in (0, -signal.SIGKILL), err.decode()
        last = start(server, tmp_path / "run", prompts, vendor)
        _, err = last.communicate(timeout=60)
        assert last.returncode == 0, err.decode()
        report = json.loads((tmp_path / "run" / "report.json").read_text())
        assert not done and report["answered"] == count
        again = sum(n - 1 for n in server.asked.values())
        assert again <= kills * 8
        assert again == report["requests"]["lost"] or again < report["requests"]["lost"] <= kills * 8
        texts = {r["prompt"]: r["response"] for r in records(tmp_path / "run")}
        assert len(texts) == count and all(server.answer is not None and text for text in texts.values())


def records(folder: Path) -> list[dict[str, Any]]:
    """All records, kept and rejected."""
    lines = [
        *(folder / "data.jsonl").read_text().splitlines(),
        *(folder / "rejected.jsonl").read_text().splitlines(),
    ]
    return [json.loads(line) for line in lines]


def test_killed_twice(tmp_path: Path, prompts_file: Callable[[int], Path]) -> None:
    """SIGKILL at random moments: no answer is lost, none asked twice beyond those in flight."""
    killed_runs(tmp_path, prompts_file(240), 2, 240, "openai")


@pytest.mark.slow
@pytest.mark.parametrize("vendor", ["openai", "anthropic"])
def test_killed_twenty_times(tmp_path: Path, prompts_file: Callable[[int], Path], vendor: str) -> None:
    """The same, twenty times."""
    killed_runs(tmp_path, prompts_file(2000), 20, 2000, vendor)


def test_a_finished_run_asks_nothing(run: Run) -> None:
    """Starting again makes the same files and no request."""
    with VendorServer() as server:
        first = run(server, ask=12)
        asked = sum(server.asked.values())
        again = run(server, ask=12)
        assert sum(server.asked.values()) == asked == 12
    assert first["ledger"] == again["ledger"] and first["filters"] == again["filters"]


def test_a_torn_last_line_is_dropped_and_asked_again(run: Run, tmp_path: Path) -> None:
    """A write that was cut short never counted; every whole line still does."""
    with VendorServer() as server:
        run(server, ask=6)
        path = tmp_path / "run" / "answers.jsonl"
        whole = path.read_bytes()
        path.write_bytes(whole[:-25])
        report = run(server, ask=6)
        assert report["answered"] == 6
        assert sorted(server.asked.values()) == [1, 1, 1, 1, 1, 2]


def test_every_cut_of_the_answers_file_can_be_gone_on_from(run: Run, tmp_path: Path) -> None:
    """Cut at any byte, the run completes, and asks at most as often again as answers were cut off."""
    with VendorServer() as server:
        run(server, ask=4)
        path = tmp_path / "run" / "answers.jsonl"
        whole = path.read_bytes()
        for cut in range(0, len(whole), max(1, len(whole) // 12)):
            path.write_bytes(whole[:cut])
            left = whole[:cut].count(b'"kind": "answer"') - (
                b'"kind": "answer"' in whole[:cut].rpartition(b"\n")[2]
            )
            before = sum(server.asked.values())
            assert run(server, ask=4)["answered"] == 4
            assert sum(server.asked.values()) - before == 4 - left


def test_a_damaged_line_in_the_middle_is_refused_by_number(run: Run, tmp_path: Path) -> None:
    """It was paid for: nobody may skip it in silence."""
    with VendorServer() as server:
        run(server, ask=3)
        path = tmp_path / "run" / "answers.jsonl"
        lines = path.read_text().splitlines()
        path.write_text("\n".join([lines[0], lines[1][:20], *lines[2:]]) + "\n")
        with pytest.raises(CorpusError, match=r"answers\.jsonl:2: damaged line"):
            run(server, ask=3)


def test_other_settings_on_the_same_folder_are_refused_by_name(run: Run) -> None:
    """What differs is named with both values; pace, budget and filters may differ."""
    with VendorServer() as server:
        run(server, ask=2)
        with pytest.raises(ConfigError, match=r"temperature was null, is 0\.5"):
            run(server, ask=2, temperature=0.5)
        assert run(server, ask=2, concurrency=1, min_response_chars=1, max_cost=9.0)["answered"] == 2


def test_changed_prompts_on_the_same_folder_are_refused(run: Run, tmp_path: Path) -> None:
    """The same file name with other text in it."""
    with VendorServer() as server:
        run(server, ask=2)
        path = tmp_path / "prompts-2.txt"
        path.write_text("Something else.\n")
        with pytest.raises(ConfigError, match="made with other prompts"):
            run(server, ask=None, prompts=path)


def test_an_answer_of_any_characters_is_one_line(run: Run, tmp_path: Path) -> None:
    """Line separators, half characters and quotes come through as one line of UTF-8 that JSON reads."""
    text = (
        'An answer that holds \u2028 and \x85 and \r and "quotes" and \\ and half \ud83d of one, long enough.'
    )
    with VendorServer(answer=lambda _: text) as server:
        run(server, ask=1)
    data = (tmp_path / "run" / "data.jsonl").read_text(encoding="utf-8")
    (line,) = data.splitlines()
    assert json.loads(line)["response"] == text.replace("\ud83d", "\ufffd")


def test_a_folder_in_use_is_refused(tmp_path: Path, prompts_file: Callable[[int], Path], run: Run) -> None:
    """Two processes never write into one run."""
    with VendorServer(answer_seconds=0.5) as server:
        process = start(server, tmp_path / "run", prompts_file(8), "openai")
        while not server.asked and process.poll() is None:
            time.sleep(0.01)
        with pytest.raises(ConfigError, match="in use by another process"):
            run(server, ask=8)
        process.communicate(timeout=30)
        assert process.returncode == 0


def test_a_folder_with_other_files_is_refused(run: Run, tmp_path: Path) -> None:
    """A run does not move in where something else lives."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").write_text("mine")
    with VendorServer() as server, pytest.raises(ConfigError, match="holds other files"):
        run(server, ask=1)


def test_an_answer_is_synced_before_it_counts(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """When progress reports an answer, a sync has happened after its line was written."""
    synced: list[int] = []
    real = os.fsync

    def fsync(handle: int) -> None:
        size = (
            (tmp_path / "run" / "answers.jsonl").stat().st_size
            if (tmp_path / "run" / "answers.jsonl").exists()
            else 0
        )
        real(handle)
        synced.append(size)

    monkeypatch.setattr(os, "fsync", fsync)

    (tmp_path / "p.txt").write_text("Only one question.\n")

    def progress(now: Progress) -> None:
        lines = (tmp_path / "run" / "answers.jsonl").read_bytes()
        assert now.answered == 0 or synced[-1] >= lines.rfind(b'"kind": "answer"')
        assert b'"kind": "answer"' in lines

    with VendorServer() as server:
        generate(
            config_for(server, "openai", tmp_path / "run", tmp_path / "p.txt"),
            confirm=lambda _: True,
            progress=progress,
        )


def test_a_full_disk_ends_the_run_and_leaves_whole_lines(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Half a line written, then no space: the half is taken back and the run ends; the next goes on."""
    real = os.write
    calls = 0

    def write(handle: int, data: bytes) -> int:
        nonlocal calls
        calls += b'"kind": "answer"' in data
        if calls >= 3 and data.startswith(b'{"kind"'):
            return real(handle, data[:20])
        if calls >= 3:
            raise OSError(28, "No space left on device")
        return real(handle, data)

    with VendorServer() as server:
        monkeypatch.setattr(os, "write", write)
        with pytest.raises(OSError, match="No space left"):
            run(server, ask=12, concurrency=4)
        monkeypatch.setattr(os, "write", real)
        lines = (tmp_path / "run" / "answers.jsonl").read_text().splitlines()
        assert sum(json.loads(line)["kind"] == "answer" for line in lines) == 2
        assert run(server, ask=12)["answered"] == 12


def test_stop_waits_for_requests_under_way_and_leaves_the_rest(
    tmp_path: Path, prompts_file: Callable[[int], Path]
) -> None:
    """Asked to stop, a run loses nothing; the next start asks exactly the rest."""

    with VendorServer(answer_seconds=0.02) as server:
        config = config_for(server, "openai", tmp_path / "run", prompts_file(40), concurrency=4)
        report = generate(config, confirm=lambda _: True, stop=lambda: sum(server.asked.values()) >= 10)
        assert report["stopped"] == "asked to stop" and report["requests"]["lost"] == 0
        assert report["answered"] == sum(server.asked.values()) < 20
        assert generate(config, confirm=lambda _: True)["answered"] == 40
        assert set(server.asked.values()) == {1}
