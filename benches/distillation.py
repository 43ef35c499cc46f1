"""One teacher, its texts, and what it says of them, for benches in which many students learn side by side.

The teacher's hidden states lie on disk in fp16, as the `model` of all that follows: its whole logits are one
product away, so that full distillation costs the student's step and that product.
What is kept of them is made by the same functions as in `teach`, and its bytes are those of the codecs.
Half of the text is code, half prose; no document is in two parts.

S sequences of T tokens, each with T - 1 rows; N rows of a batch, V vocabulary, D hidden size of the teacher.
"""

import dataclasses
import functools
import json
import os
import sysconfig
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from benches.real_rows import PLANNED_ROWS, real_teacher, sampled_codec
from distillcache.chunked_loss import TeacherLogits, Terms
from distillcache.config import load_config
from distillcache.learn.architecture import Architecture
from distillcache.learn.data import row_tensors
from distillcache.losses import TeacherRows
from distillcache.teach.keep import top_k
from distillcache.teach.rows_config import TILT
from distillcache.teach.sample import Sampler, sample
from distillcache_shards.codecs import Codec
from distillcache_shards.codecs.compact_topk import CompactTopk
from distillcache_shards.codecs.grid import Grid
from distillcache_shards.codecs.tilt import TiltedGrid
from distillcache_shards.rows import Rows

__all__ = [
    "HARD",
    "KINDS",
    "MIXED",
    "ONLINE",
    "PARTS",
    "WAYS",
    "Kind",
    "Said",
    "T",
    "Way",
    "as_tensors",
    "kept",
    "new_student",
    "row_bytes",
]

T = 512
PARTS = ("held_out_code", "held_out_prose", "calibration", "train")
BLOCK_BYTES = 28  # of a shard, for each block of a sequence: where it lies, its sizes and its checksum


@dataclass(frozen=True)
class Kind:
    """One way to keep what a teacher said: `topk` of K ids, or sampled, maybe with a tilt of this power."""

    k: int | None = None
    sampler: Sampler | None = None
    tilt: float = 0.0

    def rows(self, said: "Said", sequences: Sequence[int], seed: int) -> Rows:
        """All of these sequences; chance depends on the seed and their places in the plan."""
        logits_NV, places_N = said.logits(sequences), said.places(sequences)
        valid_V = torch.ones(logits_NV.shape[1], dtype=torch.bool)
        if self.k is not None:
            top = top_k(logits_NV, self.k, valid_V)
            return Rows.top_k(
                top.ids_NK.numpy(), top.logprobs_NK.numpy(), top.tail_mass_N.numpy(), top.entropy_N.numpy()
            )
        assert self.sampler is not None
        sampler = dataclasses.replace(self.sampler, seed=seed, tilted=self.tilted(said))
        return sample(logits_NV, valid_V, sampler, places_N // T, places_N % T)

    def tilted(self, said: "Said") -> TiltedGrid | None:
        """What units and draws weigh, by the ids of the training text; None without a tilt."""
        if self.sampler is None or not self.tilt:
            return None
        return TiltedGrid.of_counts(self.sampler.grid, said.counts_V, self.tilt)


KINDS = {
    "top-12": Kind(k=12),
    "top-64": Kind(k=64),
    "RS-KD 50": Kind(sampler=Sampler(Grid(50, 1), multinomial=True)),
    "sampled 1/8": Kind(sampler=Sampler(Grid.of(1 / 8))),
    "sampled 1/16": Kind(sampler=Sampler(Grid.of(1 / 16))),
    "sampled 1/25": Kind(sampler=Sampler(Grid.of(1 / 25))),
    "sampled 1/50": Kind(sampler=Sampler(Grid.of(1 / 50))),
    "sampled 1/85": Kind(sampler=Sampler(Grid.of(1 / 85))),
    "tilted 1/12": Kind(sampler=Sampler(Grid.of(1 / 12)), tilt=TILT),
    "tilted 1/32": Kind(sampler=Sampler(Grid.of(1 / 32)), tilt=TILT),
    "tilted 1/48": Kind(sampler=Sampler(Grid.of(1 / 48)), tilt=TILT),
}


@dataclass(frozen=True)
class Way:
    """One way to learn: from rows of a kind, from all logits, or (alpha 1) from the text alone."""

    kind: str | None = None
    loss: str = "forward-kl"
    alpha: float = 0.0  # weight of the hard loss
    temperature: float = 1.0

    @property
    def terms(self) -> Terms:
        """What is minimised."""
        return Terms(self.alpha, None if self.alpha == 1 else self.loss, self.temperature)

    @property
    def is_online(self) -> bool:
        """True if it takes all logits."""
        return self.kind is None and self.alpha < 1

    def teacher(
        self, logits: Callable[[], Tensor], rows: Callable[[str], Rows]
    ) -> dict[str, TeacherLogits | TeacherRows]:
        """What is said of a batch, as `chunked_sums` takes it: all logits [N, V], rows, or nothing."""
        if self.is_online:
            logits_NV = logits()
            return {"teacher": lambda start, stop: logits_NV[start:stop]}
        return {} if self.kind is None else {"rows": as_tensors(rows(self.kind))}


HARD, ONLINE = "cross-entropy", "online"
WAYS = {
    HARD: Way(alpha=1.0),
    ONLINE: Way(),
    "top-12 tail": Way("top-12"),
    "top-12 renormalised": Way("top-12", "renormalised"),
    "top-64 tail": Way("top-64"),
    "top-64 renormalised": Way("top-64", "renormalised"),
    **{name: Way(name) for name, kind in KINDS.items() if kind.sampler is not None},
}
# The weight of the hard loss, and the temperature.
MIXED = {
    "sampled 1/50, alpha 0.1": Way("sampled 1/50", alpha=0.1),
    "sampled 1/50, alpha 0.3": Way("sampled 1/50", alpha=0.3),
    "sampled 1/50, alpha 0.5": Way("sampled 1/50", alpha=0.5),
    "top-64 tail, T = 2": Way("top-64", temperature=2.0),
    "online, T = 2": Way(temperature=2.0),
}


class Said:
    """What the teacher said of one part: tokens, and hidden states before its output head."""

    def __init__(self, folder: Path, part: str) -> None:
        """What `make` has put into the folder."""
        about = json.loads((folder / f"{part}.json").read_bytes())
        self.num_sequences: int = about["done"]
        shape = (self.num_sequences, T - 1, about["hidden_size"])
        self.tokens_ST = np.load(folder / f"{part}-tokens.npy", mmap_mode="r")
        self._hidden = np.memmap(folder / f"{part}-hidden.f16", np.float16, mode="r", shape=shape)
        self._folder = folder
        self._head_VD = torch.from_numpy(np.load(folder / "head.npy"))
        # Many students ask for the same in turn.
        self._logits_of = functools.lru_cache(maxsize=4)(self._logits)

    @property
    def vocab_size(self) -> int:
        return len(self._head_VD)

    @torch.inference_mode()
    def logits(self, sequences: Sequence[int]) -> Tensor:
        """[N, V] in fp32, all rows of these sequences."""
        found = [self._logits_of(each) for each in sequences]
        return found[0] if len(found) == 1 else torch.cat(found)

    def _logits(self, sequence: int) -> Tensor:
        return torch.from_numpy(self._hidden[sequence].astype(np.float32)) @ self._head_VD.T

    @functools.cached_property
    def counts_V(self) -> np.ndarray:
        """How often each id is a target in the part to learn from, whatever part this is."""
        targets = np.load(self._folder / "train-tokens.npy", mmap_mode="r")[:, 1:]
        return np.bincount(targets.ravel(), minlength=self.vocab_size)

    def ids(self, sequences: Sequence[int]) -> Tensor:
        """[B, T] token ids."""
        return torch.from_numpy(self.tokens_ST[np.asarray(sequences)].astype(np.int64))

    @staticmethod
    def places(sequences: Sequence[int]) -> np.ndarray:
        """Where rows are in the plan, [N]: sequence times T, plus position."""
        return (np.asarray(sequences)[:, None] * T + np.arange(T - 1)).ravel()

    @classmethod
    def make(cls, folder: Path, counts: dict[str, int], prose: Path | None) -> None:
        """Run the teacher over so many sequences of each part, or go on where it was."""
        folder.mkdir(parents=True, exist_ok=True)
        teacher: Any = None
        for part in PARTS:
            about_file, wanted = folder / f"{part}.json", counts[part]
            about = json.loads(about_file.read_bytes()) if about_file.is_file() else {"done": 0}
            if about["done"] >= wanted:
                continue
            if teacher is None:
                teacher = real_teacher()
                texts = _sequences(teacher.tokenizer, counts, prose)
                projection = teacher.model.get_output_embeddings().weight
                np.save(folder / "head.npy", projection.detach().float().numpy())
            hidden_size = teacher.model.config.hidden_size
            np.save(folder / f"{part}-tokens.npy", texts[part])
            file = folder / f"{part}-hidden.f16"
            shape = (wanted, T - 1, hidden_size)
            with file.open("ab") as stream:
                stream.truncate(about["done"] * (T - 1) * hidden_size * 2)
                for start in range(about["done"], wanted, 4):
                    ids = torch.from_numpy(texts[part][start : start + 4].astype(np.int64))
                    with torch.inference_mode():
                        hidden = teacher.head.hidden(ids)[:, :-1]
                    stream.write(hidden.to(torch.float16).numpy().tobytes())
                    stream.flush()
                    done = min(start + 4, wanted)
                    about_file.write_text(json.dumps({"done": done, "hidden_size": hidden_size}))
            assert file.stat().st_size == 2 * int(np.prod(shape))


def kept(folder: Path, said: Said, name: str, sequences: Sequence[int], seed: int) -> Rows:
    """Rows of one kind, as a cache holds them: made of the teacher's logits once, then read."""
    parts = []
    for sequence in sequences:
        file = folder / "rows" / f"{name.replace('/', '-')}-seed{seed}" / f"{sequence}.npz"
        if not file.is_file():
            file.parent.mkdir(parents=True, exist_ok=True)
            rows = KINDS[name].rows(said, [sequence], seed)
            partial = file.with_suffix(f".{os.getpid()}.npz")
            np.savez(partial, **{name: each for name, each in vars(rows).items() if each is not None})
            partial.replace(file)
        with np.load(file) as arrays:
            parts.append(Rows(**{key: arrays[key] for key in arrays.files} | {"kind": str(arrays["kind"])}))
    return Rows.concatenate(parts)


def _sequences(tokenizer: Any, counts: dict[str, int], prose: Path | None) -> dict[str, np.ndarray]:
    """Whole sequences of each part, [S, T]; parts take documents in turn, the held-out ones first."""
    found: dict[str, list[np.ndarray]] = {part: [] for part in PARTS}
    for kind, documents in (("code", _code()), ("prose", _prose(prose))):
        shares = {
            f"held_out_{kind}": counts[f"held_out_{kind}"],
            "calibration": counts["calibration"] // 2,
            "train": counts["train"] // 2,
        }
        # Documents in no order, so that every part has some of each sort.
        order = iter(np.random.default_rng(0).permutation(len(documents)).tolist())
        for part, share in shares.items():
            sequences: list[np.ndarray] = []
            while len(sequences) < share:
                number = next(order, None)
                assert number is not None, f"too little {kind}: {len(sequences)} of {share} for {part}"
                tokens = tokenizer(documents[number], add_special_tokens=False, verbose=False)["input_ids"]
                whole = len(tokens) // T * T
                # A few of each document held out, else one would be all.
                most = 8 if part.startswith("held_out") else whole // T
                sequences += list(np.array(tokens[:whole], np.uint16).reshape(-1, T)[:most])
            found[part] += sequences[:share]
    shuffle = np.random.default_rng(1)
    return {part: np.stack(each)[shuffle.permutation(len(each))] for part, each in found.items()}


def _code() -> list[str]:
    library = Path(sysconfig.get_path("stdlib"))
    paths = [
        path
        for path in sorted(library.rglob("*.py"))
        if not {"test", "tests", "site-packages", "idlelib", "lib2to3"} & set(path.parts)
    ]
    return [path.read_text(errors="replace") for path in paths]


def _prose(folder: Path | None) -> list[str]:
    if folder is not None:
        return [path.read_text(errors="replace") for path in sorted(folder.glob("*.txt"))]
    assert find_spec("pydoc_data") is not None
    from pydoc_data.topics import topics

    return [topics[name] for name in sorted(topics)]


def new_student(name: str, vocab_size: int, seed: int = 0) -> PreTrainedModel:
    """A new one of `configs/student`, whose weights follow from the seed."""
    file = Path(__file__).parent.parent / "configs" / "student" / f"{name}.toml"
    sizes = dataclasses.asdict(load_config(Architecture, file, {}))
    torch.manual_seed(seed)
    return LlamaForCausalLM(LlamaConfig(vocab_size=vocab_size, bos_token_id=None, eos_token_id=None, **sizes))


def as_tensors(rows: Rows) -> TeacherRows:
    """The rows as a loss takes them."""
    return TeacherRows(rows.kind, **row_tensors(rows))


def calibrated(kind: Kind, said: Said) -> Codec:
    """The codec of a kind, from the rows of the calibration part."""
    parts = [Kind(k=kind.k or 64).rows(said, [each], 0) for each in range(said.num_sequences)]
    rows = Rows.concatenate(parts)
    if kind.sampler is not None:
        sampler = dataclasses.replace(kind.sampler, tilted=kind.tilted(said))
        return sampled_codec(sampler, rows, said.vocab_size)
    return CompactTopk.trained(rows, said.vocab_size, planned_rows=PLANNED_ROWS, max_kl_nats=1e-4)


def row_bytes(kind: Kind, calibration: Said, measured: Said) -> float:
    """Bytes a row on disk, all in, tables shared by a million rows; each sequence is a block."""
    codec = calibrated(kind, calibration)
    total = rows = 0
    for each in range(measured.num_sequences):
        block = kind.rows(measured, [each], 0)
        total += len(codec.encode(block).data) + BLOCK_BYTES
        rows += len(block)
    tables = sum(each.nbytes for each in codec.tables.values())
    return total / rows + tables / PLANNED_ROWS
