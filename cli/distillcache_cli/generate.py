"""`distillcache generate`: what it will cost, then the asking, then what came of it."""

import dataclasses
import signal
from decimal import Decimal
from typing import TYPE_CHECKING, Annotated, Any

import typer

from distillcache.errors import ConfigError
from distillcache.generate.config import GenerateConfig
from distillcache_cli.errors import INTERRUPTED
from distillcache_cli.estimate import confirmed, usd
from distillcache_cli.options import configured
from distillcache_cli.terminal import Progress, note, print_json, print_table

if TYPE_CHECKING:
    from distillcache.generate.progress import Progress as Far

__all__ = ["EXAMPLE", "generate"]

EXAMPLE = "distillcache generate runs/first --teacher anthropic:claude-haiku-4-5 --count 100 --max-cost 2"


@configured(GenerateConfig)
def generate(
    config: GenerateConfig,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask before the first request.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
    price: Annotated[
        tuple[float, float] | None,
        typer.Option(
            "--price", metavar="INPUT OUTPUT", help="US dollars a million tokens, in place of the price file."
        ),
    ] = None,
) -> None:
    """Ask a teacher for training text: prompts in eight categories, answers filtered into OUT/data.jsonl.

    Every answer is on disk before it counts: start the same command again, and only what is missing is asked.
    Keys come from OPENAI_API_KEY or ANTHROPIC_API_KEY, from --key-env NAME, or from --key-file FILE.
    """
    try:
        from distillcache.generate.run import Declined
        from distillcache.generate.run import generate as run
    except ModuleNotFoundError as error:
        if str(error.name).startswith("distillcache"):
            raise
        remedy = "pip install 'distillcache[generate]'"
        raise ConfigError(f"distillcache generate: the package {error.name} is missing; {remedy}") from None

    if price is not None:
        config = dataclasses.replace(config, price_input=price[0], price_output=price[1])
    stop = _StopAfterCtrlC()
    with Progress() as bar, stop:

        def show(far: "Far") -> None:
            if far.note is not None:
                bar.say(far.note)
            spent = "" if far.spent_usd is None else f", {usd(far.spent_usd)} spent"
            failed = f", {far.failed} failed" if far.failed else ""
            done = far.answered + far.failed
            bar.show(done, far.total, f"{far.answered} of {far.total} answered{failed}{spent}")

        try:
            report = run(
                config, confirm=lambda estimate: confirmed(estimate, yes, bar), progress=show, stop=stop
            )
        except Declined:
            note("nothing was asked")
            raise typer.Exit(1) from None
    if as_json:
        print_json(report)
    else:
        _print(report, config)
    if stop():
        raise typer.Exit(INTERRUPTED)


class _StopAfterCtrlC:
    """True after the first Ctrl-C, so that requests under way come home; the second ends at once."""

    def __init__(self) -> None:
        self._stopped = False
        self._before: Any = None

    def __call__(self) -> bool:
        return self._stopped

    def __enter__(self) -> None:
        self._before = signal.signal(signal.SIGINT, self._first)

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGINT, self._before)

    def _first(self, *_: object) -> None:
        self._stopped = True
        signal.signal(signal.SIGINT, signal.default_int_handler)
        note("waiting for the requests under way; Ctrl-C again leaves them, though they may be billed")


def _print(report: dict[str, Any], config: GenerateConfig) -> None:
    rows = [
        ("prompts", f"{report['prompts']:,}"),
        ("answered", f"{report['answered']:,}"),
        ("kept", f"{report['kept']:,}"),
        *(
            (f"rejected: {name}", f"{each['count']:,}")
            for name, each in report["filters"].items()
            if each["count"]
        ),
        *([("failed", f"{report['failed']['count']:,}")] if report["failed"]["count"] else []),
        *([("not asked", f"{report['not_asked']:,}")] if report["not_asked"] else []),
    ]
    print_table(f"{config.out}", rows, numbers=(1,))
    ledger = report["ledger"]
    tallies = [*ledger["by_category"].items(), ("all", ledger["total"])]
    print_table(
        "Tokens and cost, as the API reported them",
        [
            (
                name,
                f"{each['answers']:,}",
                f"{each['input_tokens']:,}",
                f"{each['cache_read_tokens']:,}",
                f"{each['output_tokens']:,}",
                "unknown" if each["cost_usd"] is None else usd(Decimal(each["cost_usd"])),
            )
            for name, each in tallies
        ],
        headings=("category", "answers", "prompt", "cached", "answer", "cost"),
        numbers=(1, 2, 3, 4, 5),
    )
    if ledger["unsettled"]["requests"]:
        most = ledger["unsettled"]["at_most_usd"]
        cost = "" if most is None else f", at most {usd(Decimal(most))}"
        note(f"{ledger['unsettled']['requests']} requests with an unknown end may be on the bill{cost}")
    if report["failed"]["first"]:
        note(f"first failure: {report['failed']['first'][0]['reason']}")
    if report["stopped"]:
        note(f"stopped: {report['stopped']}; the same command goes on where it stopped")
    print(config.out / "data.jsonl")
