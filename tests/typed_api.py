"""The public interface as a user's type checker sees it; `make lint` checks this file, nothing runs it."""

from pathlib import Path
from typing import assert_type

import numpy as np
from numpy.typing import NDArray

from distillcache.inspect.facts import Facts, Problem, facts, verify
from distillcache.learn.config import LearnConfig
from distillcache.learn.result import LearnResult
from distillcache.learn.run import learn
from distillcache.teach.config import TeachConfig
from distillcache.teach.events import TeachReport
from distillcache.teach.run import teach
from distillcache_shards.cache import Batch, Cache, CachedSequence
from distillcache_shards.rows import Rows


def whole_path(folder: Path) -> None:
    """From a corpus to a student, with every result in the type that it is said to have."""
    taught = teach(TeachConfig(cache=folder, teacher="teacher", sources=("notes.jsonl",), k=64))
    assert_type(taught, TeachReport)
    assert_type(taught.mass_kept, float)
    assert_type(facts(folder), Facts)
    assert_type(verify(folder), list[Problem])
    learned = learn(LearnConfig(cache=folder, student="student.toml", output=Path("student")))
    assert_type(learned, LearnResult)


def reading(folder: Path) -> None:
    """A cache, a sequence of it, a batch of it."""
    cache = Cache.open(folder)
    sequence = cache[0]
    assert_type(sequence, CachedSequence)
    assert_type(sequence.supervised, NDArray[np.bool_])
    assert_type(sequence.rows, Rows)
    assert_type(sequence.rows.head_logprobs, NDArray[np.float32])
    assert_type(cache.read([0, 2]), Batch)
    assert_type(cache.find([1, 2, 3]), int | None)
    assert_type(cache.missing_shards(), list[int])
