"""The codecs, by id. A new one is one file here and one line below."""

from collections.abc import Mapping
from typing import Any

from distillcache_shards.codecs.codec import Codec, EncodedBlock, OpenRows, PackedBlock, Tables
from distillcache_shards.codecs.compact_sampled import CompactSampled
from distillcache_shards.codecs.compact_tilted import CompactTilted
from distillcache_shards.codecs.compact_topk import CompactTopk
from distillcache_shards.codecs.plain import Plain
from distillcache_shards.codecs.zstd import Zstd
from distillcache_shards.errors import UnsupportedError, printable

__all__ = ["CODECS", "Codec", "EncodedBlock", "OpenRows", "PackedBlock", "Tables", "codec_of"]

CODECS: dict[str, type[Plain | Zstd | CompactTopk | CompactSampled | CompactTilted]] = {
    each.id: each for each in (Plain, Zstd, CompactTopk, CompactSampled, CompactTilted)
}


def codec_of(spec: Mapping[str, Any], kind: str, vocab_size: int, tables: Tables | None = None) -> Codec:
    """The codec that `{"id": ..., "params": {...}}` names, for one kind of row and one vocabulary.

    `tables` are the arrays that the cache keeps for it.
    Raises UnsupportedError, without a place, for an id or a parameter that this release does not know, and
    CorruptError for tables that are none of the codec's.
    """
    name, params = spec.get("id"), spec.get("params")
    known = CODECS.get(name) if isinstance(name, str) else None
    if known is None:
        raise UnsupportedError(
            f"codec '{printable(name)}' is not one of {', '.join(CODECS)}; read it with a newer distillcache"
        )
    try:
        if not isinstance(params, Mapping):
            raise TypeError
        codec: Codec = known.of(kind, vocab_size, tables or {}, params)
        sound = codec.params == params
    except (TypeError, KeyError, ValueError, OverflowError):
        sound = False
    if not sound:
        raise UnsupportedError(
            f"codec '{printable(name)}' has parameters {printable(params)} for {kind} rows "
            "that this release does not know; read it with a newer distillcache"
        )
    return codec
