"""A sound cache to be damaged, a new one for each test."""

import shutil
from pathlib import Path

import pytest

from tests.shards.small_cache import small_cache


@pytest.fixture(scope="session")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three shards of `topk` rows, codec `plain`; not to be changed."""
    return small_cache().write(tmp_path_factory.mktemp("sound") / "cache")


@pytest.fixture
def folder(sound: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return shutil.copytree(sound, tmp_path / "cache")
