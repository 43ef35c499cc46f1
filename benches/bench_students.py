"""Students of every kind of row, side by side: held-out KL to the teacher against bytes a token.

    OMP_NUM_THREADS=1 python -m benches.bench_students --folder WORK --prose TXT --steps 110 --seed 1
    OMP_NUM_THREADS=1 python -m benches.bench_students --quick

All begin as one warm student, and take the same batches in the same order; a batch's teacher logits are made
once for all. Cross-entropy alone is share 0 of the way, full distillation online share 1.
Goes on where it was stopped: every so many steps each student is put on disk. Some of the ways, or seeds, may
run in a process of their own, each of one thread, in one folder: shares are told once the two ends are there.

N rows of a batch, V vocabulary.
"""

import argparse
import functools
import json
import math
import os
import re
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benches.distillation import (
    HARD,
    KINDS,
    MIXED,
    ONLINE,
    WAYS,
    Said,
    kept,
    new_student,
    row_bytes,
)
from distillcache.chunked_loss import Terms, chunked_sums
from distillcache.head import OutputHead
from distillcache.linear_head import LinearHead
from distillcache.metrics import exact_metrics, means, summed

__all__ = ["ALL", "SEQUENCES", "Learner", "file_name", "made_up", "run_name", "warm_student"]

ALL = {**WAYS, **MIXED}
SEQUENCES = 2  # of 512 tokens, in a batch, unless told
WARM_LEARNING_RATE, LEARNING_RATE, WARM_UP = 2e-3, 1e-3, 10
SAVE_EVERY = 50


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tiny made-up teacher, a few steps")
    parser.add_argument("--json", action="store_true", help="one object: figures by name")
    parser.add_argument("--folder", type=Path, help="where hidden states, students and results lie")
    parser.add_argument("--prose", type=Path, help="folder of .txt files; else pydoc_data.topics")
    parser.add_argument("--student", default="tiny", help="of configs/student")
    parser.add_argument("--train", type=int, default=2000, help="sequences of 512 tokens to learn from")
    parser.add_argument("--warm-steps", type=int, default=300, help="of cross-entropy, before all")
    parser.add_argument("--steps", type=int, default=110)
    parser.add_argument("--sequences", type=int, default=SEQUENCES, help="of 512 tokens, in a batch")
    parser.add_argument("--decay", action="store_true", help="of the learning rate, in a straight line to 0")
    parser.add_argument("--seed", type=int, default=1, help="of the order of the batches, and of draws")
    parser.add_argument(
        "--ways", nargs="*", default=tuple(WAYS), help="some only, or of: " + "; ".join(MIXED)
    )
    parser.add_argument("--eval-every", type=int, default=None, help="steps; at the end alone unless given")
    args = parser.parse_args()
    if not args.quick and args.folder is None:
        parser.error("--folder: name one to work in")
    if args.quick:
        with tempfile.TemporaryDirectory() as folder:
            args.folder, args.warm_steps, args.steps, args.train = Path(folder), 2, 3, 4
            made_up(args.folder)
            figures = run(args)
    else:
        counts = {"train": args.train, "calibration": 64, "held_out_code": 16, "held_out_prose": 16}
        Said.make(args.folder, counts, args.prose)
        figures = run(args)
    if args.json:
        print(json.dumps(figures))
    else:
        print("\n".join(f"{name:<64}{value:>12.5g}" for name, value in figures.items()))


def run(args: argparse.Namespace) -> dict[str, float]:
    """Every figure of the ways asked for, by its name."""
    train, calibration = Said(args.folder, "train"), Said(args.folder, "calibration")
    held_out = {name: Said(args.folder, f"held_out_{name}") for name in ("code", "prose")}
    warm = warm_student(args.folder, args.student, args.warm_steps, train)
    learning = _Learning(args, train, warm)
    learning.run(held_out)
    hard, full = learning.scores(HARD), learning.scores(ONLINE)
    figures: dict[str, float] = {}
    for way in args.ways:
        scores = learning.scores(way)
        figures |= {f"{way}: {name}": score for name, score in scores.items()}
        kind = ALL[way].kind
        if kind is not None:
            figures[f"{way}: bytes a row"] = _bytes(args.folder, kind, calibration, held_out)
        for name in ("code KL", "prose KL", "all KL") if hard and full else ():
            share = (hard[name] - scores[name]) / (hard[name] - full[name])
            figures[f"{way}: {name.replace('KL', 'share')}"] = share
    assert all(math.isfinite(each) for each in figures.values())
    return figures


class Learner:
    """One student and its optimiser."""

    def __init__(
        self, student: str, vocab_size: int, learning_rate: float, decay_steps: int | None = None
    ) -> None:
        self.model = new_student(student, vocab_size)
        self.head = OutputHead.of(self.model)
        self.learning_rate, self.decay_steps = learning_rate, decay_steps
        self.optimizer = torch.optim.AdamW(self.model.parameters(), learning_rate, weight_decay=0.01)

    def linear(self) -> LinearHead:
        """The head as it is now."""
        weight: Tensor = self.model.lm_head.weight
        return LinearHead(weight)

    def step(self, step: int, ids_BT: Tensor, terms: Terms, **teacher: Any) -> float:
        """One step on a batch; its loss a row."""
        left = 1.0 if self.decay_steps is None else 1 - step / self.decay_steps
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate * min(left, (step + 1) / WARM_UP)
        hidden_ND = self.head.hidden(ids_BT)[:, :-1].flatten(0, 1)
        targets_N = ids_BT[:, 1:].flatten()
        loss, _ = chunked_sums(self.linear(), hidden_ND, targets_N, terms, **teacher)
        loss = loss / len(targets_N)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return float(loss.detach())

    def state(self) -> dict[str, object]:
        return {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])


def warm_student(folder: Path, student: str, steps: int, train: Said) -> dict[str, Tensor]:
    """A student after some steps of cross-entropy, the same for all that follows."""
    file = folder / f"warm-{student}-{steps}.pt"
    if not file.is_file():
        learner = Learner(student, train.vocab_size, WARM_LEARNING_RATE)
        for step, batch in zip(range(steps), _batches(train, 0, SEQUENCES), strict=False):
            loss = learner.step(step, train.ids(batch), Terms(1.0, None, 1.0))
            if step % 50 == 0:
                print(f"warm step {step}: loss {loss:.3f}", flush=True)
        _save(learner.model.state_dict(), file)
    found: dict[str, Tensor] = torch.load(file)
    return found


class _Learning:
    """All ways of learning in step with each other."""

    def __init__(self, args: argparse.Namespace, train: Said, warm: dict[str, Tensor]) -> None:
        self.args, self.train = args, train
        name = run_name(args.steps, args.sequences, args.decay)
        self.folder = args.folder / f"{args.student}-{args.warm_steps}-{name}-seed{args.seed}"
        self.folder.mkdir(exist_ok=True)
        decay_steps = args.steps if args.decay else None
        self.learners = {
            way: Learner(args.student, train.vocab_size, LEARNING_RATE, decay_steps) for way in args.ways
        }
        self.begun = dict.fromkeys(args.ways, 0)
        for way, learner in self.learners.items():
            learner.model.load_state_dict(warm)
            file = self._file(way, ".pt")
            if file.is_file():
                found = torch.load(file)
                self.begun[way] = found.pop("step")
                learner.load(found)

    def run(self, held_out: dict[str, Said]) -> None:
        """To the last step; scores of all then, and on the way if asked."""
        began = time.monotonic()
        batches = _batches(self.train, self.args.seed, self.args.sequences)
        every = self.args.eval_every or self.args.steps
        for step, batch in zip(range(self.args.steps), batches, strict=False):
            done = step + 1
            ways = [way for way in self.learners if self.begun[way] < done]
            if not ways:
                continue
            losses = self._steps(ways, step, batch)
            if done % SAVE_EVERY == 0 or done % every == 0 or done == self.args.steps:
                if done % every == 0 or done == self.args.steps:
                    self._evaluate(ways, held_out, done)
                for way in ways:
                    _save({"step": done, **self.learners[way].state()}, self._file(way, ".pt"))
            if step % 10 == 0 and not self.args.quick:
                shown = "  ".join(f"{way} {loss:.3f}" for way, loss in losses.items())
                print(f"step {step}, {time.monotonic() - began:.0f} s: {shown}", flush=True)

    def scores(self, way: str) -> dict[str, float]:
        """The last of one way, which another process may have reached; none before."""
        file = self._file(way, ".json")
        scores: dict[str, float] = json.loads(file.read_bytes())[-1] if file.is_file() else {}
        return scores if scores.get("step") == self.args.steps else {}

    def _file(self, way: str, suffix: str) -> Path:
        return Path(self.folder / file_name(way, suffix))

    def _steps(self, ways: Sequence[str], step: int, batch: list[int]) -> dict[str, float]:
        """One of each, and the losses; the teacher's logits are made only if one needs them."""
        ids_BT = self.train.ids(batch)
        logits = functools.cache(lambda: self.train.logits(batch))
        losses = {}
        for name in ways:
            teacher = ALL[name].teacher(
                logits, lambda kind: kept(self.args.folder, self.train, kind, batch, self.args.seed)
            )
            losses[name] = self.learners[name].step(step, ids_BT, ALL[name].terms, **teacher)
        return losses

    def _evaluate(self, ways: Sequence[str], held_out: dict[str, Said], step: int) -> None:
        """Against the teacher's whole distribution."""
        sums: dict[tuple[str, str], Tensor] = {}
        for name, said in held_out.items():
            for sequence in range(said.num_sequences):
                teacher_NV = said.logits([sequence]).log_softmax(1)
                ids_1T = said.ids([sequence])
                for way in ways:
                    learner = self.learners[way]
                    with torch.inference_mode():
                        hidden_ND = learner.head.hidden(ids_1T)[0, :-1]
                        logits_NV = learner.linear().logits(hidden_ND)
                        found = summed(exact_metrics(logits_NV, ids_1T[0, 1:], teacher_NV))
                    for key in ((way, name), (way, "all")):
                        sums[key] = sums.get(key, torch.zeros_like(found)) + found
        for way in ways:
            scores: dict[str, float] = {"step": step}
            for name in (*held_out, "all"):
                found_means = means(sums[way, name])
                known = {
                    f"{name} KL": found_means.kl,
                    f"{name} cross-entropy": found_means.hard_loss,
                    f"{name} top-1 agreement": found_means.top1_agreement,
                    f"{name} calibration error": found_means.calibration_error,
                    f"{name} acceptance": found_means.acceptance_low,
                }
                scores |= {key: value for key, value in known.items() if value is not None}
            file = self._file(way, ".json")
            before = json.loads(file.read_bytes()) if file.is_file() else []
            file.write_text(json.dumps([each for each in before if each["step"] < step] + [scores]))


def run_name(steps: int, sequences: int, decay: bool) -> str:
    """What tells runs of the same warm student apart, seeds aside."""
    batch = "" if sequences == SEQUENCES else f"-batch{sequences}"
    return f"{steps}{batch}{'-decay' if decay else ''}"


def file_name(way: str, suffix: str) -> str:
    """Of what lies on disk for one way."""
    return re.sub(r"[^a-zA-Z0-9]+", "-", way) + suffix


def _batches(train: Said, seed: int, sequences: int) -> Iterator[list[int]]:
    """Batches without end, each sequence once an epoch."""
    random = np.random.default_rng(seed)
    while True:
        order = random.permutation(train.num_sequences).tolist()
        for start in range(0, len(order) - sequences + 1, sequences):
            yield order[start : start + sequences]


def _bytes(folder: Path, kind: str, calibration: Said, held_out: dict[str, Said]) -> float:
    """Of rows of both held-out texts, weighed alike; measured once."""
    file = folder / "bytes.json"
    known: dict[str, float] = json.loads(file.read_bytes()) if file.is_file() else {}
    if kind not in known:
        found = [row_bytes(KINDS[kind], calibration, said) for said in held_out.values()]
        known[kind] = sum(found) / len(found)
        file.write_text(json.dumps(known))
    return known[kind]


def _save(state: object, file: Path) -> None:
    partial = file.with_suffix(f".{os.getpid()}")
    torch.save(state, partial)
    partial.replace(file)


def made_up(folder: Path) -> None:
    """A teacher of random weights, in the files that `Said` reads."""
    vocab_size, hidden_size = 3_000, 16
    generator = torch.Generator().manual_seed(0)
    head = torch.randn(vocab_size, hidden_size, generator=generator)
    np.save(folder / "head.npy", head.numpy())
    for part in ("train", "calibration", "held_out_code", "held_out_prose"):
        hidden = torch.randn(4, 511, hidden_size, generator=generator) * 1.5
        (folder / f"{part}-hidden.f16").write_bytes(hidden.to(torch.float16).numpy().tobytes())
        tokens = torch.randint(vocab_size, (4, 512), generator=generator)
        np.save(folder / f"{part}-tokens.npy", tokens.numpy().astype(np.uint16))
        (folder / f"{part}.json").write_text(json.dumps({"done": 4, "hidden_size": hidden_size}))


if __name__ == "__main__":
    main()
