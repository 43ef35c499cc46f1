"""A second reader of the cache folder, written from shards/FORMAT.md alone: it shows that the page is enough.

Plain and slow, a row at a time. It checks the checksums of what it reads, and is not made for hostile files.
Needs numpy and zstandard; knows nothing of `distillcache_shards`.
"""

import hashlib
import json
import math
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import zstandard

Arrays = dict[str, np.ndarray]
Rows = list[tuple[Any, ...]]  # of each: ids, their log-probabilities, tail mass, draws, entropy
DTYPES = {"U8": "u1", "U16": "<u2", "U32": "<u4", "U64": "<u8", "F32": "<f4", "f16": "<f2", "f32": "<f4"}
U1, U2, U4, F4 = (np.dtype(each) for each in ("u1", "<u2", "<u4", "<f4"))


def sha256(data: Any) -> str:
    """Of bytes, or of the canonical JSON of other data."""
    if not isinstance(data, bytes):
        data = json.dumps(data, sort_keys=True, separators=(",", ":")).encode()
    return hashlib.sha256(data).hexdigest()


def read_file(file: Path) -> tuple[dict[str, Any], Arrays]:
    """The description and the tensors of `index.safetensors` or a shard."""
    content = file.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    described = json.loads(header.pop("__metadata__")["distillcache"])
    own_hash, found = described["header_sha256"], {}
    assert sha256(content[8:start].replace(own_hash.encode(), b"0" * 64)) == own_hash
    for name, entry in header.items():
        first, end = (start + each for each in entry["data_offsets"])
        assert zlib.crc32(content[first:end]) == described["tensors"][name]["crc32"]
        found[name] = np.frombuffer(content[first:end], DTYPES[entry["dtype"]]).reshape(entry["shape"])
    return described, found


def read_cache(folder: Path) -> Arrays:
    """All sequences of a complete cache, one after another, as flat arrays."""
    whole = json.loads((folder / "cache.json").read_bytes())
    plan = whole["plan"]
    assert whole.pop("sha256") == sha256(whole) and whole["format"] == 1
    assert whole["plan_sha256"] == sha256(plan)
    _, index = read_file(folder / "index.safetensors")
    assert sha256((folder / "index.safetensors").read_bytes()) == plan["corpus"]["index_sha256"]
    codec = Codec(plan, index)
    parts, rows = [], []
    for number in range(plan["corpus"]["shards"]):
        described, shard = read_file(folder / f"shard-{number:05d}.safetensors")
        assert (described["shard"], described["plan_sha256"]) == (number, whole["plan_sha256"])
        part = {
            "tokens": shard["tokens"],
            "supervised": np.unpackbits(shard["supervised"], bitorder="little")[: len(shard["tokens"])] == 1,
            "records": shard["sequence_record"].astype(np.int64),
            "lengths": np.diff(shard["sequence_tokens"]),
            "row_counts": np.diff(shard["sequence_rows"]),
        }
        parts.append(part)
        for block, num_rows in enumerate(np.diff(shard["block_rows"]).tolist()):
            data = shard["rows"][shard["block_start"][block] :][: shard["block_bytes"][block]].tobytes()
            assert zlib.crc32(data) == shard["block_crc32"][block]
            rows += codec.rows(data, num_rows)
    found = {name: np.concatenate([each[name] for each in parts]) for name in parts[0]}
    ids, logprobs, tails, draws, entropies = zip(*rows, strict=True)
    found |= {
        "token_offsets": offsets(found.pop("lengths")),
        "row_offsets": offsets(found.pop("row_counts")),
        "head_offsets": offsets([len(each) for each in ids]),
        "head_ids": np.concatenate(ids).astype(np.int32),
        "head_logprobs": np.concatenate(logprobs).astype(np.float32),
        "tail_mass": np.array(tails, np.float32),
        "draw_offsets": offsets([len(each) for each in draws]),
        "draw_ids": np.concatenate(draws).astype(np.int32),
        "entropy": np.array(entropies, np.float32),
    }
    if codec.tilted:
        tau = codec.params["draw_units"] / codec.params["units"]
        found["draw_weights"] = (tau / codec.factors[found["draw_ids"]]).astype(np.float32)
    return found


def offsets(counts: Any) -> np.ndarray:
    """Offsets of things, from how many there are of each."""
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)


class Codec:
    """The bytes of a block as rows, by what plan and index say of them."""

    def __init__(self, plan: dict[str, Any], index: Arrays) -> None:
        self.params, self.sampled = plan["codec"]["params"], plan["rows"]["kind"] == "sampled"
        vocab_size = plan["tokenizer"]["vocab_size"]
        self.id = U2 if vocab_size <= 65_536 else U4
        self.entropies = np.arange(256, dtype=np.float32) * np.float32(math.log(vocab_size) / 255)
        self.tilted = plan["codec"]["id"] == "compact-tilted"
        self.rows = getattr(self, plan["codec"]["id"].replace("-", "_").replace("tilted", "sampled"))
        common = moved_up(index.get("codec.common", np.zeros(0)), np.arange(vocab_size))
        self.orders = [moved_up(front, common) for front in index.get("codec.fronts", [])]
        self.doublings = (index.get("codec.tilt", np.full(vocab_size, 128)).astype(int) - 128) / 16
        self.factors = np.array([2**each for each in self.doublings.tolist()])
        self.levels = index.get("codec.levels", np.zeros(0, np.float32))
        self.masses = np.append(np.exp(self.levels.astype(np.float64)), 0).astype(np.float32)

    def plain(self, data: bytes, num_rows: int) -> Rows:
        take = Sections(data, planes=False)
        heads = np.diff(take(U4, num_rows + 1))
        draws = np.diff(take(U4, num_rows + 1)) if self.sampled else np.zeros(num_rows, int)
        tails = take(F4, num_rows)
        wide = [(np.dtype(DTYPES[self.params["logprobs"]]), heads), (self.id, heads), (self.id, draws)]
        found = [np.zeros(0)] * 3
        for number in sorted(range(3), key=lambda each: -wide[each][0].itemsize):
            found[number] = take(wide[number][0], wide[number][1].sum())
        return self.split(heads, draws, tails, *found, take(U1, num_rows))

    def zstd(self, data: bytes, num_rows: int) -> Rows:
        take = Sections(zstandard.decompress(data), planes=True)
        heads = take(U4, num_rows)
        draws = take(U4, num_rows) if self.sampled else np.zeros(num_rows, int)
        tails = take(F4, num_rows)
        logprobs = take(np.dtype(DTYPES[self.params["logprobs"]]), heads.sum())
        ids, drawn = take(self.id, heads.sum()), take(self.id, draws.sum())
        return self.split(heads, draws, tails, logprobs, ids, drawn, take(U1, num_rows))

    def split(self, heads: Any, draws: Any, tails: Any, logprobs: Any, ids: Any, drawn: Any, e: Any) -> Rows:
        """Arrays of all rows, as one row after another."""
        parts = by_row(heads, ids), by_row(heads, logprobs), tails, by_row(draws, drawn), self.entropies[e]
        return list(zip(*parts, strict=True))

    def compact_topk(self, data: bytes, num_rows: int) -> Rows:
        take = Sections(zstandard.decompress(data), planes=False)
        counts, orders = numbers(take, num_rows), take(U1, num_rows)
        lowest, tails = (take(U1, num_rows) + 256 * take(U1, num_rows).astype(int) for _ in range(2))
        steps, below = (by_row(counts, numbers(take, counts.sum())) for _ in range(2))
        entropies, rows = self.entropies[take(U1, num_rows)], []
        for n in range(num_rows):
            ids, level = self.orders[orders[n]][np.cumsum(steps[n])], lowest[n] - below[n]
            own = np.lexsort((ids, level))
            rows.append((ids[own], self.levels[level[own]], self.masses[tails[n]], ids[:0], entropies[n]))
        return rows

    def compact_sampled(self, data: bytes, num_rows: int) -> Rows:  # tilted ones too
        take = Sections(zstandard.decompress(data), planes=False)
        counts, units = numbers(take, num_rows), self.params["units"]
        told = numbers(take, num_rows) if self.tilted else None
        orders = take(U1, num_rows)
        steps = by_row(counts, numbers(take, counts.sum())[::-1])
        places = by_row(counts, numbers(take, counts.sum()))
        heads = [np.cumsum(each[::-1])[::-1] for each in steps]
        tails = units - np.array([each.sum() for each in heads], int)
        num_draws = -(-tails // self.params["draw_units"]) if told is None else told
        draws = by_row(num_draws, numbers(take, num_draws.sum()))
        entropies, rows = self.entropies[take(U1, num_rows)], []
        for n in range(num_rows):
            order, tail = self.orders[orders[n]], tails[n] / units
            ids, drawn = order[places[n]], np.sort(order[np.cumsum(draws[n])])
            if self.tilted:
                tail = max(0, 1 - np.cumsum([0, *heads[n] / (units * self.factors[ids])])[-1])
            logs = np.array([math.log(each / units) for each in heads[n].tolist()])
            rows.append((ids, logs - self.doublings[ids] * math.log(2), tail, drawn, entropies[n]))
        return rows


class Sections:
    """Sections of a block, one after another; elements as they are, or as byte planes."""

    def __init__(self, data: bytes, planes: bool) -> None:
        self.data, self.place, self.planes = data, 0, planes

    def __call__(self, dtype: np.dtype, count: int) -> np.ndarray:
        raw = np.frombuffer(self.data, U1, int(count) * dtype.itemsize, self.place)
        self.place += len(raw)
        return np.frombuffer((raw.reshape(dtype.itemsize, -1).T if self.planes else raw).tobytes(), dtype)


def by_row(counts: Any, elements: np.ndarray) -> list[np.ndarray]:
    """The elements of each row."""
    return np.split(elements, np.cumsum(counts))[:-1]


def moved_up(first: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """These ids, then the others in their order."""
    return np.concatenate([first, ids[~np.isin(ids, first)]])


def numbers(take: Sections, count: int) -> np.ndarray:
    """Numbers of one, two or three bytes."""
    found = take(U1, count).astype(int)
    two, three = found >= 192, found >= 240
    found[two] = np.where(three, 12_480 + 65_536 * (found - 240), 192 + 256 * (found - 192))[two]
    found[two] += take(U1, two.sum())
    found[three] += 256 * take(U1, three.sum()).astype(int)
    return found
