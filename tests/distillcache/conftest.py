"""What tests of `learn` stand on: caches, a file of sizes, a teacher, and settings of a short run."""

from pathlib import Path
from typing import Any

import pytest

from distillcache import chunked_loss, logit_gradients
from distillcache.learn.config import LearnConfig
from tests.distillcache.chunks import V
from tests.distillcache.learning import FEW_STEPS, SIZES, Make
from tests.distillcache.tiny_cache import sentences, small_teacher, write_cache
from tests.distillcache.tiny_models import save_teacher


@pytest.fixture(scope="session")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Caches of both kinds of row, a file of sizes, and the teacher; for reading only."""
    room = tmp_path_factory.mktemp("learn")
    (room / "small.toml").write_text(SIZES)
    write_cache(room / "cache", small_teacher(), sentences())
    write_cache(room / "sampled", small_teacher(), sentences(), tau=1 / 16, temperature=2.0)
    save_teacher(room / "teacher", small_teacher())
    return room


@pytest.fixture
def config(room: Path, tmp_path: Path) -> Make:
    """A config for a few steps of a small student on this CPU."""

    def make(**given: Any) -> LearnConfig:
        paths = {
            "cache": room / "cache",
            "output": tmp_path / "student",
            "student": str(room / "small.toml"),
        }
        return LearnConfig(**{**paths, **FEW_STEPS, **given})

    return make


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several chunks of unequal size, of several blocks, for a head of `chunks`."""
    monkeypatch.setattr(chunked_loss, "CHUNK_BYTES", 10 * V * 4)
    monkeypatch.setattr(logit_gradients, "BLOCK_BYTES", {"cpu": 3 * V * 4})
