"""`cache.json` and the parts of a folder: what is no plan, or of another one, is refused in one line."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from distillcache.inspect.facts import facts, verify
from distillcache_shards.cache import Cache
from distillcache_shards.errors import CacheError, CorruptError, MismatchError, UnsupportedError
from tests.hostile.forge import forge, forge_index, forge_plan
from tests.hostile.line import assert_line
from tests.hostile.refusal import assert_found, assert_refused, read_all
from tests.shards.small_cache import small_cache

SHARDS = [f"shard-0000{number}.safetensors" for number in range(3)]
NO_PLAN = {
    "empty": b"",
    "no JSON": b"\0" * 64,
    "cut": b'{"about":{},"format":1,"plan":{"codec"',
    "a list": b"[]",
    "a number": b"7",
    "without end": b"[" * 100_000,
    "no number": b'{"format":1,"plan":NaN}',
    "a key twice": b'{"format":1,"format":1}',
    "nothing": b"{}",
    "a plan alone": b'{"format":1,"plan":{},"about":{},"plan_sha256":"","sha256":""}',
}


@pytest.mark.parametrize("text", NO_PLAN.values(), ids=NO_PLAN)
def test_a_plan_that_is_none_is_refused(folder: Path, text: bytes) -> None:
    """Cut, empty, or never a plan."""
    (folder / "cache.json").write_bytes(text)
    assert_refused(folder, "cache.json", "is no plan of a cache", CorruptError)


def test_a_plan_of_a_gigabyte_is_not_read(folder: Path) -> None:
    """Only as much as a plan may have."""
    os.truncate(folder / "cache.json", 1 << 30)
    assert_refused(folder, "cache.json", "is over 1048576 bytes", CorruptError)


def test_many_keys_and_one_twice_are_refused_at_once(tmp_path: Path) -> None:
    """A megabyte of keys takes no minutes: comparing each with each would."""
    keys = ",".join(f'"{number}":0' for number in range(90_000))
    (tmp_path / "cache.json").write_text("{" + keys + ',"89999":0}')
    code = (
        "import sys; from distillcache_shards.cache import Cache\n"
        "try: Cache.open(sys.argv[1])\nexcept Exception as error: print(error)"
    )
    # A hundredth of the time that it would take to compare each with each, hundreds of times what it takes.
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path], capture_output=True, text=True, timeout=10, check=True
    )
    assert "'89999' comes twice" in done.stdout


def put(section: str, name: str, value: object) -> Callable[[dict[str, Any]], object]:
    """An entry of the plan, changed."""
    return lambda content: content["plan"][section].update({name: value})


WRONG = {
    "no teacher": (lambda content: content["plan"].pop("teacher"), "no section 'teacher'"),
    "a list of rows": (lambda content: content["plan"].update(rows=[]), "no section 'rows'"),
    "no size": (lambda content: content["plan"]["tokenizer"].pop("vocab_size"), "must be int, found None"),
    "a truth for a size": (put("tokenizer", "vocab_size", True), "must be int, found True"),
    "a broken size": (put("corpus", "tokens", 1.5), "must be int, found 1.5"),
    "no vocabulary": (put("tokenizer", "vocab_size", 0), "must be 1 to 1048576"),
    "a vocabulary too large": (put("tokenizer", "vocab_size", (1 << 20) + 1), "must be 1 to 1048576"),
    "negative shards": (put("corpus", "shards", -1), "at least 0"),
    "no rows a block": (put("codec", "block_rows", 0), "block_rows must be at least 1"),
    "another kind of row": (put("rows", "kind", "all"), "must be one of topk, sampled"),
    "another plan's hash": (lambda content: content.update(plan_sha256="0" * 64), "its plan fails its check"),
    "no mapping about it": (lambda content: content.update(about=7), "is no plan of a cache"),
}


@pytest.mark.parametrize(("change", "fault"), WRONG.values(), ids=WRONG)
def test_a_plan_that_cannot_be_is_refused(
    folder: Path, change: Callable[[dict[str, Any]], object], fault: str
) -> None:
    """Under checksums that are right."""
    forge_plan(folder, change)
    assert_refused(folder, "cache.json", fault, CorruptError)


NEWER = {
    "format": (lambda content: content.update(format=2), "format version 2; this release reads up to 1"),
    "codec": (put("codec", "id", "later"), "codec 'later' is not one of plain, zstd"),
    "no codec": (put("codec", "id", ""), "codec '' is not one of"),
    "parameter": (put("codec", "params", {"logprobs": "f32", "more": 1}), "parameters .*'more'.* not know"),
    "value": (put("codec", "params", {"logprobs": "f8"}), "parameters .*'f8'.* not know"),
    "list for a value": (put("codec", "params", {"logprobs": ["f32"]}), "parameters .* not know"),
    "no parameters": (put("codec", "params", {}), "parameters .* not know"),
}


@pytest.mark.parametrize(("change", "fault"), NEWER.values(), ids=NEWER)
def test_what_a_newer_release_wrote_is_named(
    folder: Path, change: Callable[[dict[str, Any]], object], fault: str
) -> None:
    """Formats, codecs and their parameters, with what this release knows."""
    forge_plan(folder, change)
    assert_refused(folder, "cache.json", fault, UnsupportedError)


@pytest.mark.parametrize("entry", ["sequences", "shards"])
@pytest.mark.parametrize("number", [0, 2, 1 << 40, 1 << 70])
def test_a_plan_that_counts_otherwise_than_the_index_is_refused(
    folder: Path, entry: str, number: int
) -> None:
    """Few or without end: nothing is allocated for what is not there."""
    forge_plan(folder, put("corpus", entry, number))
    assert_refused(folder, "index.safetensors", "must be U|do not count", CorruptError)


def test_a_shard_of_another_run_is_refused(folder: Path, tmp_path: Path) -> None:
    """Of the same shape, from another plan."""
    other = small_cache(seed=1).write(tmp_path / "other")
    (other / SHARDS[1]).replace(folder / SHARDS[1])
    assert_refused(folder, SHARDS[1], "belongs to another plan, [0-9a-f]{12}, and this", MismatchError)


def test_swapped_shards_are_refused(folder: Path) -> None:
    """Each says which it is."""
    first, second = folder / SHARDS[0], folder / SHARDS[1]
    first.rename(folder / "aside")
    second.rename(first)
    (folder / "aside").rename(second)
    assert_refused(folder, SHARDS[0], "is shard 1 under another's name", MismatchError)
    assert_found(folder, SHARDS[1], "is shard 0 under another's name")


def test_a_link_to_another_shard_is_refused(folder: Path) -> None:
    """A link to itself elsewhere is the shard; to another one it is not, nor is one in a circle."""
    file = folder / SHARDS[1]
    elsewhere = file.rename(folder.parent / "elsewhere")
    file.symlink_to(elsewhere)
    read_all(folder)
    file.unlink()
    file.symlink_to(folder / SHARDS[2])
    assert_refused(folder, SHARDS[1], "is shard 2 under another's name", MismatchError)
    file.unlink()
    file.symlink_to(file)
    assert_refused(folder, SHARDS[1], "cannot be read|is not taught yet", CacheError)


@pytest.mark.parametrize("name", ["index.safetensors", "cache.json", SHARDS[1]])
def test_a_folder_in_place_of_a_file_is_refused(folder: Path, name: str) -> None:
    """As what cannot be read."""
    (folder / name).unlink()
    (folder / name).mkdir()
    assert_refused(folder, name, "cannot be read", CacheError)


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("index.safetensors", "no such file; run"),
        ("cache.json", r"is not a cache; found no cache\.json; make one"),
    ],
)
def test_a_folder_without_plan_or_index_is_refused(folder: Path, name: str, fault: str) -> None:
    """The one makes it a cache, the other says where things are."""
    (folder / name).unlink()
    assert_refused(folder, str(folder), fault, CacheError)


def test_a_file_for_a_folder_is_refused(folder: Path) -> None:
    """A path that names a shard is no cache."""
    assert_refused(folder / SHARDS[0], SHARDS[0], "cannot be read", CacheError)


def test_the_index_of_another_plan_is_refused(folder: Path, tmp_path: Path) -> None:
    """Its tables would make other rows of sound blocks; told from its header, without reading all of it."""
    other = small_cache(seed=1).write(tmp_path / "other")
    (other / "index.safetensors").replace(folder / "index.safetensors")
    assert_refused(folder, "index.safetensors", "is the index of another plan", MismatchError)


def test_a_shard_in_place_of_the_index_is_refused(folder: Path) -> None:
    """It opens as a container, and is no index."""
    (folder / SHARDS[0]).replace(folder / "index.safetensors")
    assert_refused(folder, "index.safetensors", "is no index of a cache", CorruptError)


@pytest.mark.parametrize("bounds", [[0, 4, 8, 9], [0, 8, 4, 10], [1, 4, 8, 10]])
def test_an_index_whose_shards_do_not_add_up_is_refused(folder: Path, bounds: list[int]) -> None:
    """Short, falling, or late."""
    at = slice(None)
    forge_index(folder, lambda it: it.arrays["shard_first_sequence"].__setitem__(at, bounds))
    assert_refused(folder, "index.safetensors", "do not count 10 sequences", CorruptError)


def test_an_index_that_leads_nowhere_finds_nothing(folder: Path) -> None:
    """A text that it says is in a sequence that there is none of."""
    tokens = Cache.open(folder)[2].tokens
    forge_index(folder, lambda it: it.arrays["lookup_sequence"].fill(1 << 63))
    assert Cache.open(folder).find(tokens) is None


def test_an_index_that_moves_sequences_between_shards_is_refused(folder: Path) -> None:
    """The shard holds as many as were planned."""
    forge_index(folder, lambda it: it.arrays["shard_first_sequence"].__setitem__(1, 3))
    assert_refused(folder, SHARDS[0], "holds 4 sequences, where 3 are planned", CorruptError)


ABOUT = {"list": [], "number": 7, "list of files": {"tokenizer.json": ["x"]}, "folder": {"..": "x"}}


@pytest.mark.parametrize("files", ABOUT.values(), ids=ABOUT)
def test_what_is_told_of_a_cache_cannot_stop_its_inspection(folder: Path, files: object) -> None:
    """Names for people have no shape that a reader may rely on."""
    forge_plan(folder, lambda content: content["about"].update(tokenizer_files=files))
    try:
        problems = [str(each) for each in verify(folder)]
    except CacheError as error:
        problems = [str(error)]
    for line in problems:
        assert_line(line, "", "")


@pytest.mark.parametrize("fidelity", [[], {"mass_kept": "most"}, {"entropy_nats": None}])
def test_a_fidelity_that_is_none_is_refused(folder: Path, fidelity: object) -> None:
    """A shard's report is for people, and yet the facts must not fall over it."""
    forge(folder / SHARDS[1], lambda it: it.description.update(fidelity=fidelity))
    try:
        json.dumps(facts(folder).to_dict(), allow_nan=False)
    except CacheError as error:
        assert_line(str(error), SHARDS[1], "")
