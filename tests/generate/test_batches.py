"""Batches of both vendors: handed in once, collected from anywhere, failures handed in again."""

import json
import shutil
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from run_config import config_for
from vendor_server import VendorServer

from distillcache.generate.run import generate

Run = Callable[..., dict[str, Any]]
VENDORS = ("openai", "anthropic")


@pytest.mark.parametrize("vendor", VENDORS)
def test_a_batch_is_answered_at_the_batch_price(run: Run, vendor: str) -> None:
    """One batch, no single request; the ledger counts half the price of the server's tokens."""
    with VendorServer() as server:
        report = run(server, vendor, ask=30, batch=True)
        assert report["answered"] == 30 and not server.asked and len(server.batches) == 1
        prompt = server.tokens["input"] + server.tokens["cached"]
        whole = Decimal(prompt + 5 * server.tokens["output"]) / 1_000_000
        assert Decimal(report["ledger"]["total"]["cost_usd"]) == whole / 2


@pytest.mark.parametrize("vendor", VENDORS)
def test_partial_failures_are_handed_in_again(run: Run, vendor: str) -> None:
    """Only what failed goes into the next batch, and nothing is answered twice."""
    with VendorServer() as server:
        server.batch_fault = lambda prompt, time: "500" if time < 3 and "number 1" in prompt else None
        report = run(server, vendor, ask=20, batch=True)
        assert report["answered"] == 20 and len(server.batches) == 3
        assert set(server.delivered.values()) == {1}
        assert {n for p, n in server.batch_asked.items() if "number 1" not in p} == {1}


@pytest.mark.parametrize("vendor", VENDORS)
def test_a_batch_is_collected_by_a_second_process_without_the_folder(
    tmp_path: Path, prompts_file: Callable[[int], Path], vendor: str
) -> None:
    """Submit, stop, lose the folder: the same settings elsewhere find the batch and pay nothing again."""
    with VendorServer() as server:
        server.batch_ready = False
        first = config_for(server, vendor, tmp_path / "here", prompts_file(12), batch=True)
        report = generate(first, confirm=lambda _: True, stop=lambda: bool(server.batches))
        assert report["answered"] == 0 and len(report["batches_under_way"]) == 1
        shutil.rmtree(tmp_path / "here")

        def ready() -> bool:
            server.batch_ready = True
            return False

        elsewhere = config_for(server, vendor, tmp_path / "there", prompts_file(12), batch=True)
        report = generate(elsewhere, confirm=lambda _: True, stop=ready)
        assert report["answered"] == 12 and len(server.batches) == 1
        assert set(server.batch_asked.values()) == {1}


@pytest.mark.parametrize("vendor", VENDORS)
def test_a_stopped_batch_is_collected_by_the_next_start(run: Run, tmp_path: Path, vendor: str) -> None:
    """The folder knows its batch; the next start waits for it and hands in nothing."""
    with VendorServer() as server:
        server.batch_ready = False
        config = config_for(server, vendor, tmp_path / "run", _prompts(tmp_path, 6), batch=True)
        generate(config, confirm=lambda _: True, stop=lambda: bool(server.batches))
        server.batch_ready = True
        assert generate(config, confirm=lambda _: True)["answered"] == 6
        assert len(server.batches) == 1


@pytest.mark.parametrize("vendor", VENDORS)
def test_a_batch_whose_number_was_lost_is_found(tmp_path: Path, vendor: str) -> None:
    """Killed between handing in and writing it down: the next start finds the batch by the run's tag."""
    with VendorServer() as server:
        config = config_for(server, vendor, tmp_path / "run", _prompts(tmp_path, 6), batch=True)
        server.batch_ready = False
        generate(config, confirm=lambda _: True, stop=lambda: bool(server.batches))
        path = tmp_path / "run" / "answers.jsonl"
        path.write_text(
            "".join(line for line in path.read_text().splitlines(True) if '"kind": "batch"' not in line)
        )
        server.batch_ready = True
        assert generate(config, confirm=lambda _: True)["answered"] == 6
        assert len(server.batches) == 1


@pytest.mark.parametrize("vendor", VENDORS)
def test_batches_of_other_runs_are_left_alone(tmp_path: Path, vendor: str) -> None:
    """Another seed of settings has another tag: its batch is not taken for ours."""
    with VendorServer() as server:
        for temperature in (0.1, 0.2):
            out = tmp_path / f"run-{temperature}"
            config = config_for(
                server, vendor, out, _prompts(tmp_path, 4), batch=True, temperature=temperature
            )
            assert generate(config, confirm=lambda _: True)["answered"] == 4
        assert len(server.batches) == 2


def test_a_budget_bounds_a_batch(run: Run) -> None:
    """Only as many requests are handed in as the budget can bear at their dearest."""
    with VendorServer() as server:
        report = run(server, ask=100, batch=True, max_cost=0.02)
        assert Decimal(report["ledger"]["total"]["cost_usd"]) <= Decimal("0.02")
        assert 10 < report["answered"] < 100 and "--max-cost" in report["stopped"]


def test_a_large_run_is_cut_into_batches(tmp_path: Path) -> None:
    """`batch_requests` bounds each, and all are handed in before the first has ended."""
    with VendorServer() as server:
        server.batch_ready = False

        def stop() -> bool:
            server.batch_ready = len(server.batches) == 3
            return False

        config = config_for(
            server, "openai", tmp_path / "run", _prompts(tmp_path, 25), batch=True, batch_requests=10
        )
        assert generate(config, confirm=lambda _: True, stop=stop)["answered"] == 25
        assert len(server.batches) == 3


def _prompts(folder: Path, count: int) -> Path:
    path = folder / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"Tell me about {i}."}) + "\n" for i in range(count)))
    return path
