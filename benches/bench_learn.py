"""The whole loop of `learn`, reading included, against plain Trainer on the same batches, and against online.

    OMP_NUM_THREADS=1 python -m benches.bench_learn --cache CACHE --cache ANOTHER --online TEACHER --json
    OMP_NUM_THREADS=1 python -m benches.bench_learn --quick

Plain is transformers' Trainer with the model's own cross-entropy: `model(**batch).loss` of whole logits.
`hard` is `learn --type output`, `rows` is `--type logit` on each cache, `online` the same with the teacher.
Each runs in a process of its own, in turns; a step takes the median of all, and a ratio is of neighbours.
Peak memory is the whole process': torch and transformers hold some 600 MB before anything begins.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from transformers import PrinterCallback, Trainer, TrainerCallback

from benches.process import in_a_process, peak_bytes
from benches.tiny import tiny_corpus, tiny_student, tiny_teacher
from distillcache.learn.arguments import training_arguments
from distillcache.learn.config import LearnConfig
from distillcache.learn.data import Batching, CacheDataset, loader, split
from distillcache.learn.events import Event, Step
from distillcache.learn.run import learn
from distillcache.learn.student import load_student
from distillcache.learn.trainer import train_batches
from distillcache.teach.config import TeachConfig
from distillcache.teach.run import teach
from distillcache_shards.cache import Cache

PLAIN, HARD, ONLINE = "plain", "hard", "online"
WARM = 2  # steps that count for nothing
BATCH_SIZE = 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tiny cache of a tiny teacher, made first")
    parser.add_argument("--json", action="store_true", help="one object: figures by name")
    parser.add_argument("--cache", type=Path, action="append", default=[], help="that `teach` made; repeats")
    parser.add_argument("--online", help="the teacher of these caches; no such run unless given")
    parser.add_argument("--student", default="configs/student/tiny.toml")
    parser.add_argument("--steps", type=int, default=22)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    if not args.quick and not args.cache:
        parser.error("--cache: name a cache that `teach` made")
    with tempfile.TemporaryDirectory() as room:
        if args.quick:
            teacher, corpus = tiny_teacher(Path(room)), tiny_corpus(Path(room), 2_400)
            args.online, args.cache = str(teacher), [Path(room) / "topk", Path(room) / "sampled"]
            for cache in args.cache:
                teach(TeachConfig(cache=cache, teacher=str(teacher), sources=(str(corpus),), keep=cache.name))
            args.student = str(tiny_student(Path(room)))
            args.steps, args.repeats = WARM + 2, 1
        figures = run(args, Path(room))
    if args.json:
        print(json.dumps(figures))
    else:
        print("\n".join(f"{name:<52}{value:>14.6g}" for name, value in figures.items()))


def run(args: argparse.Namespace, room: Path) -> dict[str, float]:
    """Every figure by its name."""
    ways = {PLAIN: args.cache[0], HARD: args.cache[0]}
    for cache in args.cache:
        ways[f"rows {Cache.open(cache).row_kind}"] = cache
    if args.online:
        ways[ONLINE] = args.cache[0]
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    peaks: dict[str, list[float]] = {way: [] for way in ways}
    for repeat in range(args.repeats):
        for way, cache in ways.items():
            output = room / f"{repeat}-{way}".replace(" ", "-")
            a_step, peak = in_a_process(measured, way, cache, args.student, args.steps, args.online, output)
            seconds[way].append(a_step)
            peaks[way].append(peak / 1e6)
            print(f"{way}: {a_step:.3f} s a step, {peak / 1e6:.0f} MB", file=sys.stderr, flush=True)
    figures: dict[str, float] = {"plain_seconds_a_step": statistics.median(seconds[PLAIN])}
    for way in ways:
        ratios = [ours / plain for ours, plain in zip(seconds[way], seconds[PLAIN], strict=True)]
        figures[f"{way}_time_ratio"] = statistics.median(ratios)
        figures[f"{way}_time_ratio_least"], figures[f"{way}_time_ratio_most"] = min(ratios), max(ratios)
        figures[f"{way}_peak_mb"] = max(peaks[way])
        if args.online:
            theirs = zip(seconds[ONLINE], seconds[way], strict=True)
            figures[f"{way}_times_faster_than_online"] = statistics.median(a / b for a, b in theirs)
    return figures


def measured(
    way: str, cache: Path, student: str, steps: int, online: str | None, output: Path
) -> tuple[float, int]:
    """Seconds of a step, and the peak memory of the process that took them, in bytes."""
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    config = LearnConfig(
        cache=cache,
        output=output,
        student=student,
        type="output" if way in (PLAIN, HARD) else "logit",
        online=online if way == ONLINE else None,
        max_steps=steps,
        batch_size=BATCH_SIZE,
        packing=False,
        gradient_checkpointing=False,
        held_out=0.0,
        logging_every=1,
        device="cpu",
        dtype="fp32",
    )
    times = []
    if way == PLAIN:
        times = _plain(config)
    else:

        def hear(event: Event) -> None:
            if isinstance(event, Step):
                times.append(time.perf_counter())

        learn(config, on_event=hear)
    assert len(times) == steps
    spans = [b - a for a, b in zip(times[WARM - 1 :], times[WARM:], strict=False)]
    return statistics.median(spans), peak_bytes()


def _plain(config: LearnConfig) -> list[float]:
    """When each step of plain cross-entropy ended."""
    cache = Cache.open(config.cache)
    student = load_student(config.student, cache, seed=config.seed)
    train = CacheDataset(cache, split(cache, config.held_out, config.seed).train, rows=False)
    arguments = training_arguments(config, config.output, torch.float32, begins=True)
    batching = Batching(config.sequences_a_batch, config.batch_tokens, False)
    times: list[float] = []

    class Plain(Trainer):
        def get_train_dataloader(self) -> Any:
            batches = train_batches(train, arguments, batching)
            return loader(train, batches, packed=False, workers=0, pin_memory=False)

    class Clock(TrainerCallback):
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            times.append(time.perf_counter())

    trainer = Plain(model=student.model, args=arguments, train_dataset=train, callbacks=[Clock()])
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return times


if __name__ == "__main__":
    main()
