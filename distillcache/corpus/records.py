"""Records of a corpus, in a fixed order, one at a time: a document, a prompt with its response, or a chat.

Reads JSONL, text, folders of both, standard input, and, through `datasets`, Parquet and hub data sets.
A file that is named must be readable; what a folder holds besides known text is left out, counted and named.
At most one record is in memory (a text file is one).
Knows nothing of tokens or templates.
"""

import importlib
import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any, BinaryIO

from distillcache.corpus.report import CorpusReport
from distillcache.errors import CorpusError

__all__ = ["Message", "Record", "read_records"]

JSONL_SUFFIXES = (".jsonl", ".ndjson")
# fmt: off
TEXT_SUFFIXES = frozenset({
    ".txt", ".text", ".md", ".markdown", ".rst", ".adoc", ".tex", ".org", ".html", ".htm", ".xml",
    ".py", ".pyi", ".js", ".mjs", ".cjs", ".ts", ".tsx", ".jsx", ".java", ".kt", ".kts", ".scala",
    ".go", ".rs", ".c", ".h", ".cc", ".cpp", ".cxx", ".hpp", ".hh", ".cu", ".cuh", ".cs", ".swift",
    ".m", ".mm", ".rb", ".php", ".pl", ".pm", ".lua", ".r", ".jl", ".hs", ".ml", ".mli", ".ex", ".exs",
    ".erl", ".clj", ".lisp", ".el", ".scm", ".dart", ".zig", ".nim", ".sh", ".bash", ".zsh", ".fish",
    ".ps1", ".sql", ".css", ".scss", ".less", ".vue", ".svelte", ".proto", ".cmake", ".mk", ".toml",
    ".yaml", ".yml", ".ini", ".cfg",
})
# fmt: on
KNOWN = "`messages`, `prompt` with `response`, or `text`"
REMEDY = f"a record has {KNOWN}"


@dataclass(frozen=True)
class Message:
    """What one speaker said in a chat."""

    role: str
    content: str


@dataclass(frozen=True)
class Record:
    """One record; exactly one of `text`, `response` (with `prompt`) and `messages` is not None."""

    where: str  # the file and the line or row, for people
    text: str | None = None
    prompt: str | None = None
    response: str | None = None
    messages: tuple[Message, ...] | None = None


def read_records(
    sources: Sequence[str],
    *,
    format: str = "auto",
    text_column: str = "text",
    limit: int | None = None,
    report: CorpusReport | None = None,
    stdin: BinaryIO | None = None,
) -> Iterator[Record]:
    """The records of all sources, in their order; the files of a folder in the order of their names.

    Every source is looked for before the first record is read.
    `limit` bounds the records, `report` counts files left out, `stdin` stands for standard input.
    Raises CorpusError, at once or while reading: a missing file, a record that is not JSON or has none of the
    known keys, text that is not UTF-8.
    """
    report = CorpusReport() if report is None else report
    if not sources:
        raise CorpusError("corpus: no source; name a file, a folder, `-` or hub:OWNER/NAME")
    plans = [_open(source, format, text_column, report, stdin) for source in sources]
    return islice(chain.from_iterable(plans), limit)


def _open(
    source: str, format: str, text_column: str, report: CorpusReport, stdin: BinaryIO | None
) -> Iterator[Record]:
    if source == "-":
        if format not in ("auto", "jsonl", "text"):
            raise CorpusError(
                f"standard input: cannot be read as {format}; name a file, or use jsonl or text"
            )
        return _stream(stdin, format, text_column)
    if source.startswith("hub:") or format == "hub":
        return _hub(source.removeprefix("hub:"), text_column)
    path = Path(source)
    if not os.path.exists(source):  # Path.exists raises for a name that no disk takes
        raise CorpusError(f"{source}: no such file or folder; name one that exists, `-` or hub:OWNER/NAME")
    if path.is_dir():
        return _folder(path, format, text_column, report)
    return _file(path, _kind(path, format), text_column)


def _kind(path: Path, format: str) -> str:
    """How a file that was named is read."""
    if format != "auto":
        return format
    suffix = path.suffix.lower()
    if suffix in JSONL_SUFFIXES or suffix == ".json":
        return "jsonl"
    return "parquet" if suffix == ".parquet" else "text"


def _kind_in_folder(path: Path, format: str) -> str | None:
    """How a file found in a folder is read, None if it is not."""
    suffix = path.suffix.lower()
    kind = (
        "jsonl" if suffix in JSONL_SUFFIXES
        else "parquet" if suffix == ".parquet"
        else "text" if suffix in TEXT_SUFFIXES
        else None
    )  # fmt: skip
    return kind if format in ("auto", kind) else None


def _folder(folder: Path, format: str, text_column: str, report: CorpusReport) -> Iterator[Record]:
    num_read = 0
    for path in _files(folder):
        kind = _kind_in_folder(path, format)
        if kind is None:
            report.skipped_files.add(str(path))
            continue
        if kind == "text":
            # Old source trees hold a few files in other encodings: no reason to give up all others.
            try:
                text = _decode(_read_bytes(path), str(path))
            except NotUtf8Error:
                report.skipped_files.add(f"{path} (not UTF-8)")
                continue
            num_read += 1
            yield Record(where=str(path), text=text)
        else:
            num_read += 1
            yield from _file(path, kind, text_column)
    if num_read == 0:
        what = "text" if format == "auto" else format
        raise CorpusError(f"{folder}: no {what} file in this folder; name files of another kind one by one")


def _files(folder: Path) -> Iterator[Path]:
    """Files below a folder, by name; hidden ones and links to folders are not followed."""
    for root, names, files in os.walk(folder, onerror=_refuse):
        names[:] = sorted(name for name in names if not name.startswith(".") and name != "__pycache__")
        for name in sorted(files):
            if not name.startswith("."):
                yield Path(root, name)


def _refuse(error: OSError) -> None:
    raise CorpusError(f"{error.filename}: cannot be read: {error.strerror}")


def _file(path: Path, kind: str, text_column: str) -> Iterator[Record]:
    if kind == "parquet":
        yield from _parquet(path, text_column)
    elif kind == "text":
        yield Record(where=str(path), text=_decode(_read_bytes(path), str(path)))
    else:
        try:
            with path.open("rb") as lines:
                yield from _jsonl(lines, str(path), text_column)
        except OSError as error:
            raise CorpusError(f"{path}: cannot be read: {error.strerror}") from None


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise CorpusError(f"{path}: cannot be read: {error.strerror}") from None


def _stream(stdin: BinaryIO | None, format: str, text_column: str) -> Iterator[Record]:
    """Standard input: JSONL if its first character that is not blank is `{`, else one document."""
    stream = sys.stdin.buffer if stdin is None else stdin
    name = "standard input"
    blank: list[bytes] = []
    first = b""
    for line in stream:
        if line.removeprefix(b"\xef\xbb\xbf").strip():
            first = line
            break
        blank.append(line)
    start = first.removeprefix(b"\xef\xbb\xbf").lstrip()
    if format == "jsonl" or (format == "auto" and start.startswith(b"{")):
        yield from _jsonl(chain(blank, [first], stream), name, text_column)
    elif format == "text" or first:
        yield Record(where=name, text=_decode(b"".join(blank) + first + stream.read(), name))


class NotUtf8Error(CorpusError):
    """Bytes that are not UTF-8 text."""


def _decode(data: bytes, where: str) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        byte = error.object[error.start]
        raise NotUtf8Error(
            f"{where}: not UTF-8 text; found byte 0x{byte:02x} at offset {error.start}; save it as UTF-8"
        ) from None


def _jsonl(lines: Iterable[bytes], name: str, text_column: str) -> Iterator[Record]:
    for number, line in enumerate(lines, start=1):
        where = f"{name}:{number}"
        text = _decode(line, where)
        if not text.strip():
            continue
        try:
            row = json.loads(text)
        except (ValueError, RecursionError) as error:
            what = (
                error.msg
                if isinstance(error, json.JSONDecodeError)
                else "nested too deep, or a number too long"
            )
            column = f" at column {error.colno}" if isinstance(error, json.JSONDecodeError) else ""
            raise CorpusError(f"{where}: not JSON ({what}{column}); one object a line is wanted") from None
        if not isinstance(row, dict):
            raise CorpusError(f"{where}: must be an object, found {_type(row)}; {REMEDY}")
        yield _record(row, where, text_column)


def _record(row: Mapping[str, Any], where: str, text_column: str) -> Record:
    """The record of one row; a text column that the user named goes before all other keys."""
    has = {key for key, value in row.items() if value is not None}
    if text_column != "text" and text_column in has:
        return Record(where=where, text=_text(row[text_column], where, text_column))
    if "messages" in has:
        return Record(where=where, messages=_messages(row["messages"], where))
    if "prompt" in has and "response" in has:
        prompt = _text(row["prompt"], where, "prompt")
        return Record(where=where, prompt=prompt, response=_text(row["response"], where, "response"))
    if text_column in has:
        return Record(where=where, text=_text(row[text_column], where, text_column))
    wanted = KNOWN if text_column == "text" else f"`{text_column}`, {KNOWN}"
    keys = [key if key.isprintable() else repr(key) for key in row]
    found = ", ".join(f"`{key}`" for key in keys[:8]) + (", ..." if len(keys) > 8 else "")
    null = [key for key in ("messages", "prompt", "response", text_column) if key in row and row[key] is None]
    raise CorpusError(
        f"{where}: no known key; found {found or 'none'}{' (null)' if null else ''}; a record has {wanted}"
    )


def _messages(value: object, where: str) -> tuple[Message, ...]:
    if not isinstance(value, list):
        raise CorpusError(f"{where}: `messages` must be a list, found {_type(value)}")
    messages = []
    for number, each in enumerate(value):
        name = f"messages[{number}]"
        if not isinstance(each, dict):
            raise CorpusError(
                f"{where}: `{name}` must be an object with `role` and `content`, found {_type(each)}"
            )
        for key in ("tool_calls", "function_call", "reasoning_content", "reasoning", "thinking"):
            # To leave them out in silence would teach another chat than the one in the file.
            if each.get(key):
                raise CorpusError(
                    f"{where}: `{name}` has `{key}`, which is not read; put it into `content` or leave it out"
                )
        role = _text(each.get("role"), where, f"{name}.role")
        if not role:
            raise CorpusError(f"{where}: `{name}.role` is empty; name who speaks")
        messages.append(Message(role=role, content=_text(each.get("content"), where, f"{name}.content")))
    return tuple(messages)


def _text(value: object, where: str, name: str) -> str:
    if not isinstance(value, str):
        raise CorpusError(f"{where}: `{name}` must be text, found {_type(value)}")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise CorpusError(
            f"{where}: `{name}` is not text: half a surrogate pair at character {error.start}; write both"
        ) from None
    return value


def _type(value: object) -> str:
    if value is None:
        return "null"
    names = {
        str: "text",
        bool: "true or false",
        list: "a list",
        dict: "an object",
        int: "a number",
        float: "a number",
    }
    return names.get(type(value), type(value).__name__)


def _parquet(path: Path, text_column: str) -> Iterator[Record]:
    rows = _load(str(path), "parquet", data_files=str(path), split="train")
    yield from _rows(rows, str(path), text_column)


def _hub(name: str, text_column: str) -> Iterator[Record]:
    repository, _, split = name.partition(":")
    if not repository or repository.count("/") > 1:
        raise CorpusError(f"hub:{name}: not a data set; write hub:OWNER/NAME or hub:OWNER/NAME:SPLIT")
    rows = _load(f"hub:{name}", repository, split=split or "train")
    return _rows(rows, f"hub:{name}", text_column)


def _load(where: str, *args: str, **options: str) -> Iterable[Mapping[str, Any]]:
    try:
        datasets = importlib.import_module("datasets")
    except ImportError:
        raise CorpusError(
            f"{where}: needs the package datasets; pip install 'distillcache[datasets]'"
        ) from None
    try:
        rows: Iterable[Mapping[str, Any]] = datasets.load_dataset(*args, streaming=True, **options)
    except Exception as error:  # of the hub, the network, fsspec or arrow: they have no common base
        raise CorpusError(f"{where}: cannot be read: {_first_line(error)}") from None
    return rows


def _rows(rows: Iterable[Mapping[str, Any]], name: str, text_column: str) -> Iterator[Record]:
    stream = iter(rows)
    number = 0
    while True:
        number += 1
        try:
            row = next(stream)
        except StopIteration:
            return
        except Exception as error:
            raise CorpusError(f"{name}: row {number}: cannot be read: {_first_line(error)}") from None
        yield _record(row, f"{name}: row {number}", text_column)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
