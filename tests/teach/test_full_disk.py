"""A disk that fills up: one line, no half file, nothing lost, and the same command finishes the same bytes.

The limit is on the size of a file, which the system holds every writer to as it does on a full disk.
"""

import contextlib
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from distillcache_cli.app import run
from tests.teach.teaching import command_line, contents, documents, teach_into, write_records, written_at

# Values of 265 bytes a row against 5 of a token: shards are larger than the corpus before them.
SETTINGS: dict[str, Any] = {"max_length": 4000, "stride": 0, "k": 64, "codec": "plain", "shard_rows": 300}
CORPORA: dict[str, Callable[[], list[dict[str, Any]]]] = {
    "growing": lambda: [*documents(20), {"text": "long " * 700}],  # its last shard is the largest
    "few": lambda: documents(3),  # smaller than the file of the tokenizer
    "brief": lambda: [{"text": f"{number:03d}"} for number in range(60)],  # smaller than its index
}
FREE_SOME = "free some space and start the same command again; nothing of what is done is lost"


@contextlib.contextmanager
def file_limit(num_bytes: int) -> Iterator[None]:
    """No file of this process may grow past so many bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    # Python ignores the signal, so a write past the limit fails as any other.
    assert signal.getsignal(signal.SIGXFSZ) is signal.SIG_IGN
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.slow
def test_full_disk_stops_in_one_line_and_the_same_command_goes_on(teacher: Path, tmp_path: Path) -> None:
    """In a process of its own: the shards before the one that did not fit are kept, and not written again."""
    source = write_records(tmp_path / "corpus.jsonl", CORPORA["growing"]())
    whole, cache, limit = tmp_path / "whole", tmp_path / "cache", 400_000
    teach_into(whole, teacher, source, **SETTINGS)
    sizes = {each.name: each.stat().st_size for each in whole.glob("shard-*")}
    (too_large,) = [name for name, size in sizes.items() if size > limit]
    arguments = command_line(cache, teacher, source, **SETTINGS)
    stopped = subprocess.run(
        [sys.executable, "-m", "distillcache_cli", *arguments],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
        capture_output=True,
        text=True,
    )
    assert (stopped.returncode, stopped.stdout) == (1, ""), stopped.stderr
    assert "Traceback" not in stopped.stderr
    assert stopped.stderr.splitlines()[-1] == (
        f"{cache / too_large}: cannot be written: File too large; {FREE_SOME}"
    )
    kept = written_at(cache)
    assert {*kept} == {*written_at(whole)} - {too_large}
    assert run(arguments) == 0
    assert contents(cache) == contents(whole)
    assert {name: each for name, each in written_at(cache).items() if name in kept} == kept


@pytest.mark.parametrize(
    ("corpus_name", "limit", "full"),
    [
        ("growing", 2_000, ""),  # the corpus itself, which has no name on the disk
        ("brief", 2_500, "cache/index.safetensors"),
        ("few", 4_500, "cache/tokenizer"),
        ("growing", 40_000, "cache/shard-00000.safetensors"),
        ("growing", 300_000, "cache/shard-00006.safetensors"),
    ],
    ids=["corpus", "index", "tokenizer", "first shard", "last shard"],
)
def test_disk_may_fill_up_at_any_file(
    corpus_name: str,
    limit: int,
    full: str,
    teacher: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """One line that names the file, only whole files in the folder, and all that is missing comes after."""
    source = write_records(tmp_path / "corpus.jsonl", CORPORA[corpus_name]())
    settings = SETTINGS | ({"shard_rows": 1, "k": 8} if corpus_name == "brief" else {})
    whole, cache = tmp_path / "whole", tmp_path / "cache"
    teach_into(whole, teacher, source, **settings)
    final = contents(whole)
    arguments = command_line(cache, teacher, source, **settings)
    capfd.readouterr()
    with file_limit(limit):
        code = run(arguments)
    out, err = capfd.readouterr()
    assert (code, out) == (1, "")
    assert err.splitlines()[-1].startswith(f"{tmp_path / full}: cannot be written: File too large; ")
    assert err.endswith(f"; {FREE_SOME}\n")
    found = contents(cache) if cache.exists() else {}
    assert {name: each for name, each in found.items() if name not in final or final[name] != each} == {}
    assert run(arguments) == 0
    assert contents(cache) == final
