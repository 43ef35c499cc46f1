"""Claims about the whole way: rows that `teach` wrote stand where `learn` holds a student against them.

The student is the teacher itself, so what is left of its KL to the cache is the codec's error and noise; with
rows moved by one position it is large.
Prompts are masked, sequences are of unequal lengths.
"""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from distillcache.head import OutputHead
from distillcache.learn.config import LearnConfig
from distillcache.learn.data import IGNORED, collate
from distillcache.learn.objective import Objective
from distillcache.learn.run import learn, objective_of
from distillcache.learn.scores import Scores, score_sums, scores
from distillcache.packing import pack_attention
from distillcache.teach.sample import in_order
from distillcache_shards.cache import Batch, Cache
from tests.distillcache.learning import command_line
from tests.distillcache.test_learn_ranks import launched
from tests.distillcache.tiny_models import save_teacher, tiny
from tests.teach.teaching import NUM_IDS, answers, chats, teach_into, write_records

KINDS: dict[str, dict[str, Any]] = {
    "topk": {"keep": "topk", "k": 64, "max_kl": 1e-5},
    "sampled": {"keep": "sampled", "k": None, "tau": 1 / 50, "tilt": 0},
    "tilted": {"keep": "sampled", "k": None, "tau": 1 / 50},
}
# Nats. A sampled row estimates a cross-entropy from some twenty ids, and its entropy is kept in 8 bits.
NOISE = {"topk": 2e-5, "sampled": 0.05, "tilted": 0.05}
SHIFTED = 0.5


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher, and a cache of each kind."""
    room = tmp_path_factory.mktemp("alignment")
    teacher = save_teacher(room / "teacher", tiny("llama", vocab_size=NUM_IDS))
    records = write_records(room / "records.jsonl", [*answers(40), *chats(40)])
    for kind, settings in KINDS.items():
        teach_into(room / kind, teacher, records, **settings)
        assert 0 < Cache.open(room / kind).num_rows < 0.9 * Cache.open(room / kind).num_tokens
    return room


def moved(read: Batch) -> Batch:
    """The same with each row at the place of the one before."""
    return dataclasses.replace(read, rows=in_order(read.rows, np.roll(np.arange(len(read.rows)), 1)))


def before(room: Path, kind: str, output: Path, **settings: Any) -> Scores:
    """What `learn` says of the teacher as a student, before it has learned anything."""
    result = learn(
        LearnConfig(
            cache=room / kind,
            output=output,
            student=str(room / "teacher"),
            max_steps=1,
            held_out=0.5,
            device="cpu",
            dtype="fp32",
            **settings,
        )
    )
    assert result.before is not None
    return result.before


@pytest.mark.parametrize("packing", [True, False], ids=["packed", "padded"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_teacher_as_a_student_has_no_kl_and_a_shift_gives_it_some(
    room: Path, kind: str, packing: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through both commands, from records to scores."""
    found = before(room, kind, tmp_path / "right", packing=packing)
    assert abs(found.kl) < NOISE[kind]
    assert found.top1_agreement is not None and found.top1_agreement > 0.95  # values that round alike tie
    read: Callable[..., Batch] = Cache.read
    monkeypatch.setattr(Cache, "read", lambda *args, **kwargs: moved(read(*args, **kwargs)))
    assert before(room, kind, tmp_path / "moved", packing=packing).kl > SHIFTED


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_so_it_is_with_two_ranks(room: Path, kind: str, tmp_path: Path) -> None:
    """Each of which scores half of what is held out."""
    output = tmp_path / "student"
    settings = {"student": room / "teacher", "cache": room / kind, "max_steps": 1, "held_out": 0.5}
    ran = launched(command_line(room, output, **settings))
    assert ran.returncode == 0, ran.stderr[-2000:]
    found = json.loads((output / "learn.json").read_text())["result"]["before"]
    assert abs(found["kl"]) < NOISE[kind] and found["top1_agreement"] > 0.95


@pytest.mark.parametrize("layout", ["right", "left", "packed"])
@pytest.mark.parametrize("kind", KINDS)
def test_padding_on_either_side_is_no_difference(room: Path, kind: str, layout: str) -> None:
    """A batch as the loss takes it, also from a loader that pads on the left."""
    cache = Cache.open(room / kind)
    objective = objective_of(LearnConfig(cache=cache.folder, output=room, student=""), cache)
    head = OutputHead.of(tiny("llama", vocab_size=NUM_IDS))
    if layout == "packed":
        pack_attention(head.model)
    read = cache.read(range(12))
    assert abs(_kl(head, objective, read, layout)) < 3 * NOISE[kind]
    assert _kl(head, objective, moved(read), layout) > SHIFTED


def _kl(head: OutputHead, objective: Objective, read: Batch, layout: str) -> float:
    batch = collate(read, packed=layout == "packed")
    if layout == "left":
        padding_B = (batch["attention_mask"] == 0).sum(1)
        assert (padding_B > 0).any() and (batch["labels"] == IGNORED).any()
        for name in ("input_ids", "attention_mask", "labels"):
            rolled = [row.roll(int(by)) for row, by in zip(batch[name], padding_B, strict=True)]
            batch[name] = torch.stack(rolled)
    return scores(score_sums(head, objective, batch), 1)[1].kl
