"""Settings of `teach`: the corpus, the teacher, what is kept and how it is coded.

Knows neither torch nor a model.
"""

from dataclasses import dataclass
from pathlib import Path

from distillcache.config import setting
from distillcache.corpus.config import CorpusConfig
from distillcache_shards.plan import MAX_VOCABULARY

__all__ = ["TeachConfig"]


@dataclass(frozen=True, kw_only=True)
class TeachConfig(CorpusConfig):
    """A teacher runs once over a corpus, into a cache folder."""

    cache: Path = setting(positional=True, help="Cache folder; made if it is not there.")
    teacher: str = setting(help="Folder of a transformers model, hub name, or .gguf file.")
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
    level: int = setting(9, help="Level of zstandard.", minimum=1, maximum=22)
    block_rows: int = setting(512, help="Rows of a block, the unit of random reads.", minimum=1)
    shard_rows: int = setting(
        65_536, help="Rows of a shard, the unit of work and of recovery; at least a sequence.", minimum=1
    )
    batch_tokens: int | None = setting(
        None,
        help="Tokens of a teacher's batch, padding included; 4,096 on a CPU, else 16,384, or the cache's.",
        minimum=1,
    )

    def codec_params(self) -> dict[str, object]:
        """The codec's parameters, as its cache states them."""
        return {"logprobs": "f16"} | ({"level": self.level} if self.codec == "zstd" else {})
