"""Claims about packed runs: the same losses as padded ones, and models that cannot pack are padded."""

from pathlib import Path

import pytest

from distillcache.head import OutputHead
from distillcache.learn.data import Batching, CacheDataset, TrainBatches, collate
from distillcache.learn.events import Event, Started, Warned
from distillcache.learn.objective import SUMS, Objective, batch_sums
from distillcache.learn.run import learn
from distillcache.packing import pack_attention
from distillcache_shards.cache import Cache
from tests.distillcache.learning import Make, losses
from tests.distillcache.tiny_cache import NUM_IDS, small_teacher
from tests.distillcache.tiny_models import save_teacher, tiny


def test_a_packed_batch_has_the_losses_of_a_padded_one(room: Path) -> None:
    """A student that is the teacher: KL of 0 either way, and large once rows stand one off."""
    head = OutputHead.of(small_teacher())
    pack_attention(head.model)
    objective = Objective(
        alpha=0.5, soft_loss="forward-kl", temperature=2.0, row_kind="topk", row_temperature=1.0, row_tau=None
    )
    read = Cache.open(room / "cache").read(range(7))
    padded = batch_sums(head, objective, collate(read))[1]
    batch = collate(read, packed=True)
    packed = batch_sums(head, objective, batch)[1]
    assert packed.tolist() == pytest.approx(padded.tolist(), rel=1e-5, abs=1e-4)
    rows, kl = packed[SUMS.index("rows")], SUMS.index("kl")
    assert abs(packed[kl]) < 1e-5 * rows
    moved = {**batch["rows"], "head_ids": batch["rows"]["head_ids"].roll(16)}
    assert batch_sums(head, objective, {**batch, "rows": moved})[1][kl] > 0.5 * rows


def test_packed_and_padded_runs_learn_the_same_from_the_same_batches(config: Make, tmp_path: Path) -> None:
    """All sequences in each step, so that only the way they lie differs; in bf16 too, within its noise."""
    found = {}
    for packing in (True, False):
        for dtype in ("fp32", "bf16"):
            events: list[Event] = []
            learn(
                config(
                    packing=packing,
                    dtype=dtype,
                    batch_size=24,
                    held_out=0.0,
                    max_steps=4,
                    output=tmp_path / f"{packing}-{dtype}",
                ),
                on_event=events.append,
            )
            assert isinstance(events[0], Started) and events[0].packed == packing
            found[packing, dtype] = list(losses(events).values())
    assert found[True, "fp32"] == pytest.approx(found[False, "fp32"], rel=1e-5)
    assert found[True, "bf16"] == pytest.approx(found[False, "bf16"], rel=1e-2)
    assert found[True, "bf16"] == pytest.approx(found[True, "fp32"], rel=3e-2)


def test_a_student_that_cannot_pack_is_padded_with_a_warning(config: Make, tmp_path: Path) -> None:
    """Nobody has to ask for it, and without packing nothing is said."""
    student = save_teacher(tmp_path / "mamba", tiny("mamba", state_size=8, vocab_size=NUM_IDS))
    events: list[Event] = []
    learn(config(student=str(student), max_steps=1), on_event=events.append)
    assert [event.text for event in events if isinstance(event, Warned)] == [
        "MambaForCausalLM does not keep packed sequences apart; "
        "batches of like lengths are padded instead, as with --no-packing"
    ]
    assert not next(event for event in events if isinstance(event, Started)).packed
    events.clear()
    learn(config(student=str(student), max_steps=1, packing=False, overwrite=True), on_event=events.append)
    assert not any(isinstance(event, Warned) for event in events)


def test_batches_by_tokens_are_packed_to_the_brim(room: Path) -> None:
    """Every one but the last within a sequence of its bound."""
    cache = Cache.open(room / "cache")
    lengths = CacheDataset(cache, cache.records(), rows=False).lengths
    batches = TrainBatches(lengths, batching=Batching(None, 200, True), seed=0)
    tokens = sorted(int(lengths[batch].sum()) for batch in batches)
    assert max(tokens) <= 200 and min(tokens[1:]) > 200 - lengths.max() * 1.02
