"""Settings of `generate`: the files in configs/ load, and every bound holds from both sides."""

from pathlib import Path
from typing import Any

import pytest

from distillcache.config import load_config, settings
from distillcache.errors import ConfigError
from distillcache.generate.config import MAY_CHANGE, GenerateConfig, settings_hash
from distillcache.generate.prices import find_price

FILES = sorted((Path(__file__).parents[2] / "configs" / "generate").glob("*.toml"))
LEAST: dict[str, Any] = {"out": "run", "teacher": "openai:x", "count": 1}


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_every_config_file_loads_and_opens_with_its_command(file: Path) -> None:
    """And names a model whose price is known."""
    config = load_config(GenerateConfig, file, {"out": "run"})
    first = file.read_text().split("\n")[0]
    assert first.startswith(f"# distillcache generate --config configs/generate/{file.name} ")
    price = find_price(
        config.vendor, config.model, input=config.price_input, output=config.price_output,
        other_server=config.base_url is not None,
    )  # fmt: skip
    assert price is not None


@pytest.mark.parametrize(
    "name", [each.name for each in settings(GenerateConfig) if each.kind in (int, float)]
)
def test_every_bound_holds_from_both_sides(name: str) -> None:
    """The least and the greatest value pass, one step beyond does not."""
    each = next(each for each in settings(GenerateConfig) if each.name == name)
    fine, wrong = [], []
    step = 1 if each.kind is int else 0.001
    if each.minimum is not None:
        fine, wrong = [each.minimum], [each.minimum - step]
    if each.above is not None:
        fine, wrong = [each.above + step], [each.above]
    if each.maximum is not None:
        fine.append(each.maximum)
        wrong.append(each.maximum + step)
    assert wrong
    both = {"price_input": 1.0, "price_output": 1.0} if name.startswith("price") else {}
    for value in fine:
        assert getattr(load_config(GenerateConfig, None, LEAST | both | {name: value}), name) == value
    for value in wrong:
        with pytest.raises(ConfigError, match=f"--{name.replace('_', '-')}: must be"):
            load_config(GenerateConfig, None, LEAST | both | {name: value})


def test_what_may_change_are_settings() -> None:
    """A misspelt name in the list would freeze a setting nobody meant to freeze."""
    assert {each.name for each in settings(GenerateConfig)} >= MAY_CHANGE


def test_the_hash_sees_every_setting_that_is_kept() -> None:
    """Another value of any of them gives another hash; one that may change does not."""
    base = load_config(GenerateConfig, None, LEAST)
    hashes = {settings_hash(base.kept())}
    for name, value in {
        "teacher": "openai:y",
        "seed": 7,
        "system": "a",
        "temperature": 0.5,
        "batch": True,
    }.items():
        hashes.add(settings_hash(load_config(GenerateConfig, None, LEAST | {name: value}).kept()))
    assert len(hashes) == 6
    assert settings_hash(load_config(GenerateConfig, None, LEAST | {"concurrency": 3}).kept()) in hashes
