"""Settings of `distillcache learn`: the cache, the student, what is minimised, and for how long.

Settings that would be ignored are refused.
Knows neither torch nor transformers; what only a cache can refuse, such as a loss for its kind of row, is
refused when it is opened.
"""

from dataclasses import dataclass
from pathlib import Path

from distillcache.config import setting
from distillcache.errors import ConfigError

__all__ = ["LOSSES", "REPORTERS", "TYPES", "LearnConfig"]

LOSSES = ("forward-kl", "reverse-kl", "js", "renormalised")
SCHEDULES = ("linear", "cosine", "constant")
REPORTERS = ("tensorboard", "trackio", "wandb")
# alpha and temperature of each type, where none are given.
TYPES = {"output": (1.0, 1.0), "logit": (0.5, 2.0), "hybrid": (0.3, 2.5)}


@dataclass(frozen=True, kw_only=True)
class LearnConfig:
    """How a student learns from a cache.

    total = alpha * cross-entropy with the next token + (1 - alpha) * divergence from the teacher
    """

    cache: Path = setting(positional=True, help="Cache folder that `distillcache teach` made.")
    output: Path = setting(help="Folder of the student, its checkpoints and its model card.")
    student: str = setting(
        help="A new one: a TOML file as in configs/student. One to continue: a model folder or hub name."
    )
    type: str = setting(
        "logit",
        help="`output`: the text alone; `logit`, `hybrid`: the teacher's rows too, with other alpha and T.",
        choices=tuple(TYPES),
    )
    alpha: float | None = setting(
        None,
        help="Weight of the cross-entropy; the soft loss has the rest. By type: 1, 0.5, 0.3.",
        minimum=0,
        maximum=1,
    )
    temperature: float | None = setting(
        None, help="Temperature of the soft loss. By type: none, 2, 2.5; of sampled rows their own.", above=0
    )
    alpha_end: float | None = setting(
        None, help="Alpha of the last step, reached in a straight line.", minimum=0, maximum=1
    )
    temperature_end: float | None = setting(
        None, help="Temperature of the last step, reached in a straight line.", above=0
    )
    loss: str | None = setting(None, help="The soft loss: forward-kl unless given.", choices=LOSSES)
    online: str | None = setting(
        None,
        help="A teacher to learn from in place of the rows: a model folder, hub name or .gguf file.",
    )

    epochs: float | None = setting(None, help="Passes over the cache: 1 unless steps are given.", above=0)
    max_steps: int | None = setting(None, help="Steps of the optimiser, in place of --epochs.", minimum=1)
    batch_size: int | None = setting(
        None, help="Most sequences of a batch, on each device: 8 unless --batch-tokens is given.", minimum=1
    )
    batch_tokens: int | None = setting(
        None, help="Most tokens of a batch, padding included; a longer sequence stands alone.", minimum=2
    )
    packing: bool = setting(
        True, help="Batches without padding, of any lengths, where the student can keep sequences apart."
    )
    gradient_accumulation: int = setting(1, help="Batches of one step.", minimum=1)
    learning_rate: float = setting(1e-4, help="Learning rate after warm-up (AdamW).", above=0)
    warmup_steps: int = setting(0, help="Steps in which the learning rate rises from 0.", minimum=0)
    schedule: str = setting("linear", help="What it does afterwards, until the last step.", choices=SCHEDULES)
    weight_decay: float = setting(0.01, help="Weight decay; norms and biases have none.", minimum=0)
    max_grad_norm: float | None = setting(1.0, help="Longest gradient; a longer one is scaled down.", above=0)
    seed: int = setting(42, help="Of a new student, the held-out choice and the order.", minimum=0)

    lora_rank: int | None = setting(
        None, help="Train LoRA adapters of this rank, not the whole student; merged in the end.", minimum=1
    )
    lora_alpha: float | None = setting(
        None, help="Their scale, over the rank: twice the rank unless given.", above=0
    )
    lora_dropout: float | None = setting(
        None, help="Dropout before them: none unless given.", minimum=0, below=1
    )
    lora_targets: tuple[str, ...] = setting(
        (), help="Layers that get one, by the ends of their names; all linear ones but the output head."
    )

    device: str = setting(
        "auto",
        help="Where to train; several GPUs: `accelerate launch`.",
        choices=("auto", "cpu", "cuda", "mps"),
    )
    dtype: str = setting(
        "auto",
        help="Of mixed precision; weights are fp32. `auto`: the fastest that the device has natively.",
        choices=("auto", "bf16", "fp16", "fp32"),
    )
    gradient_checkpointing: bool = setting(True, help="Compute activations again, to save their memory.")
    workers: int = setting(0, help="Processes that read the cache; 0 reads in the trainer's own.", minimum=0)

    held_out: float = setting(
        0.05, help="Share of the records that is not trained on, but evaluated.", minimum=0, below=1
    )
    eval_every: int | None = setting(
        None, help="Steps between evaluations; else before and after alone.", minimum=1
    )
    early_stopping: int | None = setting(
        None,
        help="Stop after so many evaluations without a lower held-out loss, and keep the best student.",
        minimum=1,
    )
    save_every: int = setting(1000, help="Steps between checkpoints.", minimum=1)
    keep_last: int | None = setting(3, help="Checkpoints to keep; `none` keeps all.", minimum=1)
    logging_every: int = setting(10, help="Steps between reports.", minimum=1)
    report_to: tuple[str, ...] = setting((), help="Trackers that get the reports.", choices=REPORTERS)
    overwrite: bool = setting(False, help="Start anew in a folder that holds another run of `learn`.")

    def __post_init__(self) -> None:
        if self.type == "output":
            given = {
                "--temperature": self.temperature,
                "--temperature-end": self.temperature_end,
                "--alpha-end": self.alpha_end,
                "--loss": self.loss,
                "--online": self.online,
            }
            for flag, value in given.items():
                if value is not None:
                    raise ConfigError(
                        f"{flag}: has no use with --type output, which has no soft loss, found {value}; "
                        "leave it out, or take --type logit"
                    )
            if self.alpha not in (None, 1.0):
                raise ConfigError(
                    f"--alpha: must be 1 with --type output, which has no soft loss, found {self.alpha}; "
                    "take --type logit"
                )
        elif self.alpha == 1 and self.alpha_end in (None, 1.0):
            raise ConfigError(
                f"--alpha: must be below 1 with --type {self.type}, found 1; take --type output"
            )
        if self.epochs is not None and self.max_steps is not None:
            raise ConfigError(
                f"--max-steps: must not stand beside --epochs, found {self.max_steps} and {self.epochs:g}"
            )
        if self.max_steps is not None and self.warmup_steps >= self.max_steps:
            raise ConfigError(
                f"--warmup-steps: must be below --max-steps ({self.max_steps}), found {self.warmup_steps}"
            )
        if self.held_out == 0 and self.eval_every is not None:
            raise ConfigError(
                f"--eval-every: nothing to evaluate with --held-out 0, found {self.eval_every}; leave one out"
            )

        if self.early_stopping is not None and self.eval_every is None:
            raise ConfigError(
                f"--early-stopping: needs evaluations on the way, found {self.early_stopping}; "
                "pass --eval-every too"
            )
        if self.lora_rank is None:
            adapter = {
                "--lora-alpha": self.lora_alpha,
                "--lora-dropout": self.lora_dropout,
                "--lora-targets": ", ".join(self.lora_targets) or None,
            }
            for flag, value in adapter.items():
                if value is not None:
                    raise ConfigError(
                        f"{flag}: has no use without --lora-rank, found {value}; pass --lora-rank too"
                    )
        elif self.student.endswith(".toml"):
            raise ConfigError(
                f"--lora-rank: a new student has no weights to keep, found {self.student}; "
                "leave it out, or name a model to continue"
            )

    @property
    def sequences_a_batch(self) -> int | None:
        """Most sequences of a batch; None where tokens alone bound it."""
        return 8 if self.batch_size is None and self.batch_tokens is None else self.batch_size

    @property
    def hard_weight(self) -> float:
        """Alpha, where none is given that of the type."""
        return TYPES[self.type][0] if self.alpha is None else self.alpha

    @property
    def soft_loss(self) -> str | None:
        """The soft loss, None where there is none."""
        return None if self.type == "output" else self.loss or LOSSES[0]
