"""Step time and memory of learning from a cache, against plain cross-entropy of whole logits, same batches.

    python -m benches.bench_loss --json
    python -m benches.bench_loss --quick

A step is forward and backward of a Llama-style student in fp32: plain, as transformers' Trainer takes it
(`model(**batch).loss`), and by our sums, on batches where every token is supervised: prompts that are masked
would only be dear to the plain one.
Both are timed in turns; a ratio is the median of the ratios of neighbours, with quartiles.
Memory is the high-water mark of a process of its own, above what it had before the step (or the loss) began.
Rows are of a made-up teacher, as many ids as real ones have.
"""

import argparse
import functools
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from benches.process import in_a_process, peak_bytes, watch_peak
from distillcache.chunked_loss import Terms, chunked_sums
from distillcache.head import OutputHead
from distillcache.learn.objective import Objective, batch_sums
from distillcache.linear_head import LinearHead
from distillcache.losses import TeacherRows

VOCABULARIES = (49_152, 151_936, 262_144)
# hidden size, MLP, layers, heads: with 49,152 tied ids about 10 and 60 million parameters.
STUDENTS = {"10m": (160, 448, 8, 4), "60m": (512, 1408, 11, 8)}
TOPK = 64
HEAD_IDS, DRAWS = 4, 14  # of a row sampled at tau = 1/25
KINDS = ("hard", "sampled", "topk")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one small student, few tokens")
    parser.add_argument("--json", action="store_true", help="one object: figures by name")
    parser.add_argument("--repeats", type=int, default=9, help="of each pair of steps")
    parser.add_argument("--tokens", type=int, default=2048, help="of a timed batch")
    parser.add_argument("--length", type=int, default=512, help="of its sequences, in tokens")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", help="a student, as `10m_v49152`, instead of all")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    figures: dict[str, float] = {}
    if args.quick:
        cases = {"tiny_v4096": (4096, (32, 64, 2, 4))}
        tokens, repeats, memory_tokens, kinds = 128, 2, 512, KINDS[1:2]
    else:
        cases = {f"{s}_v{v}": (v, sizes) for v in VOCABULARIES for s, sizes in STUDENTS.items()}
        tokens, repeats, memory_tokens, kinds = args.tokens, args.repeats, 4096, KINDS
    for name, (vocab_size, sizes) in cases.items():
        if args.only in (None, name):
            figures |= _times(name, vocab_size, sizes, tokens, args.length, repeats)
    for name, (vocab_size, sizes) in cases.items():
        if args.only in (None, name):
            figures |= _memory(name, vocab_size, sizes, memory_tokens, args.length, args.threads, kinds)
    if args.json:
        print(json.dumps(figures))
    else:
        print("\n".join(f"{name:<52}{value:>14.6g}" for name, value in figures.items()))


def student(vocab_size: int, sizes: tuple[int, int, int, int]) -> LlamaForCausalLM:
    """A new one with a tied head."""
    hidden, mlp, layers, heads = sizes
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=hidden,
        intermediate_size=mlp,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(config).train()


def batch_of(vocab_size: int, tokens: int, length: int, kind: str) -> dict[str, Any]:
    """Sequences of a length (or of all tokens, if there are fewer), with rows of one kind."""
    random = torch.Generator().manual_seed(1)
    length = min(length, tokens)
    ids_BT = torch.randint(vocab_size, (tokens // length, length), generator=random)
    batch: dict[str, Any] = {"input_ids": ids_BT, "attention_mask": torch.ones_like(ids_BT), "labels": ids_BT}
    if kind != "hard":
        batch["rows"] = rows_of(kind, ids_BT.shape[0] * (length - 1), vocab_size)
    return batch


def rows_of(kind: str, num_rows: int, vocab_size: int) -> dict[str, Tensor]:
    """Rows of random ids, by the names of `TeacherRows`."""
    random = torch.Generator().manual_seed(2)
    kept, drawn = (TOPK, 0) if kind == "topk" else (HEAD_IDS, DRAWS)
    # No id twice in a row: one from each of as many stretches of the vocabulary.
    stretch = vocab_size // kept
    ids_NK = torch.randint(stretch, (num_rows, kept), generator=random) + torch.arange(kept) * stretch
    logprobs_NK = torch.randn(num_rows, kept, generator=random).mul(2).log_softmax(1) - 0.2
    return {
        "head_offsets": torch.arange(num_rows + 1) * kept,
        "head_ids": ids_NK.reshape(-1).int(),
        "head_logprobs": logprobs_NK.sort(1, descending=True).values.reshape(-1),
        "tail_mass": 1 - logprobs_NK.exp().sum(1),
        "draw_offsets": torch.arange(num_rows + 1) * drawn,
        "draw_ids": torch.randint(vocab_size, (num_rows * drawn,), generator=random).int(),
        "entropy": torch.full((num_rows,), 2.0),
    }


def objective_of(kind: str) -> Objective:
    """Half hard and half soft, at the temperature that each kind has by default."""
    if kind == "hard":
        return Objective(1.0, None, 1.0, "topk", 1.0, None)
    return Objective(0.5, "forward-kl", 1.0 if kind == "sampled" else 2.0, kind, 1.0, None)


def plain_step(model: LlamaForCausalLM, batch: dict[str, Any]) -> float:
    """As Trainer does it: the count of targets is known, and gradients are made anew."""
    model.zero_grad(set_to_none=True)
    count = (batch["labels"][:, 1:] != -100).sum()
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "labels")}
    loss = model(**inputs, num_items_in_batch=count, use_cache=False).loss
    loss.backward()
    return float(loss.detach())


def our_step(head: OutputHead, kind: str, batch: dict[str, Any]) -> tuple[float, float]:
    """Loss and hard loss."""
    head.model.zero_grad(set_to_none=True)
    loss, sums = batch_sums(head, objective_of(kind), batch)
    (loss / sums[4]).backward()
    return float(sums[0] / sums[4]), float(sums[1] / sums[4])


def _times(
    name: str, vocab_size: int, sizes: tuple[int, int, int, int], tokens: int, length: int, repeats: int
) -> dict[str, float]:
    """Ratios of step times, after hard loss and gradients were found equal."""
    model = student(vocab_size, sizes)
    head = OutputHead.of(model, torch.arange(16)[None])
    batches = {kind: batch_of(vocab_size, tokens, length, kind) for kind in KINDS}
    plain = plain_step(model, batches["hard"])
    wanted = [each.grad for each in model.parameters()]
    _, hard = our_step(head, "hard", batches["hard"])
    assert abs(hard - plain) < 1e-5 * plain
    for parameter, gradient in zip(model.parameters(), wanted, strict=True):
        assert parameter.grad is not None and gradient is not None
        difference = float((parameter.grad - gradient).norm() / gradient.norm())
        assert difference < 1e-3, f"gradients differ by {difference}"
    del wanted
    seconds: dict[str, list[float]] = {kind: [] for kind in ("plain", *KINDS)}
    for _ in range(repeats):
        seconds["plain"].append(_seconds(lambda: plain_step(model, batches["hard"])))
        for kind in KINDS:
            seconds[kind].append(_seconds(functools.partial(our_step, head, kind, batches[kind])))
    parameters = sum(each.numel() for each in model.parameters())
    figures = {
        f"{name}_parameters": float(parameters),
        f"{name}_plain_step_seconds": statistics.median(seconds["plain"]),
    }
    for kind in KINDS:
        ratios = [ours / plain for ours, plain in zip(seconds[kind], seconds["plain"], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
        figures |= {
            f"{name}_{kind}_step_over_plain": middle,
            f"{name}_{kind}_step_over_plain_low_quartile": low,
            f"{name}_{kind}_step_over_plain_high_quartile": high,
        }
    return figures


def _seconds(step: Callable[[], object]) -> float:
    began = time.perf_counter()
    step()
    return time.perf_counter() - began


def _memory(
    name: str,
    vocab_size: int,
    sizes: tuple[int, int, int, int],
    tokens: int,
    length: int,
    threads: int,
    kinds: tuple[str, ...],
) -> dict[str, float]:
    """Peaks of the loss (at half the tokens too) and of the whole step, each in a fresh process."""

    def peak(what: Callable[..., int], kind: str, tokens: int) -> float:
        return 1.0 * in_a_process(what, kind, vocab_size, sizes, tokens, length, threads)

    plain_loss, plain_step_bytes = (peak(what, "plain", tokens) for what in (loss_bytes, step_bytes))
    figures = {
        f"{name}_memory_tokens": float(tokens),
        f"{name}_plain_loss_bytes": plain_loss,
        f"{name}_plain_step_bytes": plain_step_bytes,
    }
    for kind in kinds:
        loss, step = (peak(what, kind, tokens) for what in (loss_bytes, step_bytes))
        figures |= {
            f"{name}_{kind}_loss_bytes": loss,
            f"{name}_{kind}_loss_bytes_of_half_the_tokens": peak(loss_bytes, kind, tokens // 2),
            f"{name}_{kind}_loss_over_one_copy_of_dense_logits": loss / (4.0 * tokens * vocab_size),
            f"{name}_{kind}_loss_memory_over_plain": loss / plain_loss,
            f"{name}_{kind}_step_bytes": step,
            f"{name}_{kind}_step_memory_over_plain": step / plain_step_bytes,
        }
    return figures


def loss_bytes(
    kind: str, vocab_size: int, sizes: tuple[int, int, int, int], tokens: int, _: int, threads: int
) -> int:
    """What the loss takes beside hidden states, head, and the gradients of both, forward and backward."""
    torch.set_num_threads(threads)
    hidden_size = sizes[0]
    torch.manual_seed(0)
    weight_VD = (torch.randn(vocab_size, hidden_size) / 50).requires_grad_()
    hidden_ND = torch.randn(tokens, hidden_size).requires_grad_()
    targets_N = torch.randint(vocab_size, (tokens,))
    terms = objective_of(kind).terms if kind != "plain" else Terms(1.0, None, 1.0)
    rows = TeacherRows(kind, **rows_of(kind, tokens, vocab_size)) if kind in ("sampled", "topk") else None
    # What libraries take for themselves at their first use.
    torch.nn.functional.cross_entropy(torch.randn(2, 8, requires_grad=True), torch.ones(2).long()).backward()
    before = watch_peak()
    if kind == "plain":
        torch.nn.functional.cross_entropy(hidden_ND @ weight_VD.t(), targets_N).backward()
    else:
        loss, _ = chunked_sums(LinearHead(weight_VD), hidden_ND, targets_N, terms, rows=rows)
        loss.backward()
    gradients = 4 * (weight_VD.numel() + hidden_ND.numel())
    return max(1, peak_bytes() - before - gradients)


def step_bytes(
    kind: str, vocab_size: int, sizes: tuple[int, int, int, int], tokens: int, length: int, threads: int
) -> int:
    """What a process has at most in a step, parameters and gradients included, above what it began with."""
    torch.set_num_threads(threads)
    before = watch_peak()
    model = student(vocab_size, sizes)
    if kind == "plain":
        plain_step(model, batch_of(vocab_size, tokens, length, "hard"))
    else:
        our_step(OutputHead.of(model), kind, batch_of(vocab_size, tokens, length, kind))
    return max(1, peak_bytes() - before)


if __name__ == "__main__":
    main()
