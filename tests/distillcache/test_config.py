"""Settings, from a file and from flags: what is read, and that every wrong one is one line."""

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distillcache.config import REQUIRED, check, load_config, setting, settings
from distillcache.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class TextConfig:
    """A base, as the corpus is of teach."""

    corpus: tuple[str, ...] = setting(help="Files.")
    max_length: int = setting(512, help="Tokens.", minimum=2, maximum=1024)
    stride: int | None = setting(None, help="Overlap.", minimum=0)


@dataclass(frozen=True, kw_only=True)
class Config(TextConfig):
    """One setting of every kind."""

    out: Path = setting(positional=True, help="Folder.")
    temperature: float = setting(1.0, help="Temperature.", above=0.0, below=100.0)
    dtype: str = setting("auto", help="Number type.", choices=("auto", "fp32"))
    verify: bool = setting(True, help="Verify.")
    share: float | None = setting(0.85, help="Share.", minimum=0.0, maximum=1.0)
    more: tuple[Path, ...] = setting((), help="Folders.")
    log: Path | None = setting(None, help="File.")

    def __post_init__(self) -> None:
        if self.stride is not None and self.stride >= self.max_length:
            raise ConfigError(f"--stride: must be below --max-length, found {self.stride}")


KNOWN = "corpus, dtype, log, max_length, more, out, share, stride, temperature, verify"
HUGE = "a number of over 40 digits"
NEEDED: dict[str, object] = {"out": "cache", "corpus": ["a.txt"]}


def load(tmp_path: Path, text: str | bytes, **flags: object) -> Config:
    """A config from a file of this text, and flags."""
    file = tmp_path / "some.toml"
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    return load_config(Config, file, NEEDED | flags)


def refusal(tmp_path: Path, text: str | bytes, **flags: object) -> str:
    """The one line, without the folder of the test."""
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text, **flags)
    line = str(caught.value)
    assert "\n" not in line
    return line.replace(f"{tmp_path}/", "")


def test_defaults_hold_where_nothing_is_given() -> None:
    """No file and no flags but the needed ones: what the class says."""
    config = load_config(Config, None, NEEDED)
    assert config == Config(out=Path("cache"), corpus=("a.txt",))


def test_flags_override_the_file_and_the_file_the_defaults(tmp_path: Path) -> None:
    """The nearest word wins."""
    config = load(tmp_path, "max_length = 64\nstride = 8\nverify = false", max_length="32")
    assert (config.max_length, config.stride, config.verify, config.dtype) == (32, 8, False, "auto")


def test_a_file_reads_every_kind_in_its_own_type(tmp_path: Path) -> None:
    """A whole number serves as a number; a list becomes a tuple; a path a Path."""
    text = 'temperature = 2\ndtype = "fp32"\nmore = ["x", "y"]\nlog = "run.log"\nshare = 1'
    config = load(tmp_path, text)
    assert config.temperature == 2.0
    assert isinstance(config.temperature, float)
    assert config.more == (Path("x"), Path("y"))
    assert config.log == Path("run.log")
    assert config.dtype == "fp32"


def test_flags_arrive_as_text(tmp_path: Path) -> None:
    """What a shell hands over is read in the setting's own type; a list and a truth come as they are."""
    config = load(tmp_path, "", temperature="2.5", stride="4", more=["x"], verify=False, log="run.log")
    assert (config.temperature, config.stride, config.more) == (2.5, 4, (Path("x"),))
    assert (config.verify, config.log) == (False, Path("run.log"))


@pytest.mark.parametrize("flags", [{"share": "none"}, {"share": None}, {}])
def test_the_word_none_is_none(tmp_path: Path, flags: dict[str, object]) -> None:
    """TOML has no word for nothing; ours serves in a file and as a flag."""
    assert load(tmp_path, 'share = "none"', **flags).share is None


def test_a_path_in_a_file_may_begin_at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A shell would have written it out; in a file it is for us to do."""
    monkeypatch.setenv("HOME", str(tmp_path))
    assert load(tmp_path, 'log = "~/run.log"').log == tmp_path / "run.log"


def test_a_file_with_a_byte_order_mark_is_read(tmp_path: Path) -> None:
    """Some editors write one, and nobody sees it."""
    assert load(tmp_path, b"\xef\xbb\xbfmax_length = 64").max_length == 64


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("temprature = 1", "some.toml: unknown key `temprature`; did you mean `temperature`?"),
        ("max-length = 9", "some.toml: unknown key `max-length`; did you mean `max_length`?"),
        ("[teach]\nk = 1", f"some.toml: unknown key `teach`; known are {KNOWN}"),
        ('"a\\nb" = 1', f"some.toml: unknown key `a\\nb`; known are {KNOWN}"),
        ("max_length = 1", "some.toml: `max_length`: must be at least 2, found 1"),
        ("max_length = 1025", "some.toml: `max_length`: must be at most 1024, found 1025"),
        ("max_length = true", "some.toml: `max_length`: must be a whole number, found true"),
        ("max_length = 64.0", "some.toml: `max_length`: must be a whole number, found 64.0"),
        ('max_length = "64"', "some.toml: `max_length`: must be a whole number, found '64'"),
        (f"max_length = {10**60}", f"some.toml: `max_length`: must be at most 1024, found {HUGE}"),
        ("stride = {a = 1}", "some.toml: `stride`: must be a whole number, or `none`, found a table"),
        ("temperature = 0", "some.toml: `temperature`: must be above 0.0, found 0.0"),
        ("temperature = 100.0", "some.toml: `temperature`: must be below 100.0, found 100.0"),
        ("temperature = nan", "some.toml: `temperature`: must be a number, found nan"),
        ("temperature = inf", "some.toml: `temperature`: must be a number, found inf"),
        ("temperature = false", "some.toml: `temperature`: must be a number, found false"),
        (f"temperature = {10**400}", f"some.toml: `temperature`: must be a number, found {HUGE}"),
        ("share = 1.5", "some.toml: `share`: must be at most 1.0, found 1.5"),
        ("verify = 1", "some.toml: `verify`: must be true or false, found 1"),
        ('verify = "true"', "some.toml: `verify`: must be true or false, found 'true'"),
        ('dtype = "fp16"', "some.toml: `dtype`: must be one of auto, fp32, found 'fp16'"),
        ("dtype = 32", "some.toml: `dtype`: must be text, found 32"),
        ('more = "x"', "some.toml: `more`: must be a list, found 'x'"),
        ("more = [1]", "some.toml: `more`: must be a path, found 1"),
        ('more = [""]', "some.toml: `more`: must be a path, found ''"),
        ("log = 2020-01-01", "some.toml: `log`: must be a path, or `none`, found datetime.date(2020, 1, 1)"),
        ("stride = 512", "some.toml: `stride`: must be below --max-length, found 512"),
        ("max_length = 64\n\nx == 1", "some.toml: line 3 is not TOML: invalid value"),
        ("max_length = 64\nmore = [\n", "some.toml: line 2 is not TOML: invalid value"),
        ("max_length = 3\nmax_length = 4", "some.toml: line 2 is not TOML: cannot overwrite a value"),
        (b"log = '\xff'", "some.toml: not UTF-8 text, at byte 7; save it as UTF-8"),
        ("more = " + "[" * 5000, "some.toml: not TOML: nested too deep; settings are plain `name = value`"),
    ],
)  # fmt: skip
def test_a_wrong_file_is_refused_in_one_line(tmp_path: Path, text: str | bytes, line: str) -> None:
    """Where, what is wrong, what was found."""
    assert refusal(tmp_path, text) == line


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        ({"max_length": "1"}, "--max-length: must be at least 2, found 1"),
        ({"max_length": 1}, "--max-length: must be at least 2, found 1"),
        ({"max_length": "many"}, "--max-length: must be a whole number, found 'many'"),
        ({"max_length": "6.5"}, "--max-length: must be a whole number, found '6.5'"),
        ({"max_length": None}, "--max-length: must be a whole number, found None"),
        ({"max_length": "9" * 5000}, f"--max-length: must be a whole number, found '{'9' * 76}..."),
        ({"temperature": "nan"}, "--temperature: must be a number, found 'nan'"),
        ({"dtype": "x\ny"}, "--dtype: must be one of auto, fp32, found 'x\\ny'"),
        ({"out": ""}, "OUT: must be a path, found ''"),
        ({"more": "x"}, "--more: must be a list, found 'x'"),
        ({"stride": "600"}, "--stride: must be below --max-length, found 600"),
        ({"temprature": "1"}, "--temprature: unknown setting; did you mean `temperature`?"),
    ],
)
def test_a_wrong_flag_is_refused_by_its_own_name(tmp_path: Path, flags: dict[str, object], line: str) -> None:
    """As it was typed: `--max-length`, not `max_length`."""
    assert refusal(tmp_path, "", **flags) == line


def test_what_must_be_given_and_is_not_is_named() -> None:
    """All of it at once, so that nobody learns of them one by one."""
    with pytest.raises(ConfigError) as caught:
        load_config(Config, None, {})
    assert str(caught.value) == (
        "--corpus, OUT: missing; give them on the command line, or `corpus`, `out` in the file of --config"
    )
    with pytest.raises(
        ConfigError, match=r"^OUT: missing; give it on the command line, or `out` in the file"
    ):
        load_config(Config, None, {"corpus": ["a"]})


def test_a_file_that_is_not_there_or_a_folder_is_refused(tmp_path: Path) -> None:
    """Both with the remedy."""
    for path, what in ((tmp_path / "no.toml", "no such file"), (tmp_path, "is a folder")):
        with pytest.raises(ConfigError) as caught:
            load_config(Config, path, NEEDED)
        assert str(caught.value) == f"{path}: {what}; name a TOML file after --config"


@given(st.integers(-3000, 3000))
def test_a_whole_number_is_taken_within_its_bounds_alone(value: int) -> None:
    """Both bounds belong to what is allowed."""
    if 2 <= value <= 1024:
        assert load_config(Config, None, NEEDED | {"max_length": str(value)}).max_length == value
    else:
        with pytest.raises(ConfigError):
            load_config(Config, None, NEEDED | {"max_length": value})


@given(st.floats(-10, 200))
def test_an_exclusive_bound_is_not_taken(value: float) -> None:
    """`above` and `below` leave their own value out."""
    if 0 < value < 100:
        assert load_config(Config, None, NEEDED | {"temperature": repr(value)}).temperature == value
    else:
        with pytest.raises(ConfigError):
            load_config(Config, None, NEEDED | {"temperature": value})


@given(st.text(), st.sampled_from([each.name for each in settings(Config) if each.name != "dtype"]))
def test_no_text_typed_as_a_flag_ends_in_anything_but_one_line(text: str, name: str) -> None:
    """A config or a ConfigError, whatever was typed."""
    line, config = "", None
    try:
        config = load_config(Config, None, NEEDED | {name: text})
    except ConfigError as error:
        line = str(error)
    assert (config is None) == (len(line.splitlines()) == 1)
    assert config is None or math.isfinite(config.temperature)


def test_a_config_made_in_python_can_be_held_to_its_bounds() -> None:
    """`check` names the class, since there is neither file nor flag."""
    check(Config(out=Path("x"), corpus=("a",), share=None))
    with pytest.raises(ConfigError, match=r"^Config\.max_length: must be at least 2, found 0$"):
        check(Config(out=Path("x"), corpus=("a",), max_length=0))


def test_settings_say_what_a_command_line_needs() -> None:
    """Names, flags, kinds and defaults; those of the base class first."""
    known = {each.name: each for each in settings(Config)}
    assert list(known)[:3] == ["corpus", "max_length", "stride"]
    assert (known["max_length"].flag, known["out"].flag) == ("--max-length", "OUT")
    assert known["corpus"].required
    assert known["corpus"].default is REQUIRED
    assert known["more"].many
    assert known["more"].kind is Path
    assert known["stride"].optional
    assert known["stride"].kind is int


@pytest.mark.parametrize("kind", [dict[str, int], int | str, tuple[int, str], tuple[str, ...] | None])
def test_a_setting_of_another_type_is_our_mistake(kind: Any) -> None:
    """TypeError when the class is first used, not a surprise for a user."""
    cls = dataclasses.make_dataclass("Odd", [("odd", kind, setting(None, help="Odd."))])
    with pytest.raises(TypeError, match="cannot be of type"):
        settings(cls)
