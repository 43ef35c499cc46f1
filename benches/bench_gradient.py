"""The gradient of a batch by every kind of row, against that of full distillation: angle, length, error.

    OMP_NUM_THREADS=1 python -m benches.bench_gradient --folder WORK --prose TXT
    OMP_NUM_THREADS=1 python -m benches.bench_gradient --quick

Over all parameters of an early and of a late student, on code (the teacher's own kind of text) and on prose,
for batches of 2,044 and of 8,176 rows: errors by chance halve between the two, biases stay.
`adam`: every parameter's gradient is first divided by the root of its mean square over other batches, as Adam
does, so that rare ids count as much as frequent ones.

P parameters.
"""

import argparse
import json
import math
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benches.bench_students import ALL, Learner, made_up, warm_student
from benches.distillation import KINDS, ONLINE, PARTS, WAYS, Said
from distillcache.chunked_loss import chunked_sums

SEQUENCES, BATCHES = 4, 4  # of a small batch, and small batches in a large one
DOMAINS = ("code", "prose")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tiny made-up teacher")
    parser.add_argument("--json", action="store_true", help="one object: figures by name")
    parser.add_argument("--folder", type=Path, help="where hidden states and students lie")
    parser.add_argument("--prose", type=Path, help="folder of .txt files; else pydoc_data.topics")
    parser.add_argument("--student", default="tiny", help="of configs/student")
    parser.add_argument("--train", type=int, default=2000, help="sequences to train the students on")
    parser.add_argument("--early", type=int, default=300, help="steps of cross-entropy of the early student")
    parser.add_argument("--late", default="2000", help="of the late one; or a student of bench_students, .pt")
    parser.add_argument("--seed", type=int, default=1, help="of draws")
    others = [way for way in WAYS if way != ONLINE]
    parser.add_argument("--ways", nargs="*", default=others, choices=others, metavar="WAY", help="some only")
    args = parser.parse_args()
    if not args.quick and args.folder is None:
        parser.error("--folder: name one to work in")
    if args.quick:
        with tempfile.TemporaryDirectory() as folder:
            args.folder, args.early, args.late = Path(folder), 2, "3"
            made_up(args.folder)
            figures = run(args)
    else:
        counts = dict(zip(PARTS, (16, 16, 64, args.train), strict=True))
        Said.make(args.folder, counts, args.prose)
        figures = run(args)
    if args.json:
        print(json.dumps(figures))
    else:
        print("\n".join(f"{name:<72}{value:>12.5g}" for name, value in figures.items()))


def run(args: argparse.Namespace) -> dict[str, float]:
    """Every figure by its name."""
    figures: dict[str, float] = {}
    train = Said(args.folder, "train")
    for age, found_at in (("early", str(args.early)), ("late", args.late)):
        learner = Learner(args.student, train.vocab_size, 0.0)
        if found_at.endswith(".pt"):
            weights = torch.load(found_at)["model"]
        else:
            weights = warm_student(args.folder, args.student, int(found_at), train)
        learner.model.load_state_dict(weights)
        scale_P = _adam_scale(learner, train, args.seed)
        for domain in DOMAINS:
            said = Said(args.folder, f"held_out_{domain}")
            found = _compared(learner, said, scale_P, args.ways, args.seed)
            figures |= {f"{age} {domain} {name}": value for name, value in found.items()}
    assert all(math.isfinite(each) for each in figures.values())
    return figures


def _adam_scale(learner: Learner, train: Said, seed: int) -> Tensor:
    """1 over the root of the mean square of each parameter's gradient, [P], of small batches of training."""
    square_P: Tensor | None = None
    for start in range(0, min(train.num_sequences, SEQUENCES * BATCHES * 2), SEQUENCES):
        batch = list(range(start, start + SEQUENCES))
        g_P = _gradient(learner, train, batch, train.logits(batch), ONLINE, seed)
        square_P = g_P**2 if square_P is None else square_P + g_P**2
    assert square_P is not None
    root_P = square_P.sqrt()
    # A parameter that no batch moved, as the embedding of an id that never came, has none.
    return torch.where(root_P > 0, 1 / root_P, 0.0)


def _compared(
    learner: Learner, said: Said, scale_P: Tensor, ways: Sequence[str], seed: int
) -> dict[str, float]:
    figures: dict[str, float] = {}
    small: dict[str, list[dict[str, float]]] = {way: [] for way in ways}
    whole_P: dict[str, Tensor] = {}
    for start in range(0, min(said.num_sequences, SEQUENCES * BATCHES), SEQUENCES):
        batch = list(range(start, start + SEQUENCES))
        logits_NV = said.logits(batch)
        full_P = _gradient(learner, said, batch, logits_NV, ONLINE, seed)
        whole_P[ONLINE] = whole_P.get(ONLINE, torch.zeros(())) + full_P
        for way in ways:
            g_P = _gradient(learner, said, batch, logits_NV, way, seed)
            small[way].append(dict(_errors(g_P, full_P, scale_P)))
            whole_P[way] = whole_P.get(way, torch.zeros(())) + g_P
    for way in ways:
        for name in small[way][0]:
            figures[f"{way}, small batch: {name}"] = sum(each[name] for each in small[way]) / len(small[way])
        for name, value in _errors(whole_P[way], whole_P[ONLINE], scale_P):
            figures[f"{way}, large batch: {name}"] = value
    return figures


def _errors(g_P: Tensor, full_P: Tensor, scale_P: Tensor) -> Iterator[tuple[str, float]]:
    for metric, ours_P, theirs_P in (("", g_P, full_P), ("adam ", g_P * scale_P, full_P * scale_P)):
        ours, theirs = ours_P.double(), theirs_P.double()
        cosine = float(ours @ theirs / (ours.norm() * theirs.norm()))
        yield f"{metric}angle, degrees", math.degrees(math.acos(min(1.0, cosine)))
        yield f"{metric}length ratio", float(ours.norm() / theirs.norm())
        yield f"{metric}relative error", float((ours - theirs).norm() / theirs.norm())


def _gradient(
    learner: Learner, said: Said, batch: list[int], logits_NV: Tensor, way: str, seed: int
) -> Tensor:
    """Of the mean loss of a batch, over all parameters, [P]."""
    ids_BT = said.ids(batch)
    hidden_ND = learner.head.hidden(ids_BT)[:, :-1].flatten(0, 1)
    targets_N = ids_BT[:, 1:].flatten()
    teacher: dict[str, Any] = ALL[way].teacher(
        lambda: logits_NV, lambda kind: KINDS[kind].rows(said, batch, seed)
    )
    loss, _ = chunked_sums(learner.linear(), hidden_ND, targets_N, ALL[way].terms, **teacher)
    gradients = torch.autograd.grad(loss / len(targets_N), list(learner.model.parameters()))
    return torch.cat([each.flatten() for each in gradients])


if __name__ == "__main__":
    main()
