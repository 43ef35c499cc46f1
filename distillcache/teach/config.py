"""Settings of `teach`: the teacher and how it runs; corpus, API and rows have files of their own beside this.

Knows neither torch nor a model.
"""

from dataclasses import dataclass
from pathlib import Path

from distillcache.config import setting
from distillcache.teach.rows_config import RowsConfig

__all__ = ["TeachConfig"]

# Read by a model of one's own alone.
OF_MODELS = ("gguf_file", "revision", "trust_remote_code", "dtype", "device", "batch_tokens")


@dataclass(frozen=True, kw_only=True)
class TeachConfig(RowsConfig):
    """A teacher runs once over a corpus, into a cache folder."""

    cache: Path = setting(positional=True, help="Cache folder; made if it is not there.")
    gguf_file: str | None = setting(None, help="GGUF file inside the teacher's folder or hub name.")
    revision: str | None = setting(None, help="Branch, tag or commit of a teacher on the hub.")
    trust_remote_code: bool = setting(False, help="Run code that comes with the teacher.")
    dtype: str = setting(
        "auto",
        help="Numbers the teacher computes in; auto: what the device has natively, or what the cache has.",
        choices=("auto", "bf16", "fp16", "fp32"),
    )
    device: str = setting("auto", help="auto, cpu, mps, cuda, cuda:N, or split over all GPUs.")
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
        self.check_api(OF_MODELS)
        self.check_rows()

    @property
    def row_k(self) -> int:
        """Most ids of a row: `k`, or what an API gives where that is less."""
        return min(self.most_ids, self.top_logprobs) if self.is_api else self.most_ids
