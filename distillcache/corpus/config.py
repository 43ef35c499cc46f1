"""Settings of a corpus: what is read, how long a sequence may be, and which of its tokens are supervised.

Knows neither torch nor a tokenizer.
"""

from dataclasses import dataclass

from distillcache.config import setting
from distillcache.errors import ConfigError

__all__ = ["FORMATS", "CorpusConfig"]

FORMATS = ("auto", "jsonl", "text", "parquet", "hub")


@dataclass(frozen=True, kw_only=True)
class CorpusConfig:
    """Which text, and how it becomes sequences of tokens with a mask."""

    sources: tuple[str, ...] = setting(
        help="Files, folders, `-` for standard input, or hub:OWNER/NAME[:SPLIT]; read in this order."
    )
    format: str = setting(
        "auto", help="How the sources are read; `auto` goes by the file's name.", choices=FORMATS
    )
    text_column: str = setting("text", help="Key or column that holds the text of a plain document.")
    max_length: int = setting(2048, help="Most tokens of a sequence; longer ones are cut.", minimum=2)
    stride: int = setting(
        0,
        help="Tokens that a later piece of a cut document repeats as context, unsupervised; 1 at least is.",
        minimum=0,
    )
    supervise: str = setting(
        "assistant",
        help="What counts in the loss of chats and prompt/response records.",
        choices=("assistant", "all"),
    )
    system: str | None = setting(None, help="System prompt for chats that have none of their own.")
    special_tokens: str = setting(
        "text",
        help="What the name of a special token, written in the corpus, is read as.",
        choices=("text", "token"),
    )
    limit: int | None = setting(None, help="Most records read; all when not given.", minimum=1)

    def __post_init__(self) -> None:
        if not self.sources:
            raise ConfigError("--sources: must name a file, a folder, `-` or hub:OWNER/NAME, found none")
        if self.sources.count("-") > 1:
            raise ConfigError("--sources: `-` can be read once, found it twice")
        if self.stride >= self.max_length:
            raise ConfigError(
                f"--stride: must be below --max-length ({self.max_length}), found {self.stride}"
            )
