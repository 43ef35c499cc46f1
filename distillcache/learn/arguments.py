"""The settings of a run in the words of transformers' Trainer.

Knows nothing of caches or students.
"""

import os
from pathlib import Path

import torch
from transformers import TrainingArguments

from distillcache.device import pick_device
from distillcache.learn.config import LearnConfig

__all__ = ["is_first_rank", "is_sharded", "training_arguments"]

SCHEDULES = {"linear": "linear", "cosine": "cosine", "constant": "constant_with_warmup"}
NEVER = 1 << 62  # steps


def training_arguments(
    config: LearnConfig, checkpoints: Path, dtype: torch.dtype, *, begins: bool
) -> TrainingArguments:
    """Of a run that begins or goes on. Joins the other ranks, if there are some."""
    checkpointing = config.gradient_checkpointing
    return TrainingArguments(
        output_dir=str(checkpoints),
        # For what Trainer says of itself alone: batches are ours.
        per_device_train_batch_size=config.sequences_a_batch or 1,
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
        activation_checkpointing=checkpointing,
        activation_checkpointing_kwargs={"use_reentrant": False} if checkpointing else None,
        # By Trainer, before the first step and after the last, so that trackers hear of it as of all else.
        eval_strategy="steps" if config.held_out else "no",
        eval_steps=config.eval_every or NEVER,
        eval_on_start=bool(config.held_out) and begins,
        metric_for_best_model=None if config.early_stopping is None else "loss",
        greater_is_better=None if config.early_stopping is None else False,
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


def is_sharded() -> bool:
    """True if the student is spread over the ranks (FSDP), of which the launcher tells by a variable."""
    return os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"


def is_first_rank() -> bool:
    """True for the one process that writes and reports; the launcher says so by a variable."""
    return os.environ.get("RANK", "0") == "0"
