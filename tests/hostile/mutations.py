"""Mutated shards, each of a seed: accidents, that a checksum finds, and forgeries, whose checksums are right.

`python -m tests.hostile.mutations SUBJECT FIRST COUNT` makes so many of them in little memory, and prints
what a reader and `verify` made of each, as JSON.
"""

import json
import signal
import sys
import tempfile
import traceback
from collections import Counter
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import zstandard

from distillcache_shards.cache import Cache
from distillcache_shards.errors import DistillcacheError
from distillcache_shards.rows import Rows
from tests.hostile.blocks import blown_up, content_of, framed, set_block, stream_parts
from tests.hostile.confined import confine, problems
from tests.hostile.forge import Forgery
from tests.hostile.line import assert_line
from tests.hostile.subjects import SUBJECTS, subject, twin

MOST_SECONDS = 10.0  # a thousand times what a small cache takes
SHARD, OTHER_SHARD, INDEX = "shard-00000.safetensors", "shard-00001.safetensors", "index.safetensors"
Random = np.random.Generator
Folder = dict[str, bytes]
POISON = ("<f2", np.nan), ("<f2", np.inf), ("<f4", np.nan), ("<f4", -np.inf), ("<f4", 1e30), ("<f2", 0.5)


# Accidents: what disks, copies and people do to bytes.


def flip(random: Random, data: bytes, donors: list[bytes]) -> bytes:
    """One bit to eight, anywhere."""
    changed = np.frombuffer(data, np.uint8).copy()
    for place in random.integers(len(data), size=random.integers(1, 9)):
        changed[place] ^= 1 << random.integers(8)
    return changed.tobytes()


def overwrite(random: Random, data: bytes, donors: list[bytes]) -> bytes:
    """A run of bytes by zeros, ones or noise: a lost page, a bad sector."""
    start, end = _span(random, len(data))
    run = [bytes(end - start), b"\xff" * (end - start), random.bytes(end - start)][random.integers(3)]
    return data[:start] + run + data[end:]


def cut(random: Random, data: bytes, donors: list[bytes]) -> bytes:
    """Some of its end is lost, or is zeros."""
    end = int(random.integers(len(data)))
    return data[:end] + bytes(len(data) - end) * int(random.integers(2))


def grow(random: Random, data: bytes, donors: list[bytes]) -> bytes:
    """More after the end: zeros, noise, or itself."""
    return data + [bytes(8), random.bytes(int(random.integers(1, 99))), data][random.integers(3)]


def splice(random: Random, data: bytes, donors: list[bytes]) -> bytes:
    """A run of bytes of another file, at the same place or elsewhere."""
    donor = donors[random.integers(len(donors))]
    start, end = _span(random, min(len(data), len(donor)))
    place = start if random.integers(2) else int(random.integers(len(data)))
    return data[:place] + donor[start:end] + data[place + (end - start) * int(random.integers(2)) :]


def shift(random: Random, data: bytes, donors: list[bytes]) -> bytes:
    """A run of bytes is lost, comes twice, or is moved."""
    start, end = _span(random, len(data))
    run, rest = data[start:end], data[:start] + data[end:]
    place = int(random.integers(len(rest) + 1))
    return [rest, data[:end] + run + data[end:], rest[:place] + run + rest[place:]][random.integers(3)]


def digit(random: Random, data: bytes, donors: list[bytes]) -> bytes:
    """A number of the header is another."""
    end = 8 + int.from_bytes(data[:8], "little")
    digits = [n for n in range(8, min(end, len(data))) if data[n : n + 1].isdigit()]
    place = int(digits[random.integers(len(digits))])
    return data[:place] + str(random.integers(10)).encode() + data[place + 1 :]


def replaced(random: Random, data: bytes, donors: list[bytes]) -> bytes:
    """Another file under this name."""
    return donors[random.integers(len(donors))]


ACCIDENTS = (flip, flip, overwrite, cut, grow, splice, splice, shift, digit, replaced)


# Forgeries: wrong in what they say, and right in every checksum.


def element(random: Random, it: Forgery) -> None:
    """One number of an array: offsets that overlap or fall, ids past the vocabulary, other sizes."""
    name = _choice(random, [name for name, array in it.arrays.items() if array.size])
    array = it.arrays[name].reshape(-1)
    largest = int(np.iinfo(array.dtype).max)
    place, old = int(random.integers(array.size)), int(array[random.integers(array.size)])
    values = [0, 1, largest, largest >> 1, old + 1, old - 1, old + 8, 1 << 16, 1 << 20, 1 << 40]
    array[place] = _choice(random, values) % (largest + 1)


def shape(random: Random, it: Forgery) -> None:
    """An array that is shorter, longer, of another type, or not there."""
    name = _choice(random, list(it.arrays))
    array = it.arrays.pop(name)
    changes = [None, array[:-1], np.concatenate([array, array[-1:]]), array.astype("<u4"), array[:, None]]
    changed = changes[random.integers(len(changes))]
    if changed is not None:
        it.arrays[name] = changed


def header(random: Random, it: Forgery) -> None:
    """Entries that lie about an array, or counts about the shard."""
    name = _choice(random, list(it.arrays))
    huge = int(_choice(random, [0, 1, 1 << 31, 1 << 40, (1 << 62) - 1, 1 << 63]))
    if random.integers(2):
        lies = {"shape": [huge]}, {"data_offsets": [0, huge]}, {"data_offsets": [huge, 0]}, {"dtype": "U64"}
        it.lies[name] = lies[random.integers(len(lies))]
    else:
        counts = it.description["counts"]
        counts[_choice(random, list(counts))] = huge


def rows_counted(random: Random, it: Forgery) -> None:
    """All offsets of rows agree, on rows that are not there."""
    more = int(_choice(random, [1, 8, 1000, 1 << 20, 1 << 33, 1 << 60]))
    for name in ("sequence_rows", "block_rows"):
        it.arrays[name][-1] += np.uint64(more)
    it.description["counts"]["rows"] += more


def block_bytes(random: Random, it: Forgery) -> None:
    """The bytes of a block, mutated as by accident, under a checksum of their own."""
    block, data = _a_block(random, it)
    changed = _choice(random, [flip, overwrite, cut, grow, shift])(random, data, [])
    set_block(it, block, changed, _near(random, int(it.arrays["block_expanded_bytes"][block])))


def block_content(random: Random, it: Forgery) -> None:
    """What a block expands to, mutated: the decoder itself is reached."""
    block, data = _a_block(random, it)
    if _codec(it) == "plain":
        changed = _poisoned(random, data)
        set_block(it, block, changed, len(changed))
    elif _codec(it) == "zstd":
        changed = _poisoned(random, zstandard.decompress(data))
        set_block(it, block, framed(changed), _near(random, len(changed)))
    elif random.integers(2):
        # Streams follow from those before them, so this is all of it, moved or cut.
        changed = _poisoned(random, zstandard.decompress(data))
        set_block(it, block, framed(changed), len(changed))
    else:
        parts = stream_parts(it, block)
        for _ in range(random.integers(1, 3)):
            number = int(random.integers(len(parts)))
            parts[number] = _poisoned(random, parts[number]) if parts[number] else random.bytes(3)
        changed = b"".join(parts)
        set_block(it, block, framed(changed), len(changed))


def streams_moved(random: Random, it: Forgery) -> None:
    """Streams of a block that are sound, in each other's place, or of another block."""
    block, _ = _a_block(random, it)
    if _codec(it) in ("plain", "zstd"):
        return block_content(random, it)
    parts, others = stream_parts(it, block), stream_parts(it, _a_block(random, it)[0])
    one, two = random.integers(len(parts), size=2)
    if random.integers(2):
        parts[one], parts[two] = parts[two], parts[one]
    else:
        parts[one] = others[two]
    return set_block(it, block, framed(b"".join(parts)), sum(map(len, parts)))


@cache
def bomb(num_bytes: int) -> bytes:
    """A frame of so many zeros."""
    return blown_up(b"", num_bytes)


def explosion(random: Random, it: Forgery) -> None:
    """A block that would be gigabytes; it says so, or lies."""
    block, _ = _a_block(random, it)
    num_bytes = int(_choice(random, [1 << 24, 1 << 28, (1 << 32) - 1]))
    said = int(_choice(random, [num_bytes, 1 << 10, (1 << 32) - 1]))
    set_block(it, block, bomb(num_bytes), said)


FORGERIES = (element, shape, header, rows_counted, block_bytes, block_content, block_content, streams_moved)
FORGERIES += (block_content, block_content, explosion)


class Mutant:
    """One mutated shard in its folder."""

    def __init__(self, name: str, seed: int, sound: Folder, other: Folder) -> None:
        random = np.random.default_rng([SUBJECTS.index(name), seed])
        data, donors = sound[SHARD], [sound[OTHER_SHARD], other[SHARD], other[OTHER_SHARD], sound[INDEX]]
        self.forged = bool(random.integers(2))
        if self.forged:
            forgery = Forgery.of_bytes(data)
            self.how = FORGERIES[random.integers(len(FORGERIES))]
            self.how(random, forgery)
            self.data = forgery.sealed()
        else:
            self.how = ACCIDENTS[random.integers(len(ACCIDENTS))]
            self.data = self.how(random, data, donors)


def read(folder: Path) -> list[dict[str, np.ndarray]]:
    """All sequences of a cache, one by one."""
    cache = Cache.open(folder)
    found = []
    for index in range(len(cache)):
        each = cache[index]
        assert each.rows.fault(cache.vocab_size) is None, each.rows.fault(cache.vocab_size)
        assert int(each.tokens.max(initial=0)) < cache.vocab_size, "a token outside the vocabulary"
        of_rows = {name.name: getattr(each.rows, name.name) for name in fields(Rows)[1:]}
        arrays = {name: array for name, array in of_rows.items() if array is not None}
        found.append({"tokens": each.tokens, "supervised": each.supervised, **arrays})
    return found


def outcome(folder: Path, mutant: Mutant, wanted: list[dict[str, np.ndarray]], sound: bytes) -> str:
    """What became of it; raises AssertionError for what may not be."""
    try:
        found = read(folder)
    except DistillcacheError as error:
        assert_line(str(error), "", "")
        told = "refused"
    else:
        told = "untouched" if _same(found, wanted) else "other rows"
    assert told != "other rows" or mutant.forged, "silently other rows"
    for line in (lines := problems(folder)):
        assert_line(line, "", "")
    # Verify knows more than a reader, never less; what is forged well enough is another sound shard.
    assert lines or mutant.data == sound or (mutant.forged and told != "refused"), "verify found nothing"
    return told


def run(name: str, first: int, count: int) -> dict[str, Any]:
    """Mutants of so many seeds: how many came to what, and what may not be, by seed."""
    told: Counter[str] = Counter()
    wrong = []
    with tempfile.TemporaryDirectory() as place:
        folder = subject(name).write(Path(place) / "cache")
        sound = {each.name: each.read_bytes() for each in folder.iterdir()}
        other = {each.name: each.read_bytes() for each in twin(name).write(Path(place) / "twin").iterdir()}
        wanted = read(folder)
        for seed in range(first, first + count):
            mutant = Mutant(name, seed, sound, other)
            file = folder / SHARD
            file.unlink()  # never written over: a reader may have it mapped
            file.write_bytes(mutant.data)
            signal.setitimer(signal.ITIMER_REAL, MOST_SECONDS)
            kind = "forged" if mutant.forged else "accident"
            try:
                told[f"{kind}, {outcome(folder, mutant, wanted, sound[SHARD])}"] += 1
            except BaseException as error:  # whatever it is, it has a seed
                last = traceback.extract_tb(error.__traceback__)[-1]
                place_of = f"{Path(last.filename).name}:{last.lineno}"
                wrong.append(f"{seed} {mutant.how.__name__}: {type(error).__name__} {error} at {place_of}")
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
    return {"told": dict(sorted(told.items())), "wrong": wrong}


def _same(found: list[dict[str, np.ndarray]], wanted: list[dict[str, np.ndarray]]) -> bool:
    return all(
        have[name].dtype == want[name].dtype and have[name].tobytes() == want[name].tobytes()
        for have, want in zip(found, wanted, strict=True)
        for name in want
    )


def _span(random: Random, length: int) -> tuple[int, int]:
    """A run of bytes: one, some, or many."""
    start = int(random.integers(length))
    return start, min(length, start + int(_choice(random, [1, 3, 8, 64, 512, 4096])))


def _choice(random: Random, among: list[Any]) -> Any:
    return among[random.integers(len(among))]


def _near(random: Random, size: int) -> int:
    """A size, mostly true."""
    return int(_choice(random, [size, size, size, size, max(0, size - 1), size + 1, 0, (1 << 32) - 1]))


def _codec(it: Forgery) -> str:
    return str(it.description["plan"]["codec"]["id"])


def _a_block(random: Random, it: Forgery) -> tuple[int, bytes]:
    block = int(random.integers(len(it.arrays["block_bytes"])))
    return block, content_of(it, block)


def _poisoned(random: Random, data: bytes) -> bytes:
    """Other bytes, or values that are none, at a place where one may be."""
    if random.integers(2):
        return _choice(random, [flip, overwrite, cut, grow, shift])(random, data, [])
    dtype, value = _choice(
        random, [*POISON, ("<u2", 65_535), ("<u4", (1 << 32) - 1), ("u1", 255), ("u1", 192)]
    )
    poison = np.array(value, dtype).tobytes()
    place = int(random.integers(max(1, len(data) // len(poison)))) * len(poison)
    return (data[:place] + poison + data[place + len(poison) :])[: max(len(data), len(poison))]


def _too_long(number: int, frame: object) -> None:
    raise TimeoutError(f"took over {MOST_SECONDS} seconds")


if __name__ == "__main__":
    signal.signal(signal.SIGALRM, _too_long)
    confine()
    print(json.dumps(run(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))))
