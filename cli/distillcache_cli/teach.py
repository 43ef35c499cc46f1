"""`distillcache teach`: run the teacher once over a corpus, and say how faithful the cache is."""

import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from distillcache.teach.config import TeachConfig
from distillcache_cli.estimate import confirmed, usd
from distillcache_cli.facts import print_facts
from distillcache_cli.options import configured
from distillcache_cli.terminal import Progress, bytes_words, print_json, seconds_words

if TYPE_CHECKING:
    from distillcache.corpus.report import CorpusReport
    from distillcache.teach.events import Aligned, Asked, Event
    from distillcache.teach.events import Progress as Far

__all__ = ["EXAMPLE", "teach"]

EXAMPLE = "distillcache teach cache --teacher ./teacher --sources notes.jsonl"


@configured(TeachConfig)
def teach(
    config: TeachConfig,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask before an API is paid.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
    price: Annotated[
        tuple[float, float] | None,
        typer.Option(
            "--price", metavar="INPUT OUTPUT", help="US dollars a million tokens, in place of the price file."
        ),
    ] = None,
) -> None:
    """Run a teacher once over a corpus, and keep what it said in a cache folder.

    Start the same command again after a crash: it redoes exactly what is missing. Another plan, teacher,
    tokenizer or codec on the same folder is refused.
    A teacher openai:MODEL, at OpenAI or at --base-url, answers the prompts of the corpus or scores its text;
    all that it says is paid once, and kept in the folder of --answers.
    """
    from distillcache.teach.events import Aligned, Asked, Calibrating, Planned, Warned
    from distillcache.teach.events import Progress as Far
    from distillcache.teach.run import teach as run

    if price is not None:
        config = dataclasses.replace(config, price_input=price[0], price_output=price[1])
    with Progress() as bar:

        def show(event: "Event") -> None:
            if isinstance(event, Planned):
                for line in _corpus_lines(event.report):
                    bar.say(line)
            elif isinstance(event, Calibrating):
                bar.show(event.rows_done, event.rows_total, "calibrating the codec")
            elif isinstance(event, Warned):
                bar.say(f"warning: {event.text}")
            elif isinstance(event, Far):
                bar.show(event.tokens_done, event.tokens_total, _far_words(event))
            elif isinstance(event, Asked):
                bar.show(event.answered + event.failed, event.total, _asked_words(event))
            elif isinstance(event, Aligned):
                for line in _aligned_lines(event):
                    bar.say(line)

        report = run(config, on_event=show, confirm=lambda estimate: confirmed(estimate, yes, bar))
    if as_json:
        print_json(report.to_dict())
    else:
        print_facts("Fidelity", report.to_dict())


def _corpus_lines(report: "CorpusReport") -> Iterator[str]:
    """What became of the corpus: its counts, then everything that was left out, cut or met twice."""
    yield (
        f"corpus: {report.records:,} records, {report.sequences:,} sequences, {report.tokens:,} tokens, "
        f"{report.supervised:,} of them supervised"
    )
    for name, tally in report.tallies().items():
        if tally.count:
            yield f"corpus: {tally.count:,} {name.replace('_', ' ')}, first {', '.join(tally.first)}"


def _far_words(far: "Far") -> str:
    left = "" if far.seconds_left is None else f", {seconds_words(far.seconds_left)} left"
    return (
        f"{far.shards_done} of {far.shards_total} shards, {far.tokens_done:,} tokens, "
        f"{far.tokens_per_second:,.0f} tok/s, {bytes_words(far.bytes_written)}{left}"
    )


def _asked_words(far: "Asked") -> str:
    failed = f", {far.failed} failed" if far.failed else ""
    spent = "" if far.spent_usd is None else f", {usd(far.spent_usd)} spent"
    return f"{far.answered} of {far.total} answered{failed}{spent}"


def _aligned_lines(event: "Aligned") -> Iterator[str]:
    """What became of the answers, what was left out of them, and what they cost."""
    total, unsettled = event.ledger["total"], event.ledger["unsettled"]
    cost = "cost unknown" if total["cost_usd"] is None else f"${total['cost_usd']}"
    tokens = total["input_tokens"] + total["cache_read_tokens"] + total["cache_write_tokens"]
    yield (
        f"answers: {event.answered:,}, of which {event.sequences:,} sequences; {tokens:,} tokens of prompts, "
        f"{total['output_tokens']:,} of answers, {cost}; kept in {event.folder}"
    )
    if unsettled["requests"]:
        most = "" if unsettled["at_most_usd"] is None else f", at most ${unsettled['at_most_usd']}"
        yield f"answers: {unsettled['requests']:,} requests with an unknown end may be on the bill{most}"
    for reason, tally in event.left_out.items():
        yield f"left out: {tally.count:,} for {reason}, first {', '.join(tally.first)}"
