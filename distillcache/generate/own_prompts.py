"""A user's own prompts, from a file, in place of those made from templates.

Knows nothing of templates.
"""

import json
from pathlib import Path

from distillcache.errors import ConfigError
from distillcache.generate.prompts import Prompt

__all__ = ["read_prompts"]

_OWN_KEYS = {"prompt", "category", "language", "difficulty", "system", "code_due"}


def read_prompts(path: Path, system: str | None = None) -> list[Prompt]:
    """A user's own prompts: JSONL with `prompt` and, if known, category, language, difficulty, system,
    code_due;
    or a text file, one prompt a line. A prompt that comes twice is kept once.

    Raises `ConfigError` with the file's name and line.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as fault:
        raise ConfigError(f"{path}: cannot be read; {fault.__class__.__name__}; give a UTF-8 file") from None
    prompts: dict[str, Prompt] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        if path.suffix in (".jsonl", ".json"):
            prompt = _own(f"{path}:{number}", line, system)
        else:
            prompt = Prompt(line.strip(), "own", None, None, False, system=system)
        prompts.setdefault(prompt.id, prompt)
    if not prompts:
        raise ConfigError(f"{path}: holds no prompt")
    return list(prompts.values())


def _own(where: str, line: str, system: str | None) -> Prompt:
    try:
        record = json.loads(line)
    except ValueError:
        raise ConfigError(f"{where}: not JSON; a .jsonl file holds one object a line") from None
    text = record.get("prompt") if isinstance(record, dict) else None
    if not isinstance(text, str) or not text.strip():
        raise ConfigError(f"{where}: no text in `prompt`")
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise ConfigError(f"{where}: `prompt` holds half a character (a lone surrogate); write it whole")
    if unknown := set(record) - _OWN_KEYS:
        raise ConfigError(f"{where}: unknown key `{min(unknown)}`; known are {', '.join(sorted(_OWN_KEYS))}")
    code_due = record.get("code_due", False)
    for key in ("category", "language", "difficulty", "system"):
        if not isinstance(record.get(key), str | None):
            raise ConfigError(f"{where}: `{key}` must be a text, found {record[key]!r}")
    if not isinstance(code_due, bool):
        raise ConfigError(f"{where}: `code_due` must be true or false, found {code_due!r}")
    return Prompt(
        text, record.get("category") or "own", record.get("language"), record.get("difficulty"), code_due,
        system=record.get("system") or system,
    )  # fmt: skip
