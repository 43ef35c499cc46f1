"""transformers' Trainer, with our loss, our batches, and what there is to report.

Checkpoints, mixed precision, accumulation, schedules, resuming and trackers are its own.
Losses are summed over rows and divided by the rows of the whole step, over accumulation and ranks: every
supervised token weighs the same, wherever it stands.
Knows nothing of folders, cards or what was asked for on a command line.
"""

import contextlib
import functools
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_utils import EvalLoopOutput

from distillcache.errors import StudentError
from distillcache.head import OutputHead
from distillcache.learn.data import IGNORED, Batching, CacheDataset, TrainBatches, batches_in_order, loader
from distillcache.learn.events import Evaluated, OnEvent, Step
from distillcache.learn.lora import Adapter
from distillcache.learn.objective import SUMS, batch_sums
from distillcache.learn.online import OnlineTeacher
from distillcache.learn.schedule import Schedule
from distillcache.learn.scores import NUM_SCORE_SUMS, Scores, score_sums, scores
from distillcache.learn.student import Student
from distillcache.metrics import perplexity

__all__ = ["LearnTrainer", "train_batches"]


class LearnTrainer(Trainer):
    """Trains a student on a cache.

    While it exists, the student's `forward` answers a batch with labels by our sums; `release` ends that.
    """

    loss_is_scaled_for_ga = True

    def __init__(
        self,
        student: Student,
        head: OutputHead,
        schedule: Schedule,
        arguments: TrainingArguments,
        *,
        train: CacheDataset,
        held_out: CacheDataset | None,
        held_out_bytes: int,
        batching: Batching,
        on_event: OnEvent,
        adapter: Adapter | None = None,
        teacher: OnlineTeacher | None = None,
        callbacks: Sequence[TrainerCallback] = (),
    ) -> None:
        self.head = head
        self.schedule = schedule
        self.held_out_bytes = held_out_bytes
        self.batching = batching
        self.on_event = on_event
        self.adapter = adapter
        self.teacher = teacher
        self._window: Tensor | None = None  # sums and tokens since the last report
        self._window_started = time.perf_counter()
        self._trained_seconds = 0.0
        self._trained_tokens = 0.0
        # On the instance, so that whatever wraps the model (DDP, autocast) wraps our loss too. Not a bound
        # method, which accelerate would bind to the model.
        self._model_forward = student.model.forward
        student.model.forward = functools.partial(self._forward)
        super().__init__(
            model=student.model,
            args=arguments,
            train_dataset=train,
            eval_dataset=held_out,
            processing_class=student.tokenizer,
            callbacks=[_Reports(self), *callbacks],
        )
        # The count of targets in a step is asked for under this name.
        self.model_accepts_loss_kwargs = True
        self.remove_callback(PrinterCallback)

    @property
    def tokens_per_second(self) -> float | None:
        """Tokens trained on in a second of training and reading, of all ranks; None before the first step."""
        return self._trained_tokens / self._trained_seconds if self._trained_seconds else None

    def scores(self) -> tuple[Scores, Scores] | None:
        """Before the first step and of the student that is kept, also of a run that went on.

        None if nothing is held out.
        """
        found = [each for each in self.state.log_history if "eval_hard_loss" in each]
        if not found:
            return None
        best = self.state.best_global_step
        last = found[-1] if best is None else next(each for each in found[1:] if each["step"] == best)
        return _scores_of(found[0]), _scores_of(last)

    def release(self) -> None:
        """Give the student its own forward back."""
        for name in ("forward", "_original_forward"):
            self.head.model.__dict__.pop(name, None)

    def _forward(self, *args: Any, **inputs: Any) -> Any:
        if "labels" not in inputs:
            return self._model_forward(*args, **inputs)
        training = self.head.model.training
        if not (inputs["labels"][:, 1:] != IGNORED).any():
            idle = self._idle(inputs)
            return idle if training else {"sums": torch.zeros(NUM_SCORE_SUMS)}
        if not training:
            # Against the rows of the cache, also where a teacher is in the loop.
            return {"sums": score_sums(self.head, self.schedule.on_rows, inputs)}
        teacher = self.teacher
        loss, sums = batch_sums(
            self.head,
            self.schedule.at(self.state.global_step),
            inputs,
            teacher=None if teacher is None else teacher.head,
            num_ids=None if teacher is None else teacher.num_ids,
        )
        # A copy: FSDP hooks itself to the output, which must be no view.
        return {"loss": loss.clone(), "sums": sums}

    def _idle(self, inputs: Mapping[str, Any]) -> Any:
        """Nothing to learn, by way of all weights: other ranks wait for their gradients."""
        first = torch.zeros(1, dtype=torch.long, device=inputs["labels"].device)
        ids_BT, mask_BT = inputs["input_ids"][:1], inputs.get("attention_mask")
        mask_BT = None if mask_BT is None else mask_BT[:1]
        (logits_1V,) = self.head.rows_logits(ids_BT, mask_BT, first, first, 1)
        return {"loss": 0.0 * logits_1V.sum(), "sums": logits_1V.new_zeros(len(SUMS))}

    def get_train_dataloader(self) -> DataLoader[Any]:
        assert isinstance(self.train_dataset, CacheDataset)
        return self._loader(self.train_dataset, train_batches(self.train_dataset, self.args, self.batching))

    def get_eval_dataloader(self, eval_dataset: str | Dataset[Any] | None = None) -> DataLoader[Any]:
        dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        assert isinstance(dataset, CacheDataset)
        batches = batches_in_order(
            dataset.lengths,
            batch_size=self.batching.batch_size,
            batch_tokens=self.batching.batch_tokens,
            rank=self.args.process_index,
            num_ranks=self.args.world_size,
        )
        return self._loader(dataset, batches)

    def _loader(self, dataset: CacheDataset, batches: TrainBatches | list[list[int]]) -> DataLoader[Any]:
        return loader(
            dataset,
            batches,
            packed=self.batching.packed,
            workers=self.args.dataloader_num_workers,
            pin_memory=self.args.device.type == "cuda",
        )

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        assert num_items_in_batch is not None and not return_outputs
        outputs = model(**inputs)
        mask_BT = inputs.get("attention_mask")
        tokens = inputs["input_ids"].numel() if mask_BT is None else int(mask_BT.sum())
        window = torch.cat([outputs["sums"], outputs["sums"].new_full((1,), tokens)])
        self._window = window if self._window is None else self._window + window
        # Ranks average their gradients, and the count is that of all of them.
        return outputs["loss"] / num_items_in_batch * self.accelerator.num_processes

    def evaluation_loop(
        self,
        dataloader: DataLoader[Any],
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Scores over all held-out rows, each row once, whichever batch it stands in."""
        model = self.model
        assert isinstance(model, torch.nn.Module)
        model.eval()
        total = torch.zeros(NUM_SCORE_SUMS, dtype=torch.float64)
        with torch.no_grad(), self.accelerator.autocast():
            for inputs in dataloader:
                total += model(**self._prepare_inputs(inputs))["sums"]
        total = torch.tensor(self._over_ranks(total), dtype=torch.float64)
        loss, means = scores(total, self.held_out_bytes)
        found = {"loss": loss, **asdict(means)}
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in found.items() if value is not None}
        return EvalLoopOutput(
            predictions=np.zeros(0),
            label_ids=None,
            metrics=metrics,
            num_samples=self.num_examples(dataloader),
        )

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        with self._paused():
            return super().evaluate(*args, **kwargs)

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        with self._paused():
            super()._save_checkpoint(*args, **kwargs)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """Of a student with an adapter, a checkpoint holds the adapter alone."""
        if self.adapter is None:
            super()._save(output_dir, state_dict)
        elif self.args.should_save:
            assert output_dir is not None
            self.adapter.save(Path(output_dir))

    def _load_from_checkpoint(
        self, resume_from_checkpoint: str, model: torch.nn.Module | None = None
    ) -> None:
        if self.adapter is None:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        else:
            self.adapter.load(Path(resume_from_checkpoint))

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds what was summed since the last report of training steps."""
        if "learning_rate" in logs:
            logs.update(self._report())
        elif "train_runtime" in logs and self._window is not None:
            self._report()  # of the last steps, so that they count in tokens a second
        super().log(logs, start_time)

    def _report(self) -> dict[str, float]:
        assert self._window is not None
        *sums, tokens = self._over_ranks(self._window)
        seconds = time.perf_counter() - self._window_started
        self._window = None
        self._window_started += seconds
        self._trained_seconds += seconds
        self._trained_tokens += tokens
        means = {name: value / sums[SUMS.index("rows")] for name, value in zip(SUMS, sums, strict=True)}
        report = {"hard_loss": means["hard"], "perplexity": perplexity(means["hard"])}
        if self.schedule.start.soft_loss is not None:
            report |= {"soft_loss": means["soft"], "kl": means["kl"]}
        if self.schedule.moves:
            # Of the step that is reported.
            objective = self.schedule.at(self.state.global_step - 1)
            report |= {"alpha": objective.alpha, "temperature": objective.temperature}
        return {**report, "tokens_per_second": tokens / max(seconds, 1e-9)}

    def _over_ranks(self, sums: Tensor) -> list[float]:
        if self.accelerator.num_processes > 1:
            # The sum of a window in the dtype that every device has.
            sums = self.accelerator.reduce(sums.float().to(self.args.device), reduction="sum")
        found: list[float] = sums.tolist()
        return found

    @contextlib.contextmanager
    def _paused(self) -> Iterator[None]:
        """What is not training does not count in tokens a second."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self._window_started += time.perf_counter() - start


def train_batches(dataset: CacheDataset, arguments: TrainingArguments, batching: Batching) -> TrainBatches:
    """The batches of this rank."""
    return TrainBatches(
        dataset.lengths,
        batching=batching,
        seed=arguments.seed,
        rank=arguments.process_index,
        num_ranks=arguments.world_size,
    )


class _Reports(TrainerCallback):
    """Trainer's reports as events, on the first rank."""

    def __init__(self, trainer: LearnTrainer) -> None:
        self.trainer = trainer

    def on_train_begin(self, args: TrainingArguments, state: Any, control: Any, **_: Any) -> None:
        # A checkpoint brings the intervals of its own run; those asked for now hold.
        state.compute_steps(args, state.max_steps)
        self.trainer._window_started = time.perf_counter()

    def on_log(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        logs: Mapping[str, float] = kwargs["logs"]
        if "learning_rate" not in logs:
            return
        if not math.isfinite(logs["loss"]):
            raise StudentError(
                f"step {state.global_step}: the loss is no number; found {logs['loss']}; lower "
                "--learning-rate, or take --dtype bf16 or fp32"
            )
        if state.is_world_process_zero:
            self.trainer.on_event(
                Step(
                    step=state.global_step,
                    num_steps=state.max_steps,
                    loss=logs["loss"],
                    hard_loss=logs["hard_loss"],
                    soft_loss=logs.get("soft_loss"),
                    perplexity=logs["perplexity"],
                    kl=logs.get("kl"),
                    learning_rate=logs["learning_rate"],
                    grad_norm=logs.get("grad_norm", math.nan),
                    tokens_per_second=logs["tokens_per_second"],
                    alpha=logs.get("alpha"),
                    temperature=logs.get("temperature"),
                )
            )

    def on_evaluate(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            self.trainer.on_event(Evaluated(step=state.global_step, scores=_scores_of(kwargs["metrics"])))


def _scores_of(metrics: Mapping[str, Any]) -> Scores:
    """Scores from a line of Trainer's log; None is not logged."""
    values: dict[str, Any] = {each.name: metrics.get(f"eval_{each.name}") for each in fields(Scores)}
    return Scores(**values)
