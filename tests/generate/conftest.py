"""Fixtures of the tests of `generate`: a key, prompts, and a run against the tests' own server."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from distillcache.generate.run import generate

# The modules beside this one, also under an import mode of pytest that does not put them on the path.
sys.path.insert(0, str(Path(__file__).parent))

from run_config import KEY, config_for  # the path is set above
from vendor_server import VendorServer


@pytest.fixture(autouse=True)
def key_in_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """The key of the tests, under a name of its own; none of the vendors' own variables."""
    for name in (
        "OPENAI_API_KEY",
        "ANTHROPIC_API_KEY",
        "OPENAI_BASE_URL",
        "ANTHROPIC_BASE_URL",
        "ANTHROPIC_AUTH_TOKEN",
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TEST_KEY", KEY)


@pytest.fixture
def prompts_file(tmp_path: Path) -> Callable[[int], Path]:
    """A file of so many prompts."""

    def make(count: int) -> Path:
        path = tmp_path / f"prompts-{count}.txt"
        path.write_text("".join(f"Explain number {i} and its friends.\n" for i in range(count)))
        return path

    return make


@pytest.fixture
def run(tmp_path: Path, prompts_file: Callable[[int], Path]) -> Callable[..., dict[str, Any]]:
    """Run against a server; keyword arguments override settings. Returns the report."""

    def go(
        server: VendorServer, vendor: str = "openai", *, ask: int | None = 8, **settings: Any
    ) -> dict[str, Any]:
        config = config_for(
            server, vendor, tmp_path / "run", None if ask is None else prompts_file(ask), **settings
        )
        return generate(config, confirm=lambda _: True)

    return go
