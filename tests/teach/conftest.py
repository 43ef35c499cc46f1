"""What the tests of `teach` share: a tiny teacher, a corpus, and the cache that they make."""

import shutil
from pathlib import Path

import pytest

from tests.distillcache.tiny_models import save_teacher, tiny
from tests.teach.teaching import MANY_SHARDS, answers, chats, documents, teach_into, write_records


@pytest.fixture(scope="session")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny teacher whose embedding matrix is padded past its tokenizer."""
    return save_teacher(
        tmp_path_factory.mktemp("teachers") / "tiny", tiny("llama", max_position_embeddings=4096)
    )


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Documents, answers and chats of unequal lengths."""
    file = tmp_path_factory.mktemp("corpora") / "mixed.jsonl"
    return write_records(file, [*documents(9), *answers(9), *chats(9)])


@pytest.fixture(scope="session")
def taught(teacher: Path, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The finished cache of the two, for reading only."""
    folder = tmp_path_factory.mktemp("caches") / "cache"
    teach_into(folder, teacher, corpus)
    return folder


@pytest.fixture
def cache(taught: Path, tmp_path: Path) -> Path:
    """A copy of it that a test may spoil; times of writing are kept."""
    return shutil.copytree(taught, tmp_path / "cache")


@pytest.fixture(scope="session")
def long_corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """About a hundred shards, if they are of MANY_SHARDS."""
    return write_records(tmp_path_factory.mktemp("corpora") / "long.jsonl", documents(100))


@pytest.fixture(scope="session")
def uninterrupted(teacher: Path, long_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What becomes of it in one go, for reading only."""
    folder = tmp_path_factory.mktemp("caches") / "cache"
    report = teach_into(folder, teacher, long_corpus, **MANY_SHARDS)
    assert report.shards > 60
    return folder
