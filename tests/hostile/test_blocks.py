"""Blocks of the compact codecs that are right in every checksum and wrong in what they say.

Each is refused by name, and none takes more memory than a sound one.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import zstandard

from distillcache_shards.cache import Cache
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
COUNTS = 0
LOWEST, TAILS, PLACES, LEVELS = 3, 4, 5, 7  # of `compact-topk`
DRAW_COUNTS = 2  # of `compact-tilted`
LARGEST = 12_480 + (1 << 20) - 1
GIGABYTE = 1 << 30


@dataclass(frozen=True)
class Places:
    """Where streams of a codec stand that others have too."""

    orders: int
    units: int  # of `sampled`
    heads: int
    draws: int
    entropy: int


TOPK_AT, SAMPLED_AT, TILTED_AT = Places(2, -1, 5, -1, 9), Places(2, 3, 5, 7, 9), Places(4, 5, 7, 9, 11)
COMPACT = {"compact topk": TOPK_AT, "compact sampled": SAMPLED_AT, "compact tilted": TILTED_AT}


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, bytes]]:
    """The files of a cache of each codec."""
    found = {}
    for name in COMPACT:
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


def counting_less(first: int) -> Change:
    """One less in the row that counts most."""

    def changed(parts: Parts) -> None:
        found = values(parts, first)
        found[found.index(max(found))] -= 1
        parts[first : first + 2] = numbers(found)

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


def with_more_units(at: Places) -> Change:
    """Units come round: their sum is above 2^32, and so small again."""

    def changed(parts: Parts) -> None:
        counts = values(parts, COUNTS)
        more = (1 << 32) // LARGEST + 2
        units, heads = values(parts, at.units), values(parts, at.heads)
        parts[COUNTS : COUNTS + 2] = numbers([*counts[:-1], counts[-1] + more])
        parts[at.units : at.units + 2] = numbers([*[LARGEST] * more, *units])
        parts[at.heads : at.heads + 2] = numbers([*heads, *[0] * more])

    return changed


NO_ORDER, NO_LEVEL, NO_ID = (
    "an order that is none of 3",
    "holds a level that is none of",
    "holds an id outside",
)
NO_SHARE = "holds a probability outside 1 to 100 units|holds a row of more than 100 units"
NO_PROBABILITY = "holds a probability that is none"
LENGTH = "is (shorter|longer) than its rows"
# A byte more or less moves all streams after it: which of them is found wrong is chance.
SHIFTED = f"{LENGTH}|{NO_ORDER}|{NO_LEVEL}|{NO_ID}|{NO_SHARE}|{NO_PROBABILITY}"
NUM_LEVELS = 500  # of those in tests/shards/compact_cache.py
Lies = dict[str, tuple[Change, str]]


def of_all(at: Places) -> Lies:
    """Lies that any of the codecs may be told."""
    return {
        "an order that does not exist": (with_byte(at.orders, 0, 3), NO_ORDER),
        "the last order there can be": (with_byte(at.orders, -1, 255), NO_ORDER),
        "an entropy too many": (longer(at.entropy), LENGTH),
        "an entropy too few": (shorter(at.entropy), LENGTH),
        "an order too many": (longer(at.orders), SHIFTED),
        "an order too few": (shorter(at.orders), SHIFTED),
        "a row too many": (longer(COUNTS), SHIFTED),
        "a row too few": (shorter(COUNTS), SHIFTED),
        "an id too many": (with_value(COUNTS, 0, lambda count: count + 1), SHIFTED),
        "an id too few": (counting_less(COUNTS), SHIFTED),
        "a million ids": (with_value(COUNTS, 0, lambda count: LARGEST), LENGTH),
        "a million ids in every row": (
            lambda parts: parts.__setitem__(slice(0, 2), numbers([LARGEST] * len(parts[COUNTS]))),
            LENGTH,
        ),
        "a number without its second byte": (
            lambda parts: parts.__setitem__(at.heads + 1, b""),
            SHIFTED,
        ),
        "a number with bytes of none": (longer(at.heads + 1), SHIFTED),
        "nothing": (lambda parts: parts.__setitem__(slice(None), []), LENGTH),
        "the end of it": (lambda parts: parts.__setitem__(slice(5, None), []), LENGTH),
    }


def of_samples(at: Places, no_share: str) -> Lies:
    """Lies of units and draws."""
    return {
        **of_all(at),
        "no units": (lambda parts: parts.__setitem__(at.units, bytes(len(parts[at.units]))), no_share),
        "a million units": (with_value(at.units, -1, lambda units: LARGEST), no_share),
        "units that come round": (with_more_units(at), no_share),
        "a head past the vocabulary": (with_value(at.heads, 0, lambda place: 300), NO_ID),
        "a head far past it": (with_value(at.heads, 0, lambda place: LARGEST), NO_ID),
        "a place too few": (lambda parts: parts.__setitem__(at.heads, parts[at.heads][1:]), SHIFTED),
        "a draw past the vocabulary": (with_value(at.draws, 0, lambda place: 300), NO_ID),
        "draws that pass it": (with_value(at.draws, 1, lambda step: 299), NO_ID),
        "a draw too many": (longer(at.draws), SHIFTED),
        "a draw too few": (shorter(at.draws), SHIFTED),
        "no draws": (
            lambda parts: parts.__setitem__(slice(at.draws, at.draws + 2), [b"", b""]),
            LENGTH,
        ),
        "draws for heads": (moved(at.heads, at.draws), SHIFTED),
    }


TOPK: Lies = {
    **of_all(TOPK_AT),
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
SAMPLED: Lies = {
    **of_samples(SAMPLED_AT, NO_SHARE),
    "more units than there are": (with_value(SAMPLED_AT.units, -1, lambda units: 101), NO_SHARE),
    "more units in all": (with_value(SAMPLED_AT.units, 0, lambda units: units + 99), NO_SHARE),
    "units that leave less to draw": (with_value(SAMPLED_AT.units, 0, lambda units: units + 8), SHIFTED),
}
TILTED: Lies = {
    **of_samples(TILTED_AT, NO_PROBABILITY),
    "more units than the largest factor lets an id have": (
        with_value(TILTED_AT.units, -1, lambda units: 620),
        NO_PROBABILITY,
    ),
    "a draw counted too many": (with_value(DRAW_COUNTS, 0, lambda count: count + 1), SHIFTED),
    "a draw counted too few": (counting_less(DRAW_COUNTS), SHIFTED),
    "a million draws": (with_value(DRAW_COUNTS, 0, lambda count: LARGEST), LENGTH),
    "no row's draws counted": (shorter(DRAW_COUNTS), SHIFTED),
    "draws counted as heads": (moved(COUNTS, DRAW_COUNTS), SHIFTED),
    "draws for units": (moved(TILTED_AT.units, TILTED_AT.draws), SHIFTED),
}
LIES = [
    pytest.param(name, change, fault, id=f"{name}: {what}")
    for name, lies in zip(COMPACT, (TOPK, SAMPLED, TILTED), strict=True)
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


@pytest.mark.parametrize("name", COMPACT)
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
    forge(folder / SHARD, in_streams(0, with_byte(TOPK_AT.orders, 0, 2)))
    read_all(folder)


@pytest.mark.parametrize("too_many", [0, 1])
def test_an_id_has_at_most_the_units_of_its_own_factor(too_many: int, written: Written) -> None:
    """Those of certainty, rounded up, and one more; the bound from either side, for one id alone."""
    folder = written("compact tilted")
    first = int(Cache.open(folder)[0].rows.head_ids[0])
    code = int(Forgery.of(folder / "index.safetensors").arrays["codec.tilt"][first])
    most = math.ceil(100 * 2 ** ((code - 128) / 16)) + 1

    def change(parts: Parts) -> None:
        # What is written last is the step to the first id, from the one after it in its row.
        steps = values(parts, TILTED_AT.units)
        of_row = next(count for count in values(parts, COUNTS) if count)
        steps[-1] = most + too_many - sum(steps[-of_row:-1])
        parts[TILTED_AT.units : TILTED_AT.units + 2] = numbers(steps)

    forge(folder / SHARD, in_streams(0, change))
    if too_many:
        assert_refused(folder, SHARD, f"block 0 {NO_PROBABILITY}", CorruptError)
    else:
        share = math.exp(float(Cache.open(folder)[0].rows.head_logprobs[0]))
        assert share == pytest.approx(most / (100 * 2 ** ((code - 128) / 16)))
        assert problems(folder) == []


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


@pytest.mark.parametrize("name", COMPACT)
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
        of_rows = {"compact topk": 6, "compact sampled": 2, "compact tilted": 3}[name]
        size = len(before) + of_rows * rows + 2 * LARGEST * rows
    set_block(it, 0, blown_up(before, size - len(before)), size)


@pytest.mark.parametrize("name", [*COMPACT, "zstd topk big", "zstd sampled"])
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


@pytest.mark.parametrize("name", ["compact sampled", "compact tilted"])
def test_a_sampled_row_with_an_id_twice_is_found_by_verify(name: str, written: Written) -> None:
    """In its head, where an id stands once with its value."""
    folder, at = written(name), COMPACT[name]

    def change(parts: Parts) -> None:
        counts, places = values(parts, COUNTS), values(parts, at.heads)
        row = next(n for n, count in enumerate(counts) if count > 1)
        place = sum(counts[:row])
        places[place + 1] = places[place]
        parts[at.heads : at.heads + 2] = numbers(places)

    forge(folder / SHARD, in_streams(0, change))
    assert_found(folder, SHARD, "block 0 holds (an id twice in a row|a head out of order), bytes .* to ")
