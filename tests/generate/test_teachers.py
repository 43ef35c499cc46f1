"""Teachers through the vendors' real clients, against a server that misbehaves on purpose."""

import json
import time
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from run_config import KEY, config_for
from vendor_server import FAULTS, UNDELIVERED, VendorServer, chaos, send

from distillcache.errors import ConfigError, TeacherError
from distillcache.generate.run import Declined, generate

Run = Callable[..., dict[str, Any]]
VENDORS = ("openai", "anthropic")


def check_account(report: dict[str, Any], server: VendorServer, prompts: int) -> None:
    """Every prompt ended once, and the ledger is the server's own count."""
    total = report["ledger"]["total"]
    assert report["answered"] + report["failed"]["count"] == prompts
    assert report["answered"] == len(server.delivered) == sum(server.delivered.values())
    assert total["input_tokens"] == server.tokens["input"]
    assert total["cache_read_tokens"] == server.tokens["cached"]
    assert total["output_tokens"] == server.tokens["output"]
    assert total["unreported"] == server.unreported
    lost = sum(server.faults[name] for name in UNDELIVERED)
    assert report["requests"]["lost"] == lost
    assert report["ledger"]["unsettled"]["requests"] == lost + server.unreported
    # One dollar a million prompt tokens, cached ones included as they have no price of their own; five for
    # answers.
    microdollars = server.tokens["input"] + server.tokens["cached"] + 5 * server.tokens["output"]
    assert Decimal(total["cost_usd"]) == Decimal(microdollars) / 1_000_000
    by_category = report["ledger"]["by_category"].values()
    assert sum(Decimal(tally["cost_usd"]) for tally in by_category) == Decimal(total["cost_usd"])


@pytest.mark.parametrize("vendor", VENDORS)
@pytest.mark.parametrize("stream", [False, True])
def test_the_ledger_is_the_servers_count_under_faults(run: Run, vendor: str, stream: bool) -> None:
    """A third of requests fail in every way there is: each prompt ends once, nothing is billed twice."""
    faults = FAULTS[:6] if stream else FAULTS
    with VendorServer(fault=chaos(0.3, 11, faults), hang_seconds=2.5) as server:
        report = run(server, vendor, ask=100, request_seconds=2.0, stream=stream)
        check_account(report, server, 100)
        assert max(server.delivered.values()) == 1
        assert len(server.faults) > 4


@pytest.mark.slow
@pytest.mark.parametrize("vendor", VENDORS)
def test_two_thousand_requests_with_faults(run: Run, vendor: str) -> None:
    """The same at full size: 2,000 prompts, 30 % faults."""
    with VendorServer(fault=chaos(0.3, 12), hang_seconds=3.5) as server:
        report = run(server, vendor, ask=2000, concurrency=32, request_seconds=3.0)
        check_account(report, server, 2000)


@pytest.mark.parametrize("vendor", VENDORS)
def test_only_what_may_help_is_tried_again(run: Run, vendor: str) -> None:
    """A 400 is asked once and reported; a 500 is asked again until it works."""

    def fault(prompt: str, number: int) -> str | None:
        return "500" if server.asked[prompt] < 3 else None

    with VendorServer(fault=fault) as server:
        original = server._chat

        async def chat(path: str, body: dict[str, Any], writer: Any) -> None:
            prompt = body["messages"][-1]["content"]
            if "number 3 " in prompt:
                server.asked[prompt] += 1
                send(writer, {"error": {"message": "no such thing"}}, 400)
                return
            await original(path, body, writer)

        server._chat = chat  # type: ignore[method-assign]
        report = run(server, vendor, ask=6)
        assert report["answered"] == 5 and report["failed"]["count"] == 1
        assert "status 400: " in report["failed"]["first"][0]["reason"]
        assert {n for p, n in server.asked.items() if "number 3 " in p} == {1}
        assert {n for p, n in server.asked.items() if "number 3 " not in p} == {3}


def test_an_unreadable_answer_is_not_asked_again_in_the_same_start_but_in_the_next(run: Run) -> None:
    """It may have been billed: the ledger keeps the most it can have cost, and a new start asks once more."""
    with VendorServer(fault=lambda p, n: "malformed" if n == 1 else None) as server:
        report = run(server, ask=1)
        assert report["failed"]["count"] == 1 and report["requests"]["lost"] == 1
        assert Decimal(report["ledger"]["unsettled"]["at_most_usd"]) > 0
        assert run(server, ask=1)["answered"] == 1
        assert sum(server.asked.values()) == 2


def test_a_wrong_key_stops_the_run_and_the_key_is_not_shown(run: Run, tmp_path: Path) -> None:
    """A server that echoes the key in its refusal: one request's worth of failures, and the key struck
    out.
    """
    with VendorServer() as server:

        async def chat(path: str, body: dict[str, Any], writer: Any) -> None:
            server.asked["x"] += 1
            send(writer, {"error": {"message": f"Incorrect API key provided: {KEY}."}}, 401)

        server._chat = chat  # type: ignore[method-assign]
        with pytest.raises(TeacherError) as fault:
            run(server, ask=50, concurrency=4)
        assert "Incorrect API key provided: [key]" in str(fault.value)
        assert server.asked["x"] <= 4
    assert_key_nowhere(tmp_path, str(fault.value))


def assert_key_nowhere(folder: Path, printed: str) -> None:
    """No file below the folder and no text holds the key, plain or escaped."""
    for path in folder.rglob("*"):
        if path.is_file():
            data = path.read_bytes()
            assert KEY.encode() not in data and json.dumps(KEY)[1:-1].encode() not in data, path
    assert KEY not in printed


@pytest.mark.parametrize("vendor", VENDORS)
def test_the_key_reaches_the_server_and_no_file(
    run: Run, tmp_path: Path, vendor: str, capfd: Any, caplog: Any
) -> None:
    """Also when the server puts it into its answers, and with every logger open."""
    caplog.set_level("DEBUG")
    with VendorServer(
        answer=lambda p: f"Your key is {KEY}, and this is an answer of some length about {p}"
    ) as server:
        run(server, vendor, ask=4)
        assert any(KEY in value for headers in server.headers for value in headers.values())
    out, err = capfd.readouterr()
    assert_key_nowhere(tmp_path, out + err + caplog.text)
    assert "[key]" in (tmp_path / "run" / "answers.jsonl").read_text()


def test_a_key_for_the_vendor_does_not_reach_another_server(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With --base-url the vendor's own variable is not read."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with VendorServer() as server:
        run(server, ask=1, key_env=None)
        assert not any(KEY in value for headers in server.headers for value in headers.values())


def test_a_key_from_a_file_is_used(run: Run, tmp_path: Path) -> None:
    """`--key-file` with a line end after the key."""
    (tmp_path / "key").write_text("abc-123\n")
    with VendorServer() as server:
        run(server, ask=1, key_env=None, key_file=tmp_path / "key")
        assert server.headers[0]["authorization"] == "Bearer abc-123"


def test_retry_after_is_honoured_by_all_requests(run: Run) -> None:
    """After a 429 that names a time no request goes before it is over."""
    with VendorServer(fault=lambda p, n: "429-after" if n == 1 else None) as server:
        run(server, ask=4, concurrency=1)
        assert server.times[1] - server.times[0] >= 0.05


def test_requests_a_minute_are_kept(run: Run) -> None:
    """Of ten requests at 1,200 a minute the last goes 0.45 s after the first at the earliest."""
    with VendorServer() as server:
        begun = time.monotonic()
        run(server, ask=10, requests_per_minute=1200, max_tokens=100)
        assert server.times[-1] - begun >= 0.45


def test_concurrency_is_a_bound_and_is_used(run: Run) -> None:
    """No more than the bound are under way, and the bound is reached."""
    with VendorServer(answer_seconds=0.03) as server:
        run(server, ask=40, concurrency=5)
        assert server.most_under_way == 5


@pytest.mark.parametrize("vendor", VENDORS)
def test_settings_reach_the_server(run: Run, vendor: str) -> None:
    """System prompt, temperature and the bound on tokens are sent as each vendor wants them."""
    with VendorServer() as server:
        run(server, vendor, ask=1, system="Be kind.", temperature=0.25, max_tokens=77)
        body = server.bodies[0]
    assert body["temperature"] == 0.25 and body["max_tokens"] == 77 and body["model"] == "test-model"
    system = body["system"] if vendor == "anthropic" else body["messages"][0]["content"]
    assert system == "Be kind."


def test_an_answer_that_hits_the_limit_is_marked_and_rejected(run: Run, tmp_path: Path) -> None:
    """The finish reason is kept in the record."""
    with VendorServer() as server:
        report = run(server, ask=2, max_tokens=5)
    assert report["filters"]["cut_off"]["count"] == 2
    first = json.loads((tmp_path / "run" / "rejected.jsonl").read_text().split("\n")[0])
    assert first["finish_reason"] == "length" and first["rejected"] == "cut_off"


def test_the_estimate_is_shown_before_the_first_call(
    tmp_path: Path, prompts_file: Callable[[int], Path]
) -> None:
    """Declining it asks nothing; its range is ordered and its ceiling bounds it."""
    seen = []
    with VendorServer() as server:
        config = config_for(server, "openai", tmp_path / "run", prompts_file(5))
        with pytest.raises(Declined):
            generate(config, confirm=lambda estimate: bool(seen.append(estimate)))
        assert not server.asked
    (estimate,) = seen
    assert estimate.requests == 5 and estimate.cost_usd is not None and estimate.ceiling_usd is not None
    assert 0 < estimate.cost_usd[0] < estimate.cost_usd[1] <= estimate.ceiling_usd


def test_a_server_that_is_not_there_ends_the_run_with_a_reason(
    tmp_path: Path, prompts_file: Callable[[int], Path]
) -> None:
    """No connection: nothing is counted as billed, and the run stops after a few prompts instead of all."""
    with VendorServer() as server:
        config = config_for(
            server, "openai", tmp_path / "run", prompts_file(200), max_attempts=2, concurrency=2
        )
    begun = time.monotonic()
    with pytest.raises(TeacherError, match="no connection"):
        generate(config, confirm=lambda _: True)
    assert time.monotonic() - begun < 10
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["requests"]["lost"] == 0 and report["failed"]["count"] < 30


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"base_url": "localhost:80"}, "--base-url: must begin with http"),
        ({"base_url": "http://user:pass@localhost"}, "must hold no key"),
        ({"base_url": "http://localhost/?key=1"}, "must hold no key"),
        ({"teacher": "openai:"}, "--teacher"),
        ({"teacher": "mistral:x"}, "--teacher"),
        ({"count": 3}, "--count"),
        ({"prompts": None}, "--count"),
        ({"price_output": None}, "--price"),
        ({"price_unknown": True}, "--price-unknown"),
        ({"key_file": Path("x")}, "--key-file"),
        (
            {"teacher": "local:x", "key_env": None, "base_url": "http://localhost"},
            "--base-url: would be ignored",
        ),
        ({"batch": True, "stream": True}, "--stream"),
        ({"categories": ("algorithm",)}, "--categories: would be ignored"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(
    tmp_path: Path, settings: dict[str, Any], says: str
) -> None:
    """One line that names the flag."""

    class Address:
        openai_url = "http://127.0.0.1:1/v1"

    with pytest.raises(ConfigError) as fault:
        config_for(Address(), "openai", tmp_path, tmp_path / "p.txt", **settings)  # type: ignore[arg-type]
    assert str(fault.value).startswith(says) or says in str(fault.value)
