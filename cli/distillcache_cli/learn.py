"""`distillcache learn`: train a student from a cache, and say how close it came to its teacher."""

from typing import TYPE_CHECKING, Annotated

import typer

from distillcache.learn.config import LearnConfig
from distillcache_cli.options import configured
from distillcache_cli.terminal import Progress, print_json, print_table

if TYPE_CHECKING:
    from distillcache.learn.events import Event, Started, Step
    from distillcache.learn.result import LearnResult
    from distillcache.learn.scores import Scores

__all__ = ["EXAMPLE", "learn"]

EXAMPLE = "distillcache learn cache --student configs/student/100m.toml --output student --type logit"


@configured(LearnConfig)
def learn(
    config: LearnConfig,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Train a student on a cache; the teacher is not needed, but may take part (--online).

    Start the same command again after a crash: it goes on from the last checkpoint. The output folder is a
    model that `AutoModelForCausalLM.from_pretrained` loads. On several GPUs or machines:
    `accelerate launch -m distillcache_cli learn ...`.
    """
    from distillcache.learn.events import Done, Evaluated, Started, Step, Warned
    from distillcache.learn.run import learn as run

    done = False  # heard on the first rank alone, which prints for all

    with Progress() as bar:

        def show(event: "Event") -> None:
            nonlocal done
            done = done or isinstance(event, Done)
            if isinstance(event, Started):
                bar.say(_started_words(event))
            elif isinstance(event, Step):
                bar.show(event.step, event.num_steps, _step_words(event))
            elif isinstance(event, Evaluated):
                bar.say(f"step {event.step:,}, held out: {_scores_words(event.scores)}")
            elif isinstance(event, Warned):
                bar.say(f"warning: {event.text}")
            elif isinstance(event, Done) and event.already:
                bar.say(f"{event.output}: is done already; --overwrite starts anew")

        result = run(config, on_event=show)
    if not done:
        return
    if as_json:
        print_json(result.to_dict())
    else:
        _print(result)


def _started_words(event: "Started") -> str:
    repeated = f", {event.num_repeated:,} left out that repeat them" if event.num_repeated else ""
    resumed = f" from step {event.first_step:,}" if event.first_step else ""
    adapter = event.num_adapter_parameters
    trained = "" if adapter is None else f", {adapter:,} trained beside them"
    online = "" if event.online is None else f"; teacher in the loop: {event.online}"
    return (
        f"student: {event.num_parameters:,} parameters{trained}, {event.dtype} on {event.device}{online}; "
        f"{event.num_train:,} sequences to learn from, {event.num_held_out:,} held out{repeated}; "
        f"{event.num_steps:,} steps{resumed}"
    )


def _step_words(event: "Step") -> str:
    soft = "" if event.soft_loss is None else f", soft {event.soft_loss:.3f}"
    kl = "" if event.kl is None else f", KL {event.kl:.3f}"
    alpha = "" if event.alpha is None else f", alpha {event.alpha:.3f}"
    temperature = "" if event.temperature is None else f", T {event.temperature:.2f}"
    return (
        f"step {event.step:,} of {event.num_steps:,}, hard {event.hard_loss:.3f}{soft}{kl}, "
        f"perplexity {event.perplexity:,.1f}, lr {event.learning_rate:.2g}{alpha}{temperature}, "
        f"{event.tokens_per_second:,.0f} tok/s"
    )


def _scores_words(scores: "Scores") -> str:
    agreement = "" if scores.top1_agreement is None else f", same top-1 {100 * scores.top1_agreement:.1f} %"
    return f"KL {scores.kl:.4f}, hard {scores.hard_loss:.4f}, perplexity {scores.perplexity:,.2f}{agreement}"


def _print(result: "LearnResult") -> None:
    from distillcache.learn.card import score_words

    speed = result.tokens_per_second
    best = [] if result.best_step is None else [("best step, kept", f"{result.best_step:,}")]
    facts = [
        ("parameters", f"{result.num_parameters:,}"),
        ("steps", f"{result.num_steps:,}"),
        *best,
        ("sequences learned from", f"{result.num_train:,}"),
        ("sequences held out", f"{result.num_held_out:,}"),
        ("tokens a second", "-" if speed is None else f"{speed:,.0f}"),
    ]
    print_table(f"{result.output}", facts, numbers=(1,))
    if result.before is not None and result.after is not None:
        rows = zip(score_words(result.before), score_words(result.after), strict=True)
        print_table(
            "On held-out records",
            [(name, before, after) for (name, before), (_, after) in rows],
            headings=("", "before", "after"),
            numbers=(1, 2),
        )
    print(result.output)
