"""The house itself: one version, its types shipped, pins within ranges, no trace of one machine."""

import re
import tomllib
from collections.abc import Iterator
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TOP = ("*.md", "*.toml", "*.txt", "Makefile", ".gitignore", ".ci/run")
ROOMS = ("distillcache", "shards", "cli", "configs", "benches", "tests")
PACKAGES = ("distillcache", "distillcache_shards", "distillcache_cli")
# Somebody's own folders, and hosts of packages: an index is for whoever installs to choose.
OWN_FOLDER = re.compile(r"(?<![\w.~$}/-])/(?:work|root|home|Users|mnt|opt)/\w")
HOST = re.compile(r"pypi\.(?:org|python)|python" r"hosted|download\.py" r"torch", re.IGNORECASE)


def texts() -> Iterator[tuple[str, str]]:
    """Every text file of the project, by its path, and what is in it."""
    paths = [path for pattern in TOP for path in ROOT.glob(pattern)]
    paths += [path for room in ROOMS for path in sorted((ROOT / room).rglob("*")) if path.is_file()]
    for path in paths:
        if "__pycache__" in path.parts or path == Path(__file__):
            continue
        try:
            yield str(path.relative_to(ROOT)), path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue


def test_there_is_one_version() -> None:
    """pyproject's, the installed one's, and a heading of the changelog."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["version"] == version("distillcache")
    assert f"## {project['version']}" in (ROOT / "CHANGELOG.md").read_text()


@pytest.mark.parametrize("package", PACKAGES)
def test_every_package_ships_its_types(package: str) -> None:
    """A type checker of a user's sees them."""
    spec = find_spec(package)
    assert spec is not None
    assert spec.origin is not None
    assert (Path(spec.origin).parent / "py.typed").exists()


def test_no_file_names_a_folder_of_one_machine_or_a_host_of_packages() -> None:
    """What runs here must run anywhere."""
    found = [
        f"{name}:{number}: {line.strip()[:90]}"
        for name, text in texts()
        for number, line in enumerate(text.splitlines(), 1)
        if OWN_FOLDER.search(line) or HOST.search(line)
    ]
    assert not found


@pytest.mark.parametrize("line", ["see /home/me/x", "path='/mnt/a'", "--index-url https://PyPI.org/simple"])
def test_such_a_line_would_be_found(line: str) -> None:
    """A rule that finds nothing may be blind."""
    assert OWN_FOLDER.search(line) or HOST.search(line)


def test_no_module_is_a_drawer() -> None:
    """`utils`, `common` and `helpers` are not nouns."""
    drawers = {"utils.py", "common.py", "helpers.py", "util.py", "misc.py"}
    assert not [path for room in ROOMS for path in (ROOT / room).rglob("*.py") if path.name in drawers]


def test_every_module_opens_with_its_promise() -> None:
    """The first thing in a file is a docstring; empty package files aside."""
    silent = [
        name
        for name, text in texts()
        if name.endswith(".py") and text.strip() and not text.lstrip().startswith(('"""', "#!"))
    ]
    assert not silent


def test_what_is_pinned_is_what_the_ranges_allow() -> None:
    """Every package that pyproject names has one exact version in constraints.txt."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    lines = (ROOT / "constraints.txt").read_text().lower().splitlines()
    pins = dict(line.split("==") for line in lines if not line.startswith("#"))
    # Not installed for development: trackers that no test touches.
    needed = [
        *project["dependencies"],
        *(each for name in extras if name not in ("trackio", "wandb") for each in extras[name]),
    ]
    for each in needed:
        match = re.fullmatch(r"([\w-]+)(?:\[.*\])?(?:>=([\d.]+))?", each)
        assert match, each
        name, least = match[1].lower(), match[2]
        if name == "distillcache":
            continue
        assert least is not None, each
        assert number(pins[name]) >= number(least), each
    assert pins["torch"] == number_text(pins["torch"]), (
        "a local version such as +cpu exists on one index only"
    )


def test_the_readme_names_what_is_there() -> None:
    """Every `make` target and every path of the tree that it prints."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^    make ([a-z-]+)", text, re.MULTILINE))
    assert {"demo", "test"} <= targets
    assert targets <= set(re.findall(r"^([a-z-]+):.*##", makefile, re.MULTILINE))
    tree = text.split("```text\n")[1].split("```")[0]
    folder, named = ROOT, []
    for line in tree.splitlines():
        words = line.split("  ")[0] if not line.startswith(" ") else line.strip().split("  ")[0]
        base = folder if line.startswith(" ") else ROOT
        for word in words.split():
            named.append(base / word)
        if not line.startswith(" "):
            folder = named[-1]
    assert len(named) > 10
    assert not [path for path in named if not path.exists()]


def number(text: str) -> list[int]:
    """A version's numbers, for comparison."""
    return [int(part) for part in text.split(".") if part.isdigit()]


def number_text(text: str) -> str:
    """A version's numbers alone."""
    return ".".join(map(str, number(text)))
