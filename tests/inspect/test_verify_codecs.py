"""`verify` on caches of every codec: every bad byte lies in a range that is named, with what repairs it."""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from distillcache.inspect.facts import verify
from distillcache_cli.app import run
from distillcache_shards.codecs import Codec
from distillcache_shards.container import REPAIR, Container
from distillcache_shards.errors import CacheError
from distillcache_shards.rows import Rows
from distillcache_shards.shard import shard_file
from tests.hostile.blocks import content_of, set_block
from tests.hostile.forge import forge
from tests.hostile.subjects import SUBJECTS, subject

RANGE = re.compile(r"bytes (\d+) to (\d+)")
COMPACT = [name for name in SUBJECTS if name.startswith("compact")]


def damage(file: Path, places: list[int]) -> None:
    """One bit of each of these bytes, turned."""
    content = bytearray(file.read_bytes())
    for place in places:
        content[place] ^= 4
    file.write_bytes(content)


def ranges(lines: list[str], file: Path) -> list[tuple[int, int]]:
    """The byte ranges that are named of a file; every line of it ends with what repairs it."""
    assert all(line.endswith(f"; {REPAIR}") for line in lines if line.startswith(f"{file}: "))
    found = [RANGE.search(line) for line in lines if line.startswith(f"{file}: ")]
    return [(int(each[1]), int(each[2])) for each in found if each]


def problems(folder: Path) -> list[str]:
    return [str(each) for each in verify(folder)]


@pytest.fixture(params=SUBJECTS)
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A sound cache of a codec and a kind of row."""
    return subject(request.param).write(tmp_path / "cache")


def test_a_sound_cache_of_any_codec_has_no_problem(folder: Path) -> None:
    """Nothing is told of what is as it was written."""
    assert problems(folder) == []


def test_every_damaged_block_is_named_with_its_bytes(folder: Path) -> None:
    """All of them, each with where it lies; then the tensor that they are in."""
    file = shard_file(folder, 0)
    container = Container(file)
    first, last = container.span("rows")
    starts, sizes = (container.any_array(name).tolist() for name in ("block_start", "block_bytes"))
    spans = [(first + start, first + start + size) for start, size in zip(starts, sizes, strict=False)]
    assert len(spans) > 1
    damage(file, [(start + end) // 2 for start, end in spans])
    lines = problems(folder)
    assert ranges(lines, file) == [*spans, (first, last)]
    for block, line in enumerate(lines[:-1]):
        assert line.startswith(f"{file}: block {block} fails its checksum, bytes ")


def test_every_damaged_tensor_is_named_with_its_bytes(folder: Path) -> None:
    """One that a reader meets when it opens the shard does not hide the others, nor damage to the rows."""
    file = shard_file(folder, 1)
    container = Container(file)
    spans = [container.span(name) for name in container.names()]
    spans = [(start, end) for start, end in spans if start < end]
    damage(file, [start for start, _ in spans])
    assert sorted(ranges(problems(folder), file)) == sorted(spans)


def test_every_damaged_table_is_named_with_its_bytes(folder: Path) -> None:
    """Of the index: without it nothing can be read, so there it ends."""
    file = folder / "index.safetensors"
    container = Container(file)
    for name in container.names():
        start, end = container.span(name)
        damage(file, [end - 1])
        try:
            lines = problems(folder)
        except CacheError as error:
            lines = [str(error)]
        assert any(f"tensor `{name}` fails its checksum, bytes {start} to {end}; " in each for each in lines)
        damage(file, [end - 1])
    assert problems(folder) == []


def test_any_damage_lies_in_a_range_that_is_named(folder: Path) -> None:
    """A few bytes of the tensors at random, thirty times over."""
    file = shard_file(folder, 0)
    sound, first = file.read_bytes(), Container(file).data_start
    random = np.random.default_rng(0)
    for _ in range(30):
        places = sorted({int(each) for each in random.integers(first, len(sound), size=3)})
        damage(file, places)
        named = ranges(problems(folder), file)
        assert all(any(start <= place < end for start, end in named) for place in places)
        assert all(any(start <= place < end for place in places) for start, end in named)
        file.write_bytes(sound)


@pytest.mark.parametrize("name", COMPACT)
def test_the_command_names_them_and_fails(
    name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """`inspect --verify`: exit code 1 and a line for each on stderr; 0 and a word of peace without."""
    folder = subject(name).write(tmp_path / "cache")
    assert run(["inspect", str(folder), "--verify"]) == 0
    assert "every byte is sound" in capfd.readouterr().out
    file = shard_file(folder, 0)
    start, end = Container(file).span("rows")
    damage(file, [start])
    assert run(["inspect", str(folder), "--verify"]) == 1
    out, err = capfd.readouterr()
    assert "sound" not in out
    assert [each for each in err.splitlines() if each.startswith(str(file))] == problems(folder)
    assert f"bytes {start} to " in err and f"bytes {start} to {end}; {REPAIR}" in err


def with_rows(its: Codec, change: Callable[[Rows], object]) -> Callable[..., None]:
    """The first block with its rows changed, under checksums that are right."""

    def forged(it: object) -> None:
        arrays = it.arrays  # type: ignore[attr-defined]
        data = np.frombuffer(content_of(it, 0), np.uint8)  # type: ignore[arg-type]
        rows = its.decode(data, int(arrays["block_rows"][1]), int(arrays["block_expanded_bytes"][0]))
        change(rows)
        block = its.encode(rows)
        set_block(it, 0, block.data, block.expanded_bytes)  # type: ignore[arg-type]

    return forged


def longest(offsets: np.ndarray) -> slice:
    """The ids of the row with the most."""
    row = int(np.diff(offsets).argmax())
    return slice(int(offsets[row]), int(offsets[row + 1]))


def turned(name: str) -> Callable[[Rows], object]:
    """An array of one row from its last to its first."""

    def change(rows: Rows) -> None:
        part = longest(rows.draw_offsets if name.startswith("draw") else rows.head_offsets)
        array = getattr(rows, name)
        assert len(set(array[part].tolist())) > 1
        array[part] = array[part][::-1].copy()

    return change


def twice(rows: Rows) -> None:
    """One id of a row in place of the next."""
    part = longest(rows.head_offsets)
    rows.head_ids[part.start + 1] = rows.head_ids[part.start]


DISORDER = {
    "least likely first": (turned("head_logprobs"), "a head out of order"),
    "an id twice": (twice, "an id twice in a row"),
}
SAMPLED_DISORDER = {**DISORDER, "draws that fall": (turned("draw_ids"), "draws out of order")}
CASES = [
    pytest.param(name, change, fault, id=f"{name}: {what}")
    for name in ("plain topk", "plain sampled big", "zstd topk big", "zstd sampled")
    for what, (change, fault) in (SAMPLED_DISORDER if "sampled" in name else DISORDER).items()
]


@pytest.mark.parametrize(("name", "change", "fault"), CASES)
def test_rows_out_of_order_are_named_with_their_bytes(
    name: str, change: Callable[[Rows], object], fault: str, tmp_path: Path
) -> None:
    """Most likely first, draws by rising id, no id twice in a head: what the format promises of a row."""
    small = subject(name)
    folder = small.write(tmp_path / "cache")
    file = shard_file(folder, 0)
    forge(file, with_rows(small.codec_object(), change))
    start, _ = Container(file).span("rows")
    end = start + int(Container(file).any_array("block_bytes")[0])
    assert problems(folder) == [f"{file}: block 0 holds {fault}, bytes {start} to {end}; {REPAIR}"]
