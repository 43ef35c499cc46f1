"""Blocks of the compact codecs that are right in every checksum and wrong in what they say.

Each is refused by name, and none takes more memory than a sound one.
"""

from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from distillcache_shards.errors import CorruptError
from tests.golden.reader import Sections
from tests.golden.reader import numbers as read_numbers
from tests.hostile.blocks import (
    blown_up,
    content_of,
    framed,
    in_streams,
    numbers,
    set_block,
    stream_parts,
)
from tests.hostile.confined import lines_within_a_gigabyte, problems
from tests.hostile.forge import Forgery, forge
from tests.hostile.line import assert_line
from tests.hostile.refusal import assert_found, assert_refused, read_all
from tests.hostile.subjects import subject

SHARD = "shard-00000.safetensors"
Parts = list[bytes]
Change = Callable[[Parts], object]
COUNTS, ORDERS, ENTROPY = 0, 2, 9
LOWEST, TAILS, PLACES, LEVELS = 3, 4, 5, 7  # of `topk`
UNITS, HEADS, DRAWS = 3, 5, 7  # of `sampled`
LARGEST = 12_480 + (1 << 20) - 1
GIGABYTE = 1 << 30


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, bytes]]:
    """The files of a cache of either codec."""
    found = {}
    for name in ("compact topk", "compact sampled"):
        folder = subject(name).write(tmp_path_factory.mktemp("sound") / "cache")
        found[name] = {file.name: file.read_bytes() for file in folder.iterdir()}
    return found


Written = Callable[[str], Path]


@pytest.fixture
def written(sound: dict[str, dict[str, bytes]], tmp_path: Path) -> Written:
    """Writes one of them anew."""

    def write(name: str) -> Path:
        (tmp_path / "cache").mkdir()
        for file, content in sound[name].items():
            (tmp_path / "cache" / file).write_bytes(content)
        return tmp_path / "cache"

    return write


def values(parts: Parts, first: int) -> list[int]:
    """The numbers of a pair of streams."""
    found: list[int] = read_numbers(
        Sections(parts[first] + parts[first + 1], planes=False), len(parts[first])
    ).tolist()
    return found


def with_value(first: int, place: int, change: Callable[[int], int]) -> Change:
    """One number of a pair of streams, changed."""

    def changed(parts: Parts) -> None:
        found = values(parts, first)
        found[place] = change(found[place])
        parts[first], parts[first + 1] = numbers(found)

    return changed


def with_byte(stream: int, place: int, value: int) -> Change:
    """One byte of a stream, changed."""

    def changed(parts: Parts) -> None:
        part = bytearray(parts[stream])
        part[place] = value
        parts[stream] = bytes(part)

    return changed


def with_pair(stream: int, place: int, value: int) -> Change:
    """One number of two bytes, lower ones first."""

    def changed(parts: Parts) -> None:
        half = len(parts[stream]) // 2
        with_byte(stream, place, value & 255)(parts)
        with_byte(stream, place + half, value >> 8)(parts)

    return changed


def longer(stream: int) -> Change:
    """A byte more in a stream."""
    return lambda parts: parts.__setitem__(stream, parts[stream] + b"\1")


def shorter(stream: int) -> Change:
    """A byte less."""
    return lambda parts: parts.__setitem__(stream, parts[stream][:-1])


def moved(one: int, two: int) -> Change:
    """Two streams in each other's place."""

    def changed(parts: Parts) -> None:
        parts[one], parts[two] = parts[two], parts[one]

    return changed


def again(parts: Parts) -> None:
    """One row's places come round: their sum is above 2^32, and so small again."""
    counts = values(parts, COUNTS)
    more = (1 << 32) // LARGEST + 2
    parts[COUNTS : COUNTS + 2] = numbers([counts[0] + more, *counts[1:]])
    parts[PLACES : PLACES + 2] = numbers([*[LARGEST] * more, *values(parts, PLACES)])
    parts[LEVELS : LEVELS + 2] = numbers([*[0] * more, *values(parts, LEVELS)])


def with_more_units(parts: Parts) -> None:
    """Units come round: their sum is above 2^32, and so small again."""
    counts = values(parts, COUNTS)
    more = (1 << 32) // LARGEST + 2
    parts[COUNTS : COUNTS + 2] = numbers([*counts[:-1], counts[-1] + more])
    parts[UNITS : UNITS + 2] = numbers([*[LARGEST] * more, *values(parts, UNITS)])
    parts[HEADS : HEADS + 2] = numbers([*values(parts, HEADS), *[0] * more])


NO_ORDER, NO_LEVEL, NO_ID = (
    "an order that is none of 3",
    "holds a level that is none of",
    "holds an id outside",
)
NO_SHARE = "holds a probability outside 1 to 100 units|holds a row of more than 100 units"
LENGTH = "is (shorter|longer) than its rows"
# A byte more or less moves all streams after it: which of them is found wrong is chance.
SHIFTED = f"{LENGTH}|{NO_ORDER}|{NO_LEVEL}|{NO_ID}|{NO_SHARE}"
NUM_LEVELS = 500  # of those in tests/shards/compact_cache.py
COMMON: dict[str, tuple[Change, str]] = {
    "an order that does not exist": (with_byte(ORDERS, 0, 3), NO_ORDER),
    "the last order there can be": (with_byte(ORDERS, -1, 255), NO_ORDER),
    "an entropy too many": (longer(ENTROPY), LENGTH),
    "an entropy too few": (shorter(ENTROPY), LENGTH),
    "an order too many": (longer(ORDERS), SHIFTED),
    "an order too few": (shorter(ORDERS), SHIFTED),
    "a row too many": (longer(COUNTS), SHIFTED),
    "a row too few": (shorter(COUNTS), SHIFTED),
    "an id too many": (with_value(COUNTS, 0, lambda count: count + 1), SHIFTED),
    "an id too few": (with_value(COUNTS, -1, lambda count: count - 1), SHIFTED),
    "a million ids": (with_value(COUNTS, 0, lambda count: LARGEST), LENGTH),
    "a million ids in every row": (
        lambda parts: parts.__setitem__(slice(0, 2), numbers([LARGEST] * len(parts[COUNTS]))),
        LENGTH,
    ),
    "a number without its second byte": (lambda parts: parts.__setitem__(6, b""), SHIFTED),
    "a number with bytes of none": (longer(6), SHIFTED),
    "nothing": (lambda parts: parts.__setitem__(slice(None), [b""] * 10), LENGTH),
    "the end of it": (lambda parts: parts.__setitem__(slice(5, 10), [b""] * 5), LENGTH),
}
TOPK: dict[str, tuple[Change, str]] = {
    **COMMON,
    "a step too many": (longer(PLACES), SHIFTED),
    "a place past the vocabulary": (with_value(PLACES, 0, lambda place: 300), NO_ID),
    "a place far past it": (with_value(PLACES, 0, lambda place: LARGEST), NO_ID),
    "steps that pass it": (with_value(PLACES, 1, lambda step: 299), NO_ID),
    "places that come round": (again, NO_ID),
    "a level past the last": (with_pair(LOWEST, 0, NUM_LEVELS), NO_LEVEL),
    "the last number of two bytes for a level": (with_pair(LOWEST, 0, 65_535), NO_LEVEL),
    "a level above the first": (with_value(LEVELS, 0, lambda below: LARGEST), NO_LEVEL),
    "a level one above the first": (with_pair(LOWEST, 0, 0), NO_LEVEL),
    "a level too few": (shorter(LEVELS), SHIFTED),
    "a tail past no mass": (with_pair(TAILS, 0, NUM_LEVELS + 1), NO_LEVEL),
    "a tail far past it": (with_pair(TAILS, 0, 65_535), NO_LEVEL),
    "an odd byte of tails": (longer(TAILS), SHIFTED),
    "levels for tails and places": (moved(TAILS, PLACES), SHIFTED),
    "places for levels": (moved(PLACES, LEVELS), SHIFTED),
}
SAMPLED: dict[str, tuple[Change, str]] = {
    **COMMON,
    "no units": (lambda parts: parts.__setitem__(UNITS, bytes(len(parts[UNITS]))), NO_SHARE),
    "more units than there are": (with_value(UNITS, -1, lambda units: 101), NO_SHARE),
    "a million units": (with_value(UNITS, -1, lambda units: LARGEST), NO_SHARE),
    "more units in all": (with_value(UNITS, 0, lambda units: units + 99), NO_SHARE),
    "units that come round": (with_more_units, NO_SHARE),
    "units that leave less to draw": (with_value(UNITS, 0, lambda units: units + 8), SHIFTED),
    "a head past the vocabulary": (with_value(HEADS, 0, lambda place: 300), NO_ID),
    "a head far past it": (with_value(HEADS, 0, lambda place: LARGEST), NO_ID),
    "a place too few": (shorter(HEADS), SHIFTED),
    "a draw past the vocabulary": (with_value(DRAWS, 0, lambda place: 300), NO_ID),
    "draws that pass it": (with_value(DRAWS, 1, lambda step: 299), NO_ID),
    "a draw too many": (longer(DRAWS), SHIFTED),
    "a draw too few": (shorter(DRAWS), SHIFTED),
    "no draws": (lambda parts: parts.__setitem__(slice(DRAWS, DRAWS + 2), [b"", b""]), LENGTH),
    "draws for heads": (moved(HEADS, DRAWS), SHIFTED),
}
LIES = [
    pytest.param(name, change, fault, id=f"{name}: {what}")
    for name, lies in (("compact topk", TOPK), ("compact sampled", SAMPLED))
    for what, (change, fault) in lies.items()
]


@pytest.mark.parametrize(("name", "change", "fault"), LIES)
def test_a_block_whose_streams_lie_is_refused(
    name: str, change: Change, fault: str, written: Written
) -> None:
    """Orders, places, levels and units that do not exist, and counts that do not match."""
    folder = written(name)
    forge(folder / SHARD, in_streams(0, change))
    assert_refused(folder, SHARD, f"block 0 .*({fault})", CorruptError)


@pytest.mark.parametrize("name", ["compact topk", "compact sampled"])
def test_a_block_that_is_packed_again_is_read(name: str, written: Written) -> None:
    """What these forgeries do by themselves changes nothing: it is the lie that is refused."""
    folder = written(name)
    forge(folder / SHARD, in_streams(0, lambda parts: None))
    read_all(folder)
    assert problems(folder) == []


def test_no_mass_and_the_last_level_are_just_within_the_bounds(written: Written) -> None:
    """Each bound from the other side."""
    folder = written("compact topk")
    forge(folder / SHARD, in_streams(0, with_pair(TAILS, 0, NUM_LEVELS)))
    forge(folder / SHARD, in_streams(0, with_pair(TAILS, 1, NUM_LEVELS - 1)))
    forge(folder / SHARD, in_streams(0, with_byte(ORDERS, 0, 2)))
    read_all(folder)


def data_of(change: Callable[[bytes], bytes], expanded: int | None = None) -> Callable[[Forgery], None]:
    """The bytes of a block changed, and perhaps the size that is declared."""

    def forged(it: Forgery) -> None:
        size = int(it.arrays["block_expanded_bytes"][0]) if expanded is None else expanded
        set_block(it, 0, change(content_of(it, 0)), size)

    return forged


def inflated(stream: int) -> Callable[[Forgery], None]:
    """A gigabyte more in a stream, in a frame that says so and in a block that does not."""

    def forged(it: Forgery) -> None:
        parts = stream_parts(it, 0)
        frame = blown_up(b"".join(parts[: stream + 1]), GIGABYTE, b"".join(parts[stream + 1 :]))
        set_block(it, 0, frame, sum(map(len, parts)))

    return forged


def lying(frame: bytes) -> bytes:
    """A frame that says that it is a kilobyte: its size is after magic, descriptor and window (RFC 8878)."""
    assert frame[4] >> 6 == 2 and not frame[4] & 32  # four bytes of size, and a window
    return frame[:6] + (1 << 10).to_bytes(4, "little") + frame[10:]


UNSIZED = zstandard.ZstdCompressor(write_content_size=False).compress(bytes(100))
PAST, NO_FRAME = "would expand to .* are (declared|the most)", "is no zstandard frame"
FRAMES = {
    **{f"a gigabyte in stream {n}": (inflated(n), PAST) for n in (0, 5, 9)},
    "a gigabyte that says so": (data_of(lambda data: blown_up(b"", GIGABYTE), GIGABYTE), PAST),
    "a gigabyte that lies": (data_of(lambda data: lying(blown_up(b"", GIGABYTE)), 1 << 10), NO_FRAME),
    "a frame of no size": (data_of(lambda data: UNSIZED), PAST),
    "a frame that is none": (data_of(lambda data: b"no frame"), NO_FRAME),
    "a frame that was cut": (data_of(lambda data: data[:-1]), NO_FRAME),
    "a byte after the frame": (data_of(lambda data: data + b"\0"), NO_FRAME),
    "two frames": (data_of(lambda data: data + data), NO_FRAME),
    "more than is declared": (data_of(lambda data: data, 9), PAST),
    "less than is declared": (data_of(lambda data: data, 1 << 20), PAST),
    "no bytes": (data_of(lambda data: b""), NO_FRAME),
    "an empty frame": (data_of(lambda data: framed(b""), 0), LENGTH),
}


@pytest.mark.parametrize("name", ["compact topk", "compact sampled"])
@pytest.mark.parametrize(("change", "fault"), FRAMES.values(), ids=FRAMES)
def test_streams_that_are_none_are_refused(
    name: str, change: Callable[[Forgery], None], fault: str, written: Written
) -> None:
    """Frames that expand past what is declared, cut ones and several, in a small cache's memory."""
    folder = written(name)
    forge(folder / SHARD, change)
    assert_refused(folder, SHARD, f"block 0 .*({fault})", CorruptError)


def gigabytes(name: str, it: Forgery) -> None:
    """A block that is right in every count, of rows of as many ids as a count can say, or nearly."""
    rows = int(it.arrays["block_rows"][1])
    if name.startswith("zstd"):
        # Counts come first, as four planes; all else may be zero.
        ids = 700_000
        before = b"".join(bytes([byte]) * rows for byte in ids.to_bytes(4, "little"))
        size = rows * (4 + (4 if "sampled" in name else 0) + 4 + ids * (2 + 4) + 1)
    else:
        before = b"".join(numbers([LARGEST] * rows))
        size = len(before) + (6 if "topk" in name else 2) * rows + 2 * LARGEST * rows
    set_block(it, 0, blown_up(before, size - len(before)), size)


@pytest.mark.parametrize("name", ["compact topk", "compact sampled", "zstd topk big", "zstd sampled"])
def test_a_block_that_says_truly_that_it_is_gigabytes_is_refused(name: str, tmp_path: Path) -> None:
    """A few kilobytes, right in every count; a reader that may have a gigabyte says so in one line."""
    how = {"lengths": (400, 400), "sequences_a_shard": 1, "block_rows": 300}
    folder = subject(name, **how, vocab_size=300 if "compact" in name else 1 << 20).write(tmp_path / "cache")
    forge(folder / SHARD, lambda it: gigabytes(name, it))
    assert (folder / SHARD).stat().st_size < 1 << 20
    said, found = lines_within_a_gigabyte(folder)
    for line in (said, *found):
        assert_line(line, SHARD, "")
    assert "expand" in said and any("expand" in line for line in found)


def test_a_row_with_an_id_twice_is_found_by_verify(written: Written) -> None:
    """A step of no places, which draws may have and kept ids may not."""
    folder = written("compact topk")
    forge(folder / SHARD, in_streams(0, with_value(PLACES, 1, lambda step: 0)))
    assert_found(folder, SHARD, "block 0 holds an id twice in a row, bytes .* to ")


def test_a_sampled_row_with_an_id_twice_is_found_by_verify(written: Written) -> None:
    """In its head, where an id stands once with its value."""
    folder = written("compact sampled")

    def change(parts: Parts) -> None:
        counts, places = values(parts, COUNTS), values(parts, HEADS)
        row = next(n for n, count in enumerate(counts) if count > 1)
        place = sum(counts[:row])
        places[place + 1] = places[place]
        parts[HEADS : HEADS + 2] = numbers(places)

    forge(folder / SHARD, in_streams(0, change))
    assert_found(folder, SHARD, "block 0 holds (an id twice in a row|a head out of order), bytes .* to ")
