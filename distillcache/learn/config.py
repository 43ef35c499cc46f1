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
    loss: str | None = setting(None, help="The soft loss: forward-kl unless given.", choices=LOSSES)

    epochs: float | None = setting(None, help="Passes over the cache: 1 unless steps are given.", above=0)
    max_steps: int | None = setting(None, help="Steps of the optimiser, in place of --epochs.", minimum=1)
    batch_size: int = setting(8, help="Most sequences of a batch, on each device.", minimum=1)
    batch_tokens: int | None = setting(
        None, help="Most tokens of a batch, padding included; a longer sequence stands alone.", minimum=2
    )
    gradient_accumulation: int = setting(1, help="Batches of one step.", minimum=1)
    learning_rate: float = setting(1e-4, help="Learning rate after warm-up (AdamW).", above=0)
    warmup_steps: int = setting(0, help="Steps in which the learning rate rises from 0.", minimum=0)
    schedule: str = setting("linear", help="What it does afterwards, until the last step.", choices=SCHEDULES)
    weight_decay: float = setting(0.01, help="Weight decay; norms and biases have none.", minimum=0)
    max_grad_norm: float | None = setting(1.0, help="Longest gradient; a longer one is scaled down.", above=0)
    seed: int = setting(42, help="Of a new student, the held-out choice and the order.", minimum=0)

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
    save_every: int = setting(1000, help="Steps between checkpoints.", minimum=1)
    keep_last: int | None = setting(3, help="Checkpoints to keep; `none` keeps all.", minimum=1)
    logging_every: int = setting(10, help="Steps between reports.", minimum=1)
    report_to: tuple[str, ...] = setting((), help="Trackers that get the reports.", choices=REPORTERS)
    overwrite: bool = setting(False, help="Start anew in a folder that holds another run of `learn`.")

    def __post_init__(self) -> None:
        if self.type == "output":
            given = {"--temperature": self.temperature, "--loss": self.loss}
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
        elif self.alpha == 1:
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

    @property
    def hard_weight(self) -> float:
        """Alpha, where none is given that of the type."""
        return TYPES[self.type][0] if self.alpha is None else self.alpha

    @property
    def soft_loss(self) -> str | None:
        """The soft loss, None where there is none."""
        return None if self.type == "output" else self.loss or LOSSES[0]
