"""Early stopping: training ends once held-out loss has not fallen for some evaluations; the best is kept.

All that it knows is in Trainer's state, so that a run that goes on stops where it would have stopped.
Knows nothing of what the loss is.
"""

from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

__all__ = ["EarlyStopping", "best_checkpoint", "has_stopped"]


class EarlyStopping(TrainerCallback):
    """Has a checkpoint written at each evaluation that is the best so far, and where training ends.

    Trainer itself notes the best one in its state, and spares it when it removes old ones.
    The student before its first step has no checkpoint, and so is never the best.
    """

    def __init__(self, patience: int) -> None:
        self.patience = patience

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Trainer notes a whole path: the folder may have moved since."""
        if state.best_global_step is not None:
            state.best_model_checkpoint = str(best_checkpoint(Path(str(args.output_dir)), state))

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        loss = kwargs["metrics"]["eval_loss"]
        if state.global_step == 0:
            return
        if state.best_metric is None or loss < state.best_metric:
            control.should_save = True
        elif has_stopped(state, self.patience):
            control.should_save = control.should_training_stop = True


def has_stopped(state: TrainerState, patience: int) -> bool:
    """True if so many evaluations came after the best."""
    since = [
        each
        for each in state.log_history
        if "eval_loss" in each and int(each["step"]) > (state.best_global_step or 0)
    ]
    return state.best_global_step is not None and len(since) >= patience


def best_checkpoint(checkpoints: Path, state: TrainerState) -> Path:
    """Where it lies, among all checkpoints."""
    return checkpoints / f"checkpoint-{state.best_global_step}"
