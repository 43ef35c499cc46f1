"""Settings of a teacher behind an API: what it is asked, how it is reached, what it may cost.

Knows neither torch nor a vendor's client.
"""

from dataclasses import dataclass, fields
from pathlib import Path

from distillcache.config import refuse_given, setting
from distillcache.corpus.config import CorpusConfig
from distillcache.errors import ConfigError
from distillcache.generate.config import GenerateConfig
from distillcache_shards.limits import MAX_VOCABULARY

__all__ = ["ANSWERS", "ASKS", "ApiConfig", "vendor_of"]

ANSWERS = "answers"
ASKS = (ANSWERS, "prompt_logprobs", "echo", "echo_text")
OPENAI_MOST = 20
# Settings of a corpus, or of answers, that only one of the two ways of asking reads.
OF_SCORES = ("stride", "supervise", "special_tokens")
OF_ANSWERS = ("max_tokens", "temperature")


def vendor_of(teacher: str) -> str | None:
    """`openai` or `anthropic` for the name of a teacher behind an API, None for a model of one's own."""
    vendor, colon, _ = teacher.partition(":")
    return vendor if colon and vendor in ("openai", "anthropic") else None


@dataclass(frozen=True, kw_only=True)
class ApiConfig(CorpusConfig):
    """A corpus and its teacher, and how one behind an API is asked."""

    teacher: str = setting(
        help="Folder of a transformers model, hub name, or .gguf file; or openai:MODEL behind an API."
    )
    tokenizer: str | None = setting(
        None,
        help="Of an API: folder, hub name or .gguf file of the tokenizer whose ids the cache holds; must be "
        "the server's own.",
    )
    ask: str = setting(
        ANSWERS,
        help="Of an API: answers to the corpus' prompts, or scores of the corpus as it is, by vLLM's "
        "prompt_logprobs or by the older echo, from token ids or from text.",
        choices=ASKS,
    )
    top_logprobs: int = setting(
        OPENAI_MOST,
        help="Of an API: most log-probabilities a token that the server gives.",
        minimum=1,
        maximum=MAX_VOCABULARY,
    )
    token_ids: bool = setting(
        True, help="Of a --base-url: ask for token ids in place of text; leave out where it is refused."
    )
    base_url: str | None = setting(None, help="Address of an OpenAI-compatible server.")
    key_file: Path | None = setting(None, help="File that holds the API key and nothing else.")
    key_env: str | None = setting(
        None,
        help="Environment variable that holds the API key, if not OPENAI_API_KEY; needed with --base-url.",
    )
    answers: Path | None = setting(
        None, help="Folder that keeps all that an API said, paid once; CACHE.answers when not given."
    )
    max_tokens: int = setting(1024, help="Of an API: most tokens of an answer.", minimum=1)
    temperature: float | None = setting(
        None,
        help="Of an API: sampling temperature of answers; the server's own when not given.",
        minimum=0.0,
        maximum=2.0,
    )
    concurrency: int = setting(8, help="Requests under way at once.", minimum=1, maximum=1024)
    requests_per_minute: int | None = setting(None, help="Most requests a minute.", minimum=1)
    tokens_per_minute: int | None = setting(None, help="Most tokens a minute, prompt and answer.", minimum=1)
    request_seconds: float = setting(300.0, help="Time limit of one request, seconds.", above=0.0)
    max_attempts: int = setting(6, help="Times a question is tried in one run.", minimum=1)
    retry_seconds: float = setting(1.0, help="Pause before the second try; doubles, with jitter.", above=0.0)
    max_cost: float | None = setting(None, help="Most US dollars the answers may cost.", above=0.0)
    price_input: float | None = setting(None, help="US dollars a million prompt tokens.", minimum=0.0)
    price_output: float | None = setting(None, help="US dollars a million answer tokens.", minimum=0.0)
    prices: Path | None = setting(None, help="Price file in place of ours, as for `generate`.")
    price_unknown: bool = setting(False, help="Go on without a price: tokens are counted, cost is not.")

    @property
    def is_api(self) -> bool:
        """Whether the teacher is behind an API."""
        return vendor_of(self.teacher) is not None

    def check_api(self, of_models: tuple[str, ...]) -> None:
        """Raises ConfigError for settings that do not go with this teacher.

        `of_models` are the settings that only a model of one's own reads.
        """
        if not self.is_api:
            ours = [each.name for each in fields(ApiConfig) if each.name not in NOT_OF_AN_API]
            refuse_given(self, ours, "as --teacher is no API")
            return
        if vendor_of(self.teacher) == "anthropic":
            raise ConfigError(
                f"--teacher: {self.teacher} has no rows to give, for Anthropic returns no log-probabilities; "
                "let it write text by `distillcache generate`, and train on that by `learn --type output`"
            )
        if not self.teacher.partition(":")[2]:
            raise ConfigError(f"--teacher: must be openai:MODEL, found {self.teacher!r}")
        refuse_given(self, of_models, "as --teacher is an API")
        refuse_given(self, OF_SCORES if self.ask == ANSWERS else OF_ANSWERS, f"with --ask {self.ask}")
        if self.tokenizer is None:
            raise ConfigError(
                "--tokenizer: missing; an API does not say whose its tokens are; "
                "name the folder or hub name of the model's tokenizer"
            )
        if self.base_url is None:
            if self.top_logprobs > OPENAI_MOST:
                raise ConfigError(
                    f"--top-logprobs: must be at most {OPENAI_MOST} at OpenAI, found {self.top_logprobs}"
                )
            if self.ask == "prompt_logprobs":
                raise ConfigError(
                    "--ask: prompt_logprobs is a field of vLLM's, which OpenAI does not know; "
                    "give the server's --base-url"
                )
            refuse_given(self, ("token_ids",), "without --base-url")
        self.asking()

    def asking(self) -> GenerateConfig:
        """The same as settings of `generate`, which checks those that both have. Raises ConfigError."""
        return GenerateConfig(
            out=self.answers or Path("answers"),
            prompts=Path("corpus"),
            teacher=self.teacher,
            max_tokens=self.max_tokens if self.ask == ANSWERS else 1,
            **{name: getattr(self, name) for name in SHARED},
        )


NOT_OF_AN_API = {"teacher", *(each.name for each in fields(CorpusConfig))}
SHARED = (
    "base_url", "key_file", "key_env", "temperature", "concurrency", "requests_per_minute",
    "tokens_per_minute", "request_seconds", "max_attempts", "retry_seconds", "max_cost", "price_input",
    "price_output", "prices", "price_unknown",
)  # fmt: skip
