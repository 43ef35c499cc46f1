"""Settings of `teach`: what is kept of a teacher's distribution at a supervised token, and how it is coded.

A setting that would be ignored is refused.
Knows neither torch nor a model.
"""

from dataclasses import dataclass

from distillcache.config import refuse_given, setting
from distillcache.errors import ConfigError
from distillcache.teach.api.config import ApiConfig
from distillcache_shards.limits import MAX_VOCABULARY

__all__ = ["KEEPS", "MULTINOMIAL", "SAMPLED", "TILT", "TILTED_TAU", "TOPK", "RowsConfig"]

SAMPLED, TOPK, MULTINOMIAL = KEEPS = ("sampled", "topk", "multinomial")
COMPACT, ZSTD, PLAIN = CODECS = ("compact", "zstd", "plain")
# What each kind of row and each codec reads; the others refuse it.
OF_KEEP = {
    TOPK: ("k", "top_p", "min_p", "min_k"),
    SAMPLED: ("tau", "tilt", "seed", "row_temperature"),
    MULTINOMIAL: ("draws", "seed", "row_temperature"),
}
OF_COMPACT_TOPK = ("max_kl", "bytes_per_token")
# Where none is given.
K, DRAWS, LEVEL, MAX_KL_NATS = 64, 50, 9, 1e-4
# With a tilt, and without: about 25 bytes a row either way.
TILT, TILTED_TAU, TAU = 3 / 16, 1 / 32, 1 / 50


@dataclass(frozen=True, kw_only=True)
class RowsConfig(ApiConfig):
    """What a row holds and how exact it stays; the rest of `teach` builds on this."""

    keep: str | None = setting(
        None,
        help="Of each distribution: an unbiased sample of it, small and close; its likeliest ids; or RS-KD's "
        "draws. Unless given: sampled, or topk of an API and where a setting of topk is given.",
        choices=KEEPS,
    )
    k: int | None = setting(
        None, help="Of topk: ids kept a row, 64 unless given.", minimum=1, maximum=MAX_VOCABULARY
    )
    top_p: float | None = setting(
        None, help="Of topk: no more ids than hold this much probability.", above=0, maximum=1
    )
    min_p: float | None = setting(None, help="Of topk: no ids below this probability.", above=0, maximum=1)
    min_k: int | None = setting(
        None, help="Of topk: as many ids in spite of --top-p and --min-p, 1 unless given.", minimum=0
    )
    tau: float | None = setting(
        None,
        help="Of sampled: ids from this probability on are kept, one draw stands for at most as much of the "
        "others, both by --tilt lower for rare ids and higher for frequent ones; a number or a fraction, "
        "1/32 unless given, 1/50 without a tilt.",
        above=0,
        maximum=1,
    )
    tilt: float | None = setting(
        None,
        help="Of sampled, in codec compact: by how much rare ids are favoured: kept and drawn in proportion "
        "to their probability over this power of their frequency, they weigh as much less; a number or a "
        "fraction, 3/16 unless given, 0 for none.",
        minimum=0,
        maximum=1,
    )
    draws: int | None = setting(
        None, help="Of multinomial: draws a row, 50 unless given.", minimum=1, maximum=1 << 16
    )
    seed: int | None = setting(
        None,
        help="Of sampled rows: other draws, 0 unless given.",
        minimum=0,
        maximum=1_000_000_000,
    )
    row_temperature: float | None = setting(
        None,
        help="Of sampled and multinomial: temperature of the distribution that is sampled, and later trained "
        "on; 1 unless given.",
        above=0,
    )
    codec: str = setting(
        COMPACT,
        help="Code of the rows: compact is by far the smallest, zstd a general one, plain read in place.",
        choices=CODECS,
    )
    max_kl: float | None = setting(
        None,
        help="Of compact topk: most nats a row that rounding may lose; 0.0001 unless given.",
        above=0,
        below=1,
    )
    bytes_per_token: float | None = setting(
        None, help="Of compact topk, in place of --max-kl: most bytes a row.", above=0
    )
    level: int | None = setting(None, help="Level of --codec zstd: 9 unless given.", minimum=1, maximum=22)
    block_rows: int = setting(512, help="Rows of a block, the unit of random reads.", minimum=1)

    def check_rows(self) -> None:
        """Raises ConfigError for settings that do not go together, or not with this teacher."""
        others = {name for names in OF_KEEP.values() for name in names} - set(OF_KEEP[self.kept])
        refuse_given(self, sorted(others), f"with --keep {self.kept}")
        if self.kept != TOPK and self.is_api:
            raise ConfigError(
                f"--keep: {self.kept} needs whole distributions, and an API gives a few ids; take --keep topk"
            )
        if self.top_p is None and self.min_p is None:
            refuse_given(self, ("min_k",), "without --top-p or --min-p")
        if self.min_k is not None and self.min_k > self.most_ids:
            raise ConfigError(f"--min-k: must be at most --k ({self.most_ids}), found {self.min_k}")
        if self.codec != ZSTD:
            refuse_given(self, ("level",), f"with --codec {self.codec}")
        if self.codec != COMPACT and self.tilt:
            raise ConfigError(
                f"--tilt: {self.tilt:g} needs --codec compact, found --codec {self.codec}; leave one out"
            )
        if self.codec != COMPACT or self.kept != TOPK:
            refuse_given(self, OF_COMPACT_TOPK, f"with --keep {self.kept} --codec {self.codec}")
        if self.max_kl is not None and self.bytes_per_token is not None:
            raise ConfigError(
                f"--max-kl: must not stand beside --bytes-per-token, found {self.max_kl:g} and "
                f"{self.bytes_per_token:g}; leave one out"
            )

    @property
    def kept(self) -> str:
        """`keep`, or what it is unless given."""
        if self.keep is not None:
            return self.keep
        of_topk = (*OF_KEEP[TOPK], *OF_COMPACT_TOPK)
        if self.is_api or any(getattr(self, name) is not None for name in of_topk):
            return TOPK
        return SAMPLED if self.draws is None else MULTINOMIAL

    @property
    def most_ids(self) -> int:
        """`k`, or what it is unless given."""
        return K if self.k is None else self.k

    @property
    def tilt_power(self) -> float:
        """`tilt`, or what it is unless given; 0 for none."""
        if self.kept != SAMPLED or self.codec != COMPACT:
            return 0.0
        return TILT if self.tilt is None else self.tilt

    @property
    def threshold(self) -> float:
        """`tau`, or what it is unless given."""
        if self.tau is not None:
            return self.tau
        return TILTED_TAU if self.tilt_power else TAU

    @property
    def codec_id(self) -> str:
        """The codec's id in the format: a kind of row has a compact codec of its own."""
        if self.codec != COMPACT:
            return self.codec
        if self.kept == TOPK:
            return "compact-topk"
        return "compact-tilted" if self.tilt_power else "compact-sampled"

    @property
    def is_calibrated(self) -> bool:
        """Whether the codec is made from what the teacher says, so that its parameters are not known yet."""
        return self.codec == COMPACT

    def asked(self) -> dict[str, float]:
        """How much the codec may lose, or how large a row may be; nothing where it has no choice."""
        if self.codec != COMPACT or self.kept != TOPK:
            return {}
        if self.bytes_per_token is not None:
            return {"row_bytes": self.bytes_per_token}
        return {"max_kl_nats": MAX_KL_NATS if self.max_kl is None else self.max_kl}

    def codec_params(self) -> dict[str, object]:
        """The parameters of a codec that is not calibrated, as its cache states them."""
        assert not self.is_calibrated
        level = LEVEL if self.level is None else self.level
        return {"logprobs": "f16"} | ({"level": level} if self.codec == ZSTD else {})
