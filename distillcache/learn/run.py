"""`learn`: a cache and a student in, a trained student in a folder out; a teacher only if it is asked for.

Started again on the same folder, it goes on from the last checkpoint, or finds that all is done.
Of several ranks the first alone writes and reports.
Knows nothing of command lines, and never prints.
"""

import importlib.util
import itertools
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import TrainerState, TrainingArguments

from distillcache.config import check
from distillcache.device import dtype_name, pick_device, pick_dtype
from distillcache.errors import ConfigError
from distillcache.head import OutputHead
from distillcache.learn.arguments import is_first_rank, is_sharded, training_arguments
from distillcache.learn.card import model_card
from distillcache.learn.config import TYPES, LearnConfig
from distillcache.learn.data import Batching, CacheDataset, Split, sampled_at, split
from distillcache.learn.events import Done, Event, OnEvent, Started, Warned
from distillcache.learn.folder import RunFolder
from distillcache.learn.lora import add_lora
from distillcache.learn.objective import Objective
from distillcache.learn.online import OnlineTeacher, load_online_teacher, teacher_identity
from distillcache.learn.result import LearnResult
from distillcache.learn.schedule import Schedule
from distillcache.learn.stopping import EarlyStopping, best_checkpoint, has_stopped
from distillcache.learn.student import Student, load_student, student_identity
from distillcache.learn.trainer import LearnTrainer, train_batches
from distillcache.packing import can_pack, pack_attention, unpack_attention
from distillcache.quiet import quiet_transformers
from distillcache.tokenizer import text_bytes
from distillcache_shards.cache import Cache

__all__ = ["LearnResult", "learn"]

# Settings that two runs may differ in and yet be the same run. Of models weights count, not names.
NO_IDENTITY = (
    "cache", "output", "student", "online", "device", "workers",
    "eval_every", "save_every", "keep_last", "logging_every", "report_to", "overwrite",
)  # fmt: skip
PROBE_TOKENS = 64
PROBE_SEQUENCES = 4
TRAINER_STATE = "trainer_state.json"
ADAPTER = "adapter"  # of LoRA, beside the student that it is merged into


def learn(config: LearnConfig, *, on_event: OnEvent | None = None) -> LearnResult:
    """Train a student on a cache, and write it with its tokenizer and model card to `config.output`.

    `on_event` hears of every step that is reported, every evaluation and every warning, on the first rank.
    Raises ConfigError, StudentError, TeacherError and CacheError, one line each, for what the user can mend.
    """
    check(config)
    tell = on_event if on_event is not None and is_first_rank() else _silent
    cache = Cache.open(config.cache)
    cache.require_whole()
    objective = objective_of(config, cache)
    device = pick_device(config.device)
    dtype = pick_dtype(config.dtype, device)
    if dtype == torch.float16 and device.type == "cpu":
        raise ConfigError("--dtype: a CPU cannot train in fp16; take fp32, or bf16 where it is native")
    _check_reporters(config)
    _check_sharding(config)
    folder = RunFolder.open(config.output, run_identity(config, cache, dtype), overwrite=config.overwrite)
    if folder.result is not None:
        tell(Done(output=config.output, already=True))
        return LearnResult.from_dict(folder.result, config.output)

    checkpoint = folder.last_checkpoint()
    state = None if checkpoint is None else TrainerState.load_from_json(str(checkpoint / TRAINER_STATE))
    student = load_student(config.student, cache, seed=config.seed)
    adapter = None if config.lora_rank is None else add_lora(student, config)
    parts = split(cache, config.held_out, config.seed)
    probe = _probe(cache, parts)
    head = _head(student, probe[0][None], tell)
    with quiet_transformers():
        arguments = training_arguments(config, folder.checkpoints, dtype, begins=checkpoint is None)
        if arguments.n_gpu > 1:
            # Else Trainer would take torch's DataParallel, which cannot share out rows.
            tell(
                Warned(f"training on one of {arguments.n_gpu} GPUs; for all of them run `accelerate launch`")
            )
            arguments._n_gpu = 1
        teacher = _teacher(config, cache, probe, arguments, dtype, tell)
        packed = config.packing and _pack([head] if teacher is None else [head, teacher.head], probe, tell)
        batching = Batching(config.sequences_a_batch, config.batch_tokens, packed)
        train = CacheDataset(cache, parts.train, rows=objective.soft_loss is not None and teacher is None)
        num_steps = _num_steps(config, arguments, train, batching)
        # All that can be refused has been: from here on the folder is this run's.
        if is_first_rank():
            folder.begin()
        tell(
            Started(
                num_parameters=student.num_parameters,
                num_adapter_parameters=None if adapter is None else _num_trained(student),
                num_train=len(parts.train),
                num_held_out=len(parts.held_out),
                num_repeated=parts.num_repeated,
                num_steps=num_steps,
                first_step=0 if state is None else state.global_step,
                device=str(arguments.device),
                dtype=dtype_name(dtype),
                packed=packed,
                online=None if teacher is None else teacher.name,
            )
        )
        trainer = LearnTrainer(
            student,
            head,
            Schedule(objective, config.alpha_end, config.temperature_end, num_steps),
            arguments,
            train=train,
            held_out=CacheDataset(cache, parts.held_out, rows=True) if len(parts.held_out) else None,
            held_out_bytes=_text_bytes(cache, parts.held_out, student.tokenizer),
            batching=batching,
            on_event=tell,
            adapter=adapter,
            teacher=teacher,
            callbacks=() if config.early_stopping is None else (EarlyStopping(config.early_stopping),),
        )
        if is_sharded() and not trainer.is_fsdp_enabled:
            tell(Warned("accelerate does not shard (FSDP) on CPUs; every rank holds the whole student"))
        try:
            _train(trainer, config, checkpoint, state, num_steps)
            before, after = trainer.scores() or (None, None)
            result = LearnResult(
                output=config.output,
                num_parameters=student.num_parameters,
                num_steps=trainer.state.global_step,
                best_step=trainer.state.best_global_step,
                num_train=len(parts.train),
                num_held_out=len(parts.held_out),
                num_repeated=parts.num_repeated,
                tokens_per_second=trainer.tokens_per_second,
                before=before,
                after=after,
            )
            online = None if teacher is None else teacher.name
            name = config.output.resolve().name
            card = model_card(name, student.name, cache, config, trainer.schedule, result, online=online)
            _save(trainer, student, folder, card, result)
        finally:
            trainer.release()
            unpack_attention(student.model)
    tell(Done(output=config.output, already=False))
    return result


def objective_of(config: LearnConfig, cache: Cache) -> Objective:
    """What these settings minimise on this cache. Raises ConfigError for what its rows do not allow.

    A teacher in the loop allows everything: of its rows there is no need.
    """
    kind = cache.row_kind
    row_temperature, row_tau = sampled_at(cache)
    soft_loss = config.soft_loss
    temperature = TYPES[config.type][1] if config.temperature is None else config.temperature
    if kind == "sampled" and soft_loss is not None and config.online is None:
        if soft_loss != "forward-kl":
            raise ConfigError(
                f"--loss: sampled rows allow forward-kl alone, found {soft_loss}; "
                "leave it out, or teach a cache of topk rows"
            )
        for flag, value in (
            ("--temperature", config.temperature),
            ("--temperature-end", config.temperature_end),
        ):
            if value not in (None, row_temperature):
                raise ConfigError(
                    f"{flag}: these rows were sampled at {row_temperature:g}, found {value:g}; "
                    "leave it out, or teach another cache"
                )
        temperature = row_temperature
    return Objective(
        alpha=config.hard_weight,
        soft_loss=soft_loss,
        temperature=temperature,
        row_kind=kind,
        row_temperature=row_temperature,
        row_tau=row_tau,
    )


def run_identity(config: LearnConfig, cache: Cache, dtype: torch.dtype) -> dict[str, Any]:
    """What makes a run the one it is: the cache, the models, and every setting that moves a weight."""
    settings = {name: value for name, value in asdict(config).items() if name not in NO_IDENTITY}
    if config.early_stopping is not None:
        settings["eval_every"] = config.eval_every
    return {
        "cache": cache.plan_sha256,
        "student": student_identity(config.student),
        "online": None if config.online is None else teacher_identity(config.online),
        **settings,
        "dtype": dtype_name(dtype),
    }


def _silent(event: Event) -> None:
    """Nobody watches."""


def _check_reporters(config: LearnConfig) -> None:
    for name in config.report_to:
        if importlib.util.find_spec(name) is None:
            raise ConfigError(
                f"--report-to: the package {name} is not installed; pip install 'distillcache[{name}]'"
            )


def _check_sharding(config: LearnConfig) -> None:
    if config.lora_rank is not None and is_sharded():
        raise ConfigError(
            f"--lora-rank: cannot be merged into a student in parts (FSDP), found {config.lora_rank}; "
            "launch without FSDP: what is trained of LoRA is small"
        )


def _probe(cache: Cache, parts: Split) -> list[Tensor]:
    """The beginnings of a few sequences that the student learns from."""
    found = cache.read(parts.train[:PROBE_SEQUENCES], rows=False)
    return [
        torch.from_numpy(found.tokens[start : min(end, start + PROBE_TOKENS)].astype("int64"))
        for start, end in itertools.pairwise(found.token_offsets)
    ]


def _head(student: Student, probe_ids_BT: Tensor, tell: OnEvent) -> OutputHead:
    student.model.eval()  # type: ignore[no-untyped-call]
    head = OutputHead.of(student.model, probe_ids_BT)
    if head.warning is not None:
        tell(Warned(head.warning))
    return head


def _teacher(
    config: LearnConfig,
    cache: Cache,
    probe: Sequence[Tensor],
    arguments: TrainingArguments,
    dtype: torch.dtype,
    tell: OnEvent,
) -> OnlineTeacher | None:
    if config.online is None:
        return None
    teacher = load_online_teacher(
        config.online, cache, dtype=dtype, device=arguments.device, probe_ids_BT=probe[0][None]
    )
    for warning in (teacher.warning, teacher.head.warning):
        if warning is not None:
            tell(Warned(warning))
    return teacher


def _pack(heads: Sequence[OutputHead], probe: Sequence[Tensor], tell: OnEvent) -> bool:
    """Have the models attend to packed sequences one by one, if all of them can; else none does."""
    for head in heads:
        if head.whole_logits or not pack_attention(head.model) or not can_pack(head, probe):
            for each in heads:
                unpack_attention(each.model)
            tell(
                Warned(
                    f"{type(head.model).__name__} does not keep packed sequences apart; "
                    "batches of like lengths are padded instead, as with --no-packing"
                )
            )
            return False
    return True


def _text_bytes(cache: Cache, indices: NDArray[np.int64], tokenizer: Any) -> int:
    """Of the text that the supervised tokens of these sequences stand for."""
    total = 0
    for index in indices:
        found = cache.read([index], rows=False)
        total += text_bytes(tokenizer, found.tokens, found.supervised)
    return total


def _num_trained(student: Student) -> int:
    return sum(each.numel() for each in student.model.parameters() if each.requires_grad)


def _num_steps(
    config: LearnConfig, arguments: TrainingArguments, train: CacheDataset, batching: Batching
) -> int:
    """Steps of the optimiser in the whole run. Raises ConfigError if warm-up would take them all."""
    batches = len(train_batches(train, arguments, batching))
    epochs = 1.0 if config.epochs is None else config.epochs
    num_steps = config.max_steps or math.ceil(epochs * math.ceil(batches / config.gradient_accumulation))
    if config.warmup_steps >= num_steps:
        raise ConfigError(
            f"--warmup-steps: must be below the {num_steps:,} steps of this run, "
            f"found {config.warmup_steps:,}"
        )
    return num_steps


def _train(
    trainer: LearnTrainer,
    config: LearnConfig,
    checkpoint: Path | None,
    state: TrainerState | None,
    num_steps: int,
) -> None:
    """Train to the last step, from a checkpoint if there is one; then load the best student, if it counts."""
    patience = config.early_stopping
    if checkpoint is None or state is None:
        trainer.train()
    elif state.global_step < num_steps and not (patience and has_stopped(state, patience)):
        trainer.train(resume_from_checkpoint=str(checkpoint))
    else:
        # Stopped between the last step and the end; Trainer would take one step more.
        if trainer.is_fsdp_enabled:
            # Takes the student apart.
            trainer._prepare_for_training(num_steps, None, None)  # type: ignore[no-untyped-call]
        trainer._load_from_checkpoint(str(checkpoint))
        trainer.state = state
    if trainer.state.best_global_step is not None:
        trainer._load_from_checkpoint(str(best_checkpoint(Path(str(trainer.args.output_dir)), trainer.state)))


def _save(trainer: LearnTrainer, student: Student, folder: RunFolder, card: str, result: LearnResult) -> None:
    """Write the student, its tokenizer and its card, and only then put them where they are looked for."""
    is_first = trainer.is_world_process_zero()
    fresh = folder.fresh() if is_first else folder.folder / "never"
    trainer.release()
    if trainer.adapter is None:
        if trainer.is_fsdp_enabled:
            # Checkpoints may be in parts, a student may not.
            trainer.accelerator.state.fsdp_plugin.set_state_dict_type("FULL_STATE_DICT")
        trainer.save_model(str(fresh))
    elif is_first:
        trainer.adapter.save(fresh / ADAPTER)
        trainer.adapter.merge().save_pretrained(str(fresh))
        student.tokenizer.save_pretrained(str(fresh))
    if is_first:
        (fresh / "training_args.bin").unlink(missing_ok=True)  # a pickle, of this machine's settings
        (fresh / "README.md").write_text(card, encoding="utf-8")
        folder.publish(fresh, result.to_dict())
