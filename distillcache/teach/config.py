"""Settings of `teach`: the corpus, the teacher, what is kept and how it is coded.

Knows neither torch nor a model.
"""

from dataclasses import dataclass
from pathlib import Path

from distillcache.config import setting
from distillcache.errors import ConfigError
from distillcache.teach.api.config import ApiConfig, vendor_of
from distillcache_shards.limits import MAX_VOCABULARY

__all__ = ["TeachConfig"]

LEVEL = 9
# Read by a model of one's own alone.
OF_MODELS = ("gguf_file", "revision", "trust_remote_code", "dtype", "device", "batch_tokens")


@dataclass(frozen=True, kw_only=True)
class TeachConfig(ApiConfig):
    """A teacher runs once over a corpus, into a cache folder."""

    cache: Path = setting(positional=True, help="Cache folder; made if it is not there.")
    teacher: str = setting(
        help="Folder of a transformers model, hub name, or .gguf file; or openai:MODEL behind an API."
    )
    gguf_file: str | None = setting(None, help="GGUF file inside the teacher's folder or hub name.")
    revision: str | None = setting(None, help="Branch, tag or commit of a teacher on the hub.")
    trust_remote_code: bool = setting(False, help="Run code that comes with the teacher.")
    dtype: str = setting(
        "auto",
        help="Numbers the teacher computes in; auto: what the device has natively, or what the cache has.",
        choices=("auto", "bf16", "fp16", "fp32"),
    )
    device: str = setting("auto", help="auto, cpu, mps, cuda, cuda:N, or split over all GPUs.")
    k: int = setting(64, help="Ids kept a row, the most likely ones.", minimum=1, maximum=MAX_VOCABULARY)
    codec: str = setting(
        "zstd",
        help="Code of the rows: zstd is smaller, plain is read in place.",
        choices=("zstd", "plain"),
    )
    level: int | None = setting(None, help="Level of --codec zstd: 9 unless given.", minimum=1, maximum=22)
    block_rows: int = setting(512, help="Rows of a block, the unit of random reads.", minimum=1)
    shard_rows: int = setting(
        65_536, help="Rows of a shard, the unit of work and of recovery; at least a sequence.", minimum=1
    )
    batch_tokens: int | None = setting(
        None,
        help="Tokens of a teacher's batch, padding included; 4,096 on a CPU, else 16,384, or the cache's.",
        minimum=1,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_api(self.teacher, OF_MODELS)
        if self.level is not None and self.codec != "zstd":
            raise ConfigError(
                f"--level: has no use with --codec {self.codec}, found {self.level}; leave it out"
            )

    @property
    def is_api(self) -> bool:
        """Whether the teacher is behind an API."""
        return vendor_of(self.teacher) is not None

    @property
    def row_k(self) -> int:
        """Most ids of a row: `k`, or what an API gives where that is less."""
        return min(self.k, self.top_logprobs) if self.is_api else self.k

    def codec_params(self) -> dict[str, object]:
        """The codec's parameters, as its cache states them."""
        level = LEVEL if self.level is None else self.level
        return {"logprobs": "f16"} | ({"level": level} if self.codec == "zstd" else {})
