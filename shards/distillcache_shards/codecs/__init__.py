"""The codecs, by id. A new one is one file here and one line below."""

from collections.abc import Mapping
from typing import Any

from distillcache_shards.codecs.codec import Codec, EncodedBlock, Tables
from distillcache_shards.codecs.fields import LOGPROB_DTYPES
from distillcache_shards.codecs.plain import Plain
from distillcache_shards.codecs.zstd import Zstd
from distillcache_shards.errors import UnsupportedError

__all__ = ["CODECS", "Codec", "EncodedBlock", "Tables", "codec_of"]

CODECS: dict[str, type[Plain] | type[Zstd]] = {each.id: each for each in (Plain, Zstd)}


def codec_of(spec: Mapping[str, Any], kind: str, vocab_size: int, tables: Tables | None = None) -> Codec:
    """The codec that `{"id": ..., "params": {...}}` names, for one kind of row and one vocabulary.

    `tables` are the arrays that the cache keeps for it.
    Raises UnsupportedError, without a place, for an id or a parameter that this release does not know.
    """
    name, params = spec.get("id"), spec.get("params")
    known = CODECS.get(name) if isinstance(name, str) else None
    if known is None:
        raise UnsupportedError(
            f"codec {name!r} is not one of {', '.join(CODECS)}; read it with a newer distillcache"
        )
    try:
        codec = known(kind, vocab_size, **params)  # type: ignore[arg-type]  # TypeError if it is no mapping
        sound = codec.params == params and params["logprobs"] in LOGPROB_DTYPES
    except (TypeError, KeyError):
        sound = False
    if not sound:
        raise UnsupportedError(
            f"codec {name!r} has parameters {params!r} that this release does not know; "
            "read it with a newer distillcache"
        )
    return codec
