"""Which sequences of a cache are evaluated: the very ones that `learn` held out, as its folder says, or all.

Knows nothing of models or figures.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distillcache.errors import ConfigError
from distillcache.evaluate.config import EvaluateConfig
from distillcache.learn.data import split
from distillcache_shards.cache import Cache

__all__ = ["choose"]

LEARN_FILE = "learn.json"
BY_HAND = "give --held-out and --seed as `learn` had them, or take --split all"


@dataclass(frozen=True)
class _Learned:
    """What the folder of a student says of the run that made it."""

    plan_sha256: str
    held_out: float
    seed: int


def choose(config: EvaluateConfig, cache: Cache) -> NDArray[np.int64]:
    """Numbers of the sequences to evaluate, rising; at least one.

    Raises ConfigError where it is not known what was held out, or nothing was.
    """
    if config.split == "all":
        return np.arange(len(cache), dtype=np.int64)
    share, seed = _held_out(config, cache)
    return split(cache, share, seed).held_out


def _held_out(config: EvaluateConfig, cache: Cache) -> tuple[float, int]:
    """Share and seed of the choice."""
    learned = _learned(Path(config.student).expanduser() / LEARN_FILE)
    if learned is not None and learned.plan_sha256 == cache.plan_sha256:
        for flag, given, true in (
            ("--held-out", config.held_out, learned.held_out),
            ("--seed", config.seed, learned.seed),
        ):
            if given not in (None, true):
                raise ConfigError(
                    f"{flag}: this student was learned with {true:g}, found {given:g}, which would show it "
                    "what it was trained on; leave it out, or take --split all"
                )
        if learned.held_out == 0:
            raise ConfigError(f"{config.student}: held nothing out of this cache; take --split all")
        return learned.held_out, learned.seed
    if config.held_out is None or config.seed is None:
        why = (
            "it is not a folder that `learn` made" if learned is None else "it was learned from another cache"
        )
        raise ConfigError(f"{config.student}: what was held out is not known, since {why}; {BY_HAND}")
    return config.held_out, config.seed


def _learned(file: Path) -> _Learned | None:
    """None if the student is no folder of `learn`. Raises ConfigError for a record that cannot be read."""
    if not file.is_file():
        return None
    try:
        run: Any = json.loads(file.read_bytes())["run"]
        return _Learned(str(run["cache"]), float(run["held_out"]), int(run["seed"]))
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{file}: cannot be read as the record of a run: {error}; {BY_HAND}") from None
