"""`distillcache evaluate`: what a student has learned, in figures that say what they are over."""

from typing import TYPE_CHECKING, Annotated

import typer

from distillcache.evaluate.config import EvaluateConfig
from distillcache_cli.options import configured
from distillcache_cli.terminal import Progress, print_json, print_table

if TYPE_CHECKING:
    from distillcache.evaluate.events import Event
    from distillcache.evaluate.result import CodeScores, EvaluateResult, Figure, RowScores, TaskScore

__all__ = ["EXAMPLE", "evaluate"]

EXAMPLE = "distillcache evaluate student --cache cache"

NAMES = {
    "kl_nats": "KL to the teacher, nats",
    "hard_loss_nats": "cross-entropy, nats",
    "perplexity": "perplexity",
    "bits_per_byte": "bits a byte",
    "next_token_accuracy": "next token right",
    "top1_agreement": "same most likely token",
    "acceptance_min": "acceptance, at least",
    "acceptance_max": "acceptance, at most",
    "acceptance": "acceptance",
    "calibration_error": "calibration error",
    "teacher_hard_loss_nats": "cross-entropy of the teacher, nats",
}
SHARES = (
    "next_token_accuracy", "top1_agreement", "acceptance_min", "acceptance_max", "acceptance",
    "calibration_error",
)  # fmt: skip


@configured(EvaluateConfig)
def evaluate(
    config: EvaluateConfig,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Measure a student: on a cache's rows, on programs that it writes, on lm-eval's tasks.

    With --cache: loss, KL to the teacher, agreement, calibration, and the acceptance that a speculative
    decoder would see, on the records that `learn` held out. With --humaneval the student writes programs,
    which run on this machine: in a process of their own, with limits of time and memory, without network, new
    processes, or writing outside their folder. That is no virtual machine: prefer a container.
    """
    from distillcache.evaluate.events import Warned
    from distillcache.evaluate.run import evaluate as run

    with Progress() as bar:

        def show(event: "Event") -> None:
            if isinstance(event, Warned):
                bar.say(f"warning: {event.text}")
            else:
                bar.show(event.done, event.total, f"{event.part}: {event.done:,} of {event.total:,}")

        result = run(config, on_event=show)
    if as_json:
        print_json(result.to_dict())
    else:
        _print(result)


def _print(result: "EvaluateResult") -> None:
    if result.rows is not None:
        _print_rows(result.student, result.rows)
    if result.code is not None:
        _print_code(result.student, result.code)
    if result.tasks:
        print_table(
            f"{result.student}: lm-eval",
            [_task_cells(each) for each in result.tasks],
            headings=("task", "metric", "value", "±", "examples before", "questions"),
            numbers=(2, 3, 4, 5),
        )


def _print_rows(student: str, rows: "RowScores") -> None:
    which = "held-out sequences" if rows.split == "held-out" else "sequences, all there are"
    title = f"{student}: {rows.num_sequences:,} {which}, {rows.row_kind} rows of {rows.teacher}"
    _print_figures(title, rows.figures)
    if rows.exact is not None:
        _print_figures("Against the whole teacher", rows.exact)


def _print_figures(title: str, figures: "tuple[Figure, ...]") -> None:
    rows = []
    for each in figures:
        words = f"{each.over}; {each.note}" if each.note else each.over
        rows.append((NAMES[each.name], _shown(each, each.value), _shown(each, each.stderr), words))
    print_table(title, rows, headings=("", "value", "±", "over"), numbers=(1, 2))


def _shown(figure: "Figure", value: float | None) -> str:
    if value is None:
        return "" if figure.value is not None else "-"
    return f"{100 * value:.1f} %" if figure.name in SHARES else f"{value:,.4f}"


def _print_code(student: str, code: "CodeScores") -> None:
    rows = [
        (
            f"pass@{k}",
            f"{100 * (figure.value or 0.0):.1f} %",
            "" if figure.stderr is None else f"{100 * figure.stderr:.1f} %",
            figure.over,
        )
        for k, figure in code.pass_at.items()
    ]
    ends = ", ".join(f"{number:,} {name}" for name, number in code.outcomes.items())
    rows.append(("programs", "", "", f"{ends}; held by {', '.join(code.walls)}"))
    print_table(f"{student}: {code.benchmark}", rows, headings=("", "value", "±", "over"), numbers=(1, 2))


def _task_cells(score: "TaskScore") -> tuple[str, ...]:
    def count(number: int | None) -> str:
        return "" if number is None else f"{number:,}"

    return (
        score.task,
        score.metric,
        f"{score.value:.4f}",
        "" if score.stderr is None else f"{score.stderr:.4f}",
        count(score.num_fewshot),
        count(score.num_questions),
    )
