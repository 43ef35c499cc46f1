"""What a corpus is read as, and what is refused."""

import io
import json
import socket
import sys
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from distillcache.corpus.config import CorpusConfig
from distillcache.corpus.records import Message, Record, read_records
from distillcache.corpus.report import CorpusReport
from distillcache.errors import ConfigError, CorpusError


def write_jsonl(path: Path, *rows: object) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def read(*sources: str, **options: Any) -> list[Record]:
    return list(read_records(sources, **options))


def test_each_kind_of_record_is_told_by_its_keys(tmp_path: Path) -> None:
    """Kinds may be mixed in one file; other keys do not matter."""
    source = write_jsonl(
        tmp_path / "a.jsonl",
        {"prompt": "p", "response": "r", "cost": 1},
        {"messages": [{"role": "user", "content": "u", "name": "x"}], "prompt": "not this"},
        {"text": "t"},
    )
    assert read(source) == [
        Record(where=f"{source}:1", prompt="p", response="r"),
        Record(where=f"{source}:2", messages=(Message("user", "u"),)),
        Record(where=f"{source}:3", text="t"),
    ]


def test_a_text_column_that_was_named_goes_before_other_keys(tmp_path: Path) -> None:
    """A setting is never silently passed over."""
    source = write_jsonl(tmp_path / "a.jsonl", {"code": "c", "messages": []})
    assert read(source, text_column="code")[0].text == "c"


def test_blank_lines_and_a_byte_order_mark_are_no_records(tmp_path: Path) -> None:
    """Line numbers still count every line."""
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"text": "a"}\n\n  \n{"text": "b"}')
    assert [(each.where, each.text) for each in read(str(path))] == [(f"{path}:1", "a"), (f"{path}:4", "b")]


def test_limit_ends_the_reading_before_a_faulty_line(tmp_path: Path) -> None:
    """Reading is lazy: nothing past the limit is looked at."""
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a"}\nnot json\n')
    assert [each.text for each in read(str(path), limit=1)] == ["a"]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b"{oops", "a.jsonl:2: not JSON (Expecting property name enclosed in double quotes at column 2)"),
        (b"[" * 100_000, "a.jsonl:2: not JSON"),
        (b'["text"]', "a.jsonl:2: must be an object, found a list"),
        (
            b'{"body": "x", "id": 3}',
            "a.jsonl:2: no known key; found `body`, `id`; a record has `messages`, `prompt`",
        ),
        (b"{}", "a.jsonl:2: no known key; found none"),
        (b'{"text": null}', "a.jsonl:2: no known key; found `text` (null)"),
        (b'{"text": 3}', "a.jsonl:2: `text` must be text, found a number"),
        (b'{"prompt": "p"}', "a.jsonl:2: no known key; found `prompt`"),
        (b'{"prompt": ["p"], "response": "r"}', "a.jsonl:2: `prompt` must be text, found a list"),
        (b'{"messages": "hi"}', "a.jsonl:2: `messages` must be a list, found text"),
        (b'{"messages": ["hi"]}', "a.jsonl:2: `messages[0]` must be an object"),
        (b'{"messages": [{"role": "user"}]}', "a.jsonl:2: `messages[0].content` must be text, found null"),
        (b'{"messages": [{"content": "x"}]}', "a.jsonl:2: `messages[0].role` must be text, found null"),
        (b'{"messages": [{"role": "", "content": "x"}]}', "a.jsonl:2: `messages[0].role` is empty"),
        (
            b'{"messages": [{"role": "assistant", "content": "x", "tool_calls": [{"id": 1}]}]}',
            "a.jsonl:2: `messages[0]` has `tool_calls`, which is not read",
        ),
        (b'{"text": "\\ud83d"}', "a.jsonl:2: `text` is not text: half a surrogate pair at character 0"),
        (b'{"text": "caf\xe9"}', "a.jsonl:2: not UTF-8 text; found byte 0xe9 at offset 13"),
    ],
)
def test_a_faulty_record_is_refused_with_its_line(tmp_path: Path, line: bytes, said: str) -> None:
    """One line that names the file, the line and what was found."""
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "fine"}\n' + line + b"\n")
    with pytest.raises(CorpusError) as caught:
        read(str(path))
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_every_source_is_looked_for_before_the_first_is_read(tmp_path: Path) -> None:
    """A missing third file is said at once, not after hours."""
    source = write_jsonl(tmp_path / "a.jsonl", {"text": "t"})
    with pytest.raises(CorpusError, match=r"gone\.txt: no such file or folder; "):
        read_records([source, str(tmp_path / "gone.txt")])


def test_a_text_file_is_one_document_as_it_stands(tmp_path: Path) -> None:
    """Line ends are not touched; an unknown suffix does not matter for a file that was named."""
    path = tmp_path / "essay.weird"
    path.write_bytes("one\r\ntwo é\n".encode())
    assert read(str(path)) == [Record(where=str(path), text="one\r\ntwo é\n")]


def test_a_named_file_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    """The byte and its place are named."""
    path = tmp_path / "a.txt"
    path.write_bytes(b"caf\xe9")
    with pytest.raises(
        CorpusError, match=r"a\.txt: not UTF-8 text; found byte 0xe9 at offset 3; save it as UTF-8"
    ):
        read(str(path))


def test_a_folder_is_read_in_order_and_what_is_left_out_is_named(tmp_path: Path) -> None:
    """Sorted by name whatever the disk says; hidden files are not looked at; other kinds are counted."""
    for name in ("z.txt", "b.py", "sub/c.md", "sub/.hidden.txt", ".git/x.txt", "__pycache__/y.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    (tmp_path / "picture.png").write_bytes(b"\x89PNG")
    write_jsonl(tmp_path / "a.jsonl", {"text": "row"})
    report = CorpusReport()
    assert [each.text for each in read(str(tmp_path), report=report)] == ["row", "b.py", "z.txt", "sub/c.md"]
    assert report.skipped_files.first == [f"{tmp_path}/latin.txt (not UTF-8)", f"{tmp_path}/picture.png"]
    only = [each.text for each in read(str(tmp_path), format="jsonl")]
    assert only == ["row"]


def test_a_folder_without_text_is_refused(tmp_path: Path) -> None:
    """An empty corpus is a mistake, not a success."""
    (tmp_path / "picture.png").write_bytes(b"\x89PNG")
    with pytest.raises(CorpusError, match="no text file in this folder"):
        read(str(tmp_path))


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (b'\n {"text": "a"}\n{"text": "b"}\n', ["a", "b"]),
        (b'\xef\xbb\xbf{"text": "a"}', ["a"]),
        (b"\nplain {text}\n", ["\nplain {text}\n"]),
        (b"", []),
    ],
)
def test_standard_input_is_told_by_its_first_character(data: bytes, found: list[str]) -> None:
    """`{` begins JSONL, anything else is one document."""
    assert [each.text for each in read("-", stdin=io.BytesIO(data))] == found


def test_standard_input_names_its_lines() -> None:
    """A fault in a pipe has a place too."""
    with pytest.raises(CorpusError, match="standard input:2: not JSON"):
        read("-", stdin=io.BytesIO(b'{"text": "a"}\noops\n'))


def test_parquet_is_read_as_jsonl_is(tmp_path: Path) -> None:
    """Rows have the same keys, and faults name the row."""
    path = tmp_path / "a.parquet"
    chat = [{"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}]
    parquet.write_table(pyarrow.table({"messages": [chat, chat], "id": [1, 2]}), path)
    assert [each.messages for each in read(str(path))] == [
        (Message("user", "u"), Message("assistant", "a"))
    ] * 2
    parquet.write_table(pyarrow.table({"body": ["x"]}), path)
    with pytest.raises(CorpusError, match=r"a\.parquet: row 1: no known key; found `body`"):
        read(str(path))
    path.write_bytes(b"not parquet")
    with pytest.raises(CorpusError, match=r"a\.parquet: (row 1: )?cannot be read"):
        read(str(path))


def test_without_the_extra_the_remedy_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The base install says which extra is wanted."""
    path = tmp_path / "a.parquet"
    path.write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(
        CorpusError, match=r"needs the package datasets; pip install 'distillcache\[datasets\]'"
    ):
        read(str(path))


def test_a_hub_data_set_without_network_is_one_line() -> None:
    """The tests run offline: the hub's own error ends in one line of ours."""
    with pytest.raises(CorpusError) as caught:
        read("hub:nobody/nothing-at-all:train")
    assert str(caught.value).startswith("hub:nobody/nothing-at-all:train: cannot be read: ")
    assert "\n" not in str(caught.value)


def test_a_file_that_cannot_be_opened_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A socket stands for all that is there and cannot be read, for root too."""
    monkeypatch.chdir(tmp_path)  # the name of a socket is short
    for name in ("a.jsonl", "a.txt"):
        with socket.socket(socket.AF_UNIX) as held:
            held.bind(name)
        with pytest.raises(CorpusError, match=rf"^{name}: cannot be read: "):
            read(name)


def test_a_name_that_no_disk_takes_is_a_missing_file() -> None:
    """The system refuses to look, which is not our user's traceback."""
    with pytest.raises(CorpusError, match="no such file or folder"):
        read("x" * 5000)


def test_bounds_of_the_settings_hold_from_both_sides() -> None:
    """Stride is below max_length, and there is a source."""
    CorpusConfig(sources=("a",), max_length=8, stride=7)
    with pytest.raises(ConfigError, match=r"--stride: must be below --max-length \(8\), found 8"):
        CorpusConfig(sources=("a",), max_length=8, stride=8)
    with pytest.raises(ConfigError, match="--sources: must name"):
        CorpusConfig(sources=())
    CorpusConfig(sources=("-", "a"))
    with pytest.raises(ConfigError, match="can be read once"):
        CorpusConfig(sources=("-", "-"))
