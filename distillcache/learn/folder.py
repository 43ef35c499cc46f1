"""The output folder of a run: which run it holds, how far it is, and a student that is whole or not there.

`learn.json` names the run and, once it is done, its result; `checkpoints/` is the trainer's.
Knows nothing of models or training.
"""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from distillcache.errors import ConfigError
from distillcache_shards.durable import disk_errors, sync_folder, write_whole
from distillcache_shards.plan import difference

__all__ = ["RunFolder"]

RUN_FILE = "learn.json"
CHECKPOINTS = "checkpoints"
FRESH = ".student"
FORMAT = 1


@dataclass
class RunFolder:
    """A folder that one run of `learn` owns."""

    folder: Path
    identity: dict[str, Any]  # what makes a run the one it is, plain JSON data
    result: dict[str, Any] | None = None  # once the student is written
    files: list[str] = field(default_factory=list)  # names of the student's files
    replaced: bool = False  # what is here is another run's, to be removed when this one begins

    @classmethod
    def open(cls, folder: Path, identity: Mapping[str, Any], *, overwrite: bool) -> "RunFolder":
        """The folder of this run: new, or where the same run was stopped; nothing is written or removed.

        With `overwrite` it may also be another run's, which `begin` then removes.
        Raises ConfigError for a folder of something else, or of another run, naming what differs.
        """
        run = cls(folder, dict(identity))
        file = folder / RUN_FILE
        if folder.exists() and not folder.is_dir():
            raise ConfigError(f"--output: {folder} is a file; name a folder")
        if not file.is_file():
            if folder.is_dir() and any(folder.iterdir()):
                raise ConfigError(
                    f"--output: {folder} is not empty and holds no run of `distillcache learn`; "
                    "name another folder"
                )
            return run
        try:
            content = json.loads(file.read_bytes())
            if content["format"] != FORMAT:
                raise ValueError(f"it has format {content['format']!r}")
            stored, run.result = content["run"], content["result"]
            run.files = [str(name) for name in content["files"]]
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(
                f"{file}: cannot be read as the record of a run: {error}; name another folder"
            ) from None
        if overwrite:
            run.result, run.replaced = None, True
            return run
        found = difference(stored, json.loads(json.dumps(run.identity)), "")
        if found:
            name, old, new = found
            raise ConfigError(
                f"--output: {folder} holds another run: {name.strip('.')} is {_shown(old)} there and "
                f"{_shown(new)} here; name another folder, or pass --overwrite to start anew"
            )
        return run

    @property
    def checkpoints(self) -> Path:
        """Where the trainer keeps its checkpoints and logs."""
        return self.folder / CHECKPOINTS

    def last_checkpoint(self) -> Path | None:
        """The last whole checkpoint. Half ones, of a run that was killed while it wrote, are removed."""
        if self.replaced:
            return None
        found = {}
        for each in self.checkpoints.glob("checkpoint-*"):
            number = each.name.removeprefix("checkpoint-")
            if number.isdigit() and each.is_dir():
                found[int(number)] = each
        for _, each in sorted(found.items(), reverse=True):
            try:
                # The trainer writes this file last.
                json.loads((each / "trainer_state.json").read_bytes())
            except (OSError, ValueError):
                shutil.rmtree(each, ignore_errors=True)  # several ranks may be at it
                continue
            return each
        return None

    def begin(self) -> None:
        """Make the folder this run's. Raises CacheError if the disk does not take it."""
        if self.replaced:
            self._clear()
        self.write()

    def write(self) -> None:
        """Write `learn.json`. Raises CacheError if the disk does not take it."""
        content = {"format": FORMAT, "run": self.identity, "result": self.result, "files": self.files}
        with disk_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        write_whole(self.folder / RUN_FILE, [json.dumps(content, indent=2).encode() + b"\n"])

    def fresh(self) -> Path:
        """An empty folder beside the student's files, to write them in first."""
        fresh = self.folder / FRESH
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(parents=True)
        return fresh

    def publish(self, fresh: Path, result: Mapping[str, Any]) -> None:
        """Move the student's files into place, and say that the run is done.

        `config.json`, without which nobody takes the folder for a model, comes last.
        """
        names = [each.name for each in fresh.iterdir()]
        self.files = sorted(names, key=lambda name: (name == "config.json", name))
        self.write()
        for name in self.files:
            if (self.folder / name).is_dir():  # which no folder replaces
                shutil.rmtree(self.folder / name)
            (fresh / name).replace(self.folder / name)
        fresh.rmdir()
        sync_folder(self.folder)
        self.result = dict(result)
        self.write()

    def _clear(self) -> None:
        """Remove what a run of `learn` left here, and nothing else."""
        for name in (CHECKPOINTS, FRESH):
            shutil.rmtree(self.folder / name, ignore_errors=True)
        for name in self.files:
            if Path(name).name == name:
                _remove(self.folder / name)
        (self.folder / RUN_FILE).unlink()
        self.files, self.replaced = [], False


def _remove(path: Path) -> None:
    """A file or a folder that may be there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _shown(value: Any) -> str:
    if value is None:
        return "none"
    text = value if isinstance(value, str) else json.dumps(value)
    # Of a hash the beginning tells it apart.
    return f"{text[:12]}..." if len(text) == 64 and " " not in text else text
