"""The run folder: what was asked, every answer that was paid for, and the settings that made both.

    settings.json    the settings kept, their hash and the hash of the prompts
    prompts.jsonl    the prompts, written once before the first request
    answers.jsonl    one line an event, appended; an answer counts when its line is synced
    data.jsonl  rejected.jsonl  report.json    made anew from the answers at the end of every start

Events: `sent` (a request goes), then one of `answer`, `refused` (not on the bill), `lost` (may be on the
bill);
`failed` when a prompt is given up in this start; `batch` when a batch is handed in.
A `sent` without its end is a request that was under way when the run was stopped.
Only `answer` and `batch` wait for the disk: the others say what may be lost, and a killed process loses none
of them.
Knows nothing of teachers.
"""

import asyncio
import hashlib
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Self

from distillcache.errors import ConfigError, CorpusError
from distillcache.generate.config import settings_hash
from distillcache.generate.keys import Key
from distillcache.generate.prompts import Prompt

__all__ = ["Event", "RunFolder"]

Event = dict[str, object]


class RunFolder:
    """A run folder, locked against other processes while it is open. `events` are those of earlier starts."""

    def __init__(self, folder: Path, kept: Mapping[str, object], prompts: Sequence[Prompt], key: Key) -> None:
        """Opens or makes the folder.

        Raises `ConfigError` when it was made with other settings or prompts or is in use, `CorpusError` when
        a line
        that had been written is damaged.
        """
        self.path = folder
        self._key = key
        folder.mkdir(parents=True, exist_ok=True)
        self._lock = _locked(folder / "lock")
        try:
            lines = [json.dumps(_prompt_json(prompt), ensure_ascii=False) for prompt in prompts]
            digest = hashlib.sha256("\n".join(lines).encode("utf-8", "surrogatepass")).hexdigest()
            self._settings(kept, digest, lines)
            self.tag = settings_hash(dict(kept) | {"prompts_sha256": digest})
            self.events = list(self._read_events(folder / "answers.jsonl"))
            self._file = os.open(folder / "answers.jsonl", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        except BaseException:
            self._lock.close()
            raise
        _sync_folder(folder)
        self._written = self._synced = 0
        self._broken: OSError | None = None
        self._syncing = asyncio.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._file)
        self._lock.close()

    def note(self, event: Event) -> None:
        """Append an event; a killed process does not lose it, a power cut may.

        Raises `OSError` when the disk does not take it, and for every event after that: half a line must not
        be written on.
        """
        if self._broken is not None:
            raise self._broken
        data = (self._key.strike(json.dumps(event, ensure_ascii=False)) + "\n").encode(
            "utf-8", "surrogatepass"
        )
        size = os.fstat(self._file).st_size
        try:
            while data:
                data = data[os.write(self._file, data) :]
        except OSError as fault:
            self._broken = fault
            os.ftruncate(self._file, size)
            raise
        self._written += 1

    async def keep(self, event: Event) -> None:
        """Append an event and return when it is on the disk; those that wait together share one sync."""
        self.note(event)
        mine = self._written
        async with self._syncing:
            if self._synced < mine:
                upto = self._written
                await asyncio.to_thread(os.fsync, self._file)
                self._synced = upto

    def write(self, name: str, lines: Sequence[str]) -> None:
        """Replace a file of the folder, whole or not at all."""
        _replace(self.path / name, self._key.strike("".join(line + "\n" for line in lines)))

    def _settings(self, kept: Mapping[str, object], digest: str, lines: Sequence[str]) -> None:
        path = self.path / "settings.json"
        if not path.exists():
            if any(p.name not in ("lock", "prompts.jsonl") for p in self.path.iterdir()):
                raise ConfigError(f"{self.path}: holds other files and no run; name an empty or a new folder")
            self.write("prompts.jsonl", lines)
            about = {"hash": settings_hash(dict(kept)), "prompts_sha256": digest, "settings": kept}
            self.write("settings.json", [json.dumps(about, indent=2, ensure_ascii=False)])
            return
        try:
            about = json.loads(path.read_text(encoding="utf-8"))
            old, old_digest = about["settings"], about["prompts_sha256"]
        except (ValueError, KeyError, TypeError):
            raise CorpusError(f"{path}: damaged; name a new folder, or restore this file") from None
        differ = sorted(name for name in {*old, *kept} if old.get(name) != kept.get(name))
        if differ:
            each = "; ".join(
                f"{n} was {json.dumps(old.get(n))}, is {json.dumps(kept.get(n))}" for n in differ
            )
            raise ConfigError(
                f"{self.path}: made with other settings; {each}; keep the settings or name a new folder"
            )
        if old_digest != digest:
            raise ConfigError(
                f"{self.path}: made with other prompts; the files that prompts are made from (--prompts, "
                "--templates, --code, or the release of Python) have changed; name a new folder"
            )

    def _read_events(self, path: Path) -> Iterator[Event]:
        if not path.exists():
            return
        data = path.read_bytes()
        whole = data.rfind(b"\n") + 1
        if whole < len(data):
            # A torn last line: the write that a stop cut short, which nobody was told had counted.
            with path.open("r+b") as file:
                file.truncate(whole)
                os.fsync(file.fileno())
        for number, line in enumerate(data[:whole].splitlines(), 1):
            try:
                event = json.loads(line)
            except ValueError:
                event = None
            if not isinstance(event, dict) or not isinstance(event.get("kind"), str):
                raise CorpusError(
                    f"{path}:{number}: damaged line; remove it to ask this prompt again, or restore the file"
                )
            yield event


def _prompt_json(prompt: Prompt) -> dict[str, object]:
    return {key: value for key, value in vars(prompt).items() if value is not None}


def _replace(path: Path, text: str) -> None:
    beside = path.with_name(path.name + ".part")
    with beside.open("wb") as file:
        file.write(text.encode("utf-8", "surrogatepass"))
        file.flush()
        os.fsync(file.fileno())
    os.replace(beside, path)
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    if sys.platform == "win32":
        return  # a folder cannot be opened there, and its file system keeps names itself
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _locked(path: Path) -> IO[bytes]:
    file = path.open("ab")
    try:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        raise ConfigError(
            f"{path.parent}: in use by another process; wait for it, or name another folder"
        ) from None
    return file
