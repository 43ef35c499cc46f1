"""`learn`: a cache and a student in, a trained student in a folder out; no teacher anywhere.

Started again on the same folder, it goes on from the last checkpoint, or finds that all is done.
Knows nothing of command lines, and never prints.
"""

import importlib.util
import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerState, TrainingArguments

from distillcache.config import check
from distillcache.device import dtype_name, pick_device, pick_dtype
from distillcache.errors import ConfigError
from distillcache.head import OutputHead
from distillcache.learn.card import model_card
from distillcache.learn.config import TYPES, LearnConfig
from distillcache.learn.data import CacheDataset, Split, split
from distillcache.learn.events import Done, Event, OnEvent, Started, Warned
from distillcache.learn.folder import RunFolder
from distillcache.learn.objective import Objective
from distillcache.learn.result import LearnResult
from distillcache.learn.student import Student, load_student, student_identity
from distillcache.learn.trainer import LearnTrainer, train_batches
from distillcache.quiet import quiet_transformers
from distillcache_shards.cache import Cache
from distillcache_shards.errors import MissingShardError

__all__ = ["LearnResult", "learn"]

# Settings that two runs may differ in and yet be the same run.
NO_IDENTITY = (
    "cache", "output", "student", "device", "workers",
    "eval_every", "save_every", "keep_last", "logging_every", "report_to", "overwrite",
)  # fmt: skip
SCHEDULES = {"linear": "linear", "cosine": "cosine", "constant": "constant_with_warmup"}
PROBE_TOKENS = 64
NEVER = 1 << 62  # steps
TRAINER_STATE = "trainer_state.json"


def learn(config: LearnConfig, *, on_event: OnEvent | None = None) -> LearnResult:
    """Train a student on a cache, and write it with its tokenizer and model card to `config.output`.

    `on_event` hears of every step that is reported, every evaluation and every warning.
    Raises ConfigError, StudentError and CacheError, one line each, for what the user can mend.
    """
    check(config)
    tell = on_event or _silent
    cache = _open(config.cache)
    objective = objective_of(config, cache)
    device = pick_device(config.device)
    dtype = pick_dtype(config.dtype, device)
    if dtype == torch.float16 and device.type == "cpu":
        raise ConfigError("--dtype: a CPU cannot train in fp16; take fp32, or bf16 where it is native")
    _check_reporters(config)
    identity = run_identity(config, cache, dtype)
    folder = RunFolder.open(config.output, identity, overwrite=config.overwrite)
    if folder.result is not None:
        tell(Done(output=config.output, already=True))
        return LearnResult.from_dict(folder.result, config.output)

    checkpoint = folder.last_checkpoint()
    first_step = _step_of(checkpoint)
    student = load_student(config.student, cache, seed=config.seed)
    parts = split(cache, config.held_out, config.seed)
    head = _head(student, cache, parts, tell)
    train = CacheDataset(cache, parts.train, rows=objective.soft_loss is not None)
    with quiet_transformers():
        arguments = _arguments(config, folder, dtype, tell, is_first=checkpoint is None)
        num_steps = _num_steps(config, arguments, train)
        # All that can be refused has been: from here on the folder is this run's.
        if arguments.process_index == 0:
            folder.begin()
            tell(
                Started(
                    num_parameters=student.num_parameters,
                    num_train=len(parts.train),
                    num_held_out=len(parts.held_out),
                    num_repeated=parts.num_repeated,
                    num_steps=num_steps,
                    first_step=first_step,
                    device=str(arguments.device),
                    dtype=dtype_name(dtype),
                )
            )
        trainer = LearnTrainer(
            student,
            head,
            objective,
            arguments,
            train=train,
            held_out=CacheDataset(cache, parts.held_out, rows=True) if len(parts.held_out) else None,
            batch_tokens=config.batch_tokens,
            on_event=tell,
        )
        try:
            _train(trainer, checkpoint, first_step, num_steps)
            before, after = trainer.scores() or (None, None)
            result = LearnResult(
                output=config.output,
                num_parameters=student.num_parameters,
                num_steps=num_steps,
                num_train=len(parts.train),
                num_held_out=len(parts.held_out),
                num_repeated=parts.num_repeated,
                tokens_per_second=trainer.tokens_per_second,
                before=before,
                after=after,
            )
            card = model_card(config.output.resolve().name, student.name, cache, config, objective, result)
            _save(trainer, folder, card, result)
        finally:
            trainer.release()
    if trainer.is_world_process_zero():
        tell(Done(output=config.output, already=False))
    return result


def objective_of(config: LearnConfig, cache: Cache) -> Objective:
    """What these settings minimise on this cache. Raises ConfigError for what its rows do not allow."""
    kind = cache.row_kind
    row_temperature = float(cache.plan["rows"].get("temperature", 1.0)) if kind == "sampled" else 1.0
    soft_loss = config.soft_loss
    temperature = TYPES[config.type][1] if config.temperature is None else config.temperature
    if kind == "sampled" and soft_loss is not None:
        if soft_loss != "forward-kl":
            raise ConfigError(
                f"--loss: sampled rows allow forward-kl alone, found {soft_loss}; "
                "leave it out, or teach a cache of topk rows"
            )
        if config.temperature not in (None, row_temperature):
            raise ConfigError(
                f"--temperature: these rows were sampled at {row_temperature:g}, found {temperature:g}; "
                "leave it out, or teach another cache"
            )
        temperature = row_temperature
    return Objective(
        alpha=config.hard_weight,
        soft_loss=soft_loss,
        temperature=temperature,
        row_kind=kind,
        row_temperature=row_temperature,
    )


def run_identity(config: LearnConfig, cache: Cache, dtype: torch.dtype) -> dict[str, Any]:
    """What makes a run the one it is: the cache, the student, and every setting that moves a weight."""
    settings = {name: value for name, value in asdict(config).items() if name not in NO_IDENTITY}
    return {
        "cache": cache.plan_sha256,
        "student": student_identity(config.student),
        **settings,
        "dtype": dtype_name(dtype),
    }


def _silent(event: Event) -> None:
    """Nobody watches."""


def _open(folder: Path) -> Cache:
    cache = Cache.open(folder)
    missing = cache.missing_shards()
    if missing:
        raise MissingShardError(
            f"{folder}: {len(missing)} of {cache.num_shards} shards are not taught yet; "
            "finish it by the same `distillcache teach` on this folder"
        )
    return cache


def _check_reporters(config: LearnConfig) -> None:
    for name in config.report_to:
        if importlib.util.find_spec(name) is None:
            raise ConfigError(
                f"--report-to: the package {name} is not installed; pip install 'distillcache[{name}]'"
            )


def _step_of(checkpoint: Path | None) -> int:
    if checkpoint is None:
        return 0
    return int(json.loads((checkpoint / TRAINER_STATE).read_bytes())["global_step"])


def _head(student: Student, cache: Cache, parts: Split, tell: OnEvent) -> OutputHead:
    tokens = cache.read(parts.train[:1], rows=False).tokens[:PROBE_TOKENS]
    student.model.eval()  # type: ignore[no-untyped-call]
    head = OutputHead.of(student.model, torch.from_numpy(tokens.astype("int64"))[None])
    if head.warning is not None:
        tell(Warned(head.warning))
    return head


def _arguments(
    config: LearnConfig, folder: RunFolder, dtype: torch.dtype, tell: OnEvent, *, is_first: bool
) -> TrainingArguments:
    arguments = TrainingArguments(
        output_dir=str(folder.checkpoints),
        per_device_train_batch_size=config.batch_size,
        gradient_accumulation_steps=config.gradient_accumulation,
        num_train_epochs=1.0 if config.epochs is None else config.epochs,
        max_steps=-1 if config.max_steps is None else config.max_steps,
        learning_rate=config.learning_rate,
        warmup_steps=config.warmup_steps,
        lr_scheduler_type=SCHEDULES[config.schedule],
        weight_decay=config.weight_decay,
        max_grad_norm=0.0 if config.max_grad_norm is None else config.max_grad_norm,
        bf16=dtype == torch.bfloat16,
        fp16=dtype == torch.float16,
        activation_checkpointing=config.gradient_checkpointing,
        activation_checkpointing_kwargs={"use_reentrant": False} if config.gradient_checkpointing else None,
        # By Trainer, before the first step and after the last, so that trackers hear of it as of all else.
        eval_strategy="steps" if config.held_out else "no",
        eval_steps=config.eval_every or NEVER,
        eval_on_start=bool(config.held_out) and is_first,
        save_strategy="steps",
        save_steps=config.save_every,
        save_total_limit=config.keep_last,
        logging_steps=config.logging_every,
        logging_nan_inf_filter=False,  # a loss that is no number is to be seen
        report_to=list(config.report_to),
        disable_tqdm=True,
        log_level="critical",
        log_level_replica="critical",
        seed=config.seed,
        use_cpu=pick_device(config.device).type == "cpu",
        dataloader_num_workers=config.workers,
        remove_unused_columns=False,
        use_cache=True,  # of the student when it generates; in training it is turned off call by call
    )
    if arguments.n_gpu > 1:
        # Else Trainer would take torch's DataParallel, which cannot share out rows.
        tell(Warned(f"training on one of {arguments.n_gpu} GPUs; for all of them run `accelerate launch`"))
        arguments._n_gpu = 1
    return arguments


def _num_steps(config: LearnConfig, arguments: TrainingArguments, train: CacheDataset) -> int:
    """Steps of the optimiser in the whole run. Raises ConfigError if warm-up would take them all."""
    batches = len(train_batches(train, arguments, config.batch_tokens))
    epochs = 1.0 if config.epochs is None else config.epochs
    num_steps = config.max_steps or math.ceil(epochs * math.ceil(batches / config.gradient_accumulation))
    if config.warmup_steps >= num_steps:
        raise ConfigError(
            f"--warmup-steps: must be below the {num_steps:,} steps of this run, "
            f"found {config.warmup_steps:,}"
        )
    return num_steps


def _train(trainer: LearnTrainer, checkpoint: Path | None, first_step: int, num_steps: int) -> None:
    """Train to the last step, from a checkpoint if there is one."""
    if checkpoint is None:
        trainer.train()
    elif first_step < num_steps:
        trainer.train(resume_from_checkpoint=str(checkpoint))
    else:
        # Stopped between the last step and the end; Trainer would take one step more.
        trainer._load_from_checkpoint(str(checkpoint))
        trainer.state = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE))


def _save(trainer: LearnTrainer, folder: RunFolder, card: str, result: LearnResult) -> None:
    """Write the student, its tokenizer and its card, and only then put them where they are looked for."""
    is_first = trainer.is_world_process_zero()
    fresh = folder.fresh() if is_first else folder.folder / "never"
    trainer.release()
    trainer.save_model(str(fresh))
    if is_first:
        (fresh / "training_args.bin").unlink(missing_ok=True)  # a pickle, of this machine's settings
        (fresh / "README.md").write_text(card, encoding="utf-8")
        folder.publish(fresh, result.to_dict())
