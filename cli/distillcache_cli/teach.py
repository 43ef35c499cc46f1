"""`distillcache teach`: run the teacher once over a corpus, and say how faithful the cache is."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer
from distillcache.teach.config import TeachConfig

from distillcache_cli.facts import print_facts
from distillcache_cli.options import configured
from distillcache_cli.terminal import Progress, bytes_words, print_json, seconds_words

if TYPE_CHECKING:
    from distillcache.teach.events import Event
    from distillcache.teach.events import Progress as Far

    from distillcache.corpus.report import CorpusReport

__all__ = ["EXAMPLE", "teach"]

EXAMPLE = "distillcache teach cache --teacher ./teacher --sources notes.jsonl --k 64"


@configured(TeachConfig)
def teach(
    config: TeachConfig,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Run a teacher once over a corpus, and keep what it said in a cache folder.

    Start the same command again after a crash: it redoes exactly what is missing. Another plan, teacher,
    tokenizer or codec on the same folder is refused.
    """
    from distillcache.teach.events import Planned, Warned
    from distillcache.teach.events import Progress as Far
    from distillcache.teach.run import teach as run

    with Progress() as bar:

        def show(event: "Event") -> None:
            if isinstance(event, Planned):
                for line in _corpus_lines(event.report):
                    bar.say(line)
            elif isinstance(event, Warned):
                bar.say(f"warning: {event.text}")
            elif isinstance(event, Far):
                bar.show(event.tokens_done, event.tokens_total, _far_words(event))

        report = run(config, on_event=show)
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
