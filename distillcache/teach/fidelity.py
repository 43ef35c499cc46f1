"""How faithful a cache is: the mass it keeps, and what its codec loses, a shard at a time and in all.

Knows nothing of files or models.

N rows.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distillcache_shards.rows import Rows

__all__ = ["codec_kl", "combined", "measure"]


def measure(rows: Rows, decoded: Rows, encoded_bytes: int) -> dict[str, Any]:
    """What a shard says of itself: `rows` as the teacher said them, `decoded` as they come back.

    `mass_kept` and `entropy_nats`, means; `codec_kl_nats` and `codec_kl_max_nats`, see `codec_kl`;
    `row_bytes`, mean bytes of a row in its block.
    """
    num_rows = max(1, len(rows))
    kl_N = codec_kl(rows, decoded)
    return {
        "mass_kept": _rounded(1.0 - float(rows.tail_mass.sum(dtype=np.float64)) / num_rows),
        "entropy_nats": _rounded(float(rows.entropy.sum(dtype=np.float64)) / num_rows),
        "codec_kl_nats": _rounded(float(kl_N.sum()) / num_rows),
        "codec_kl_max_nats": _rounded(float(kl_N.max(initial=0.0))),
        "row_bytes": _rounded(encoded_bytes / num_rows),
    }


def combined(shards: Iterable[tuple[int, Mapping[str, Any]]]) -> dict[str, Any]:
    """The same of several shards together, from the number of rows of each and what it says of itself."""
    parts = list(shards)
    num_rows = sum(rows for rows, _ in parts)
    means = ("mass_kept", "entropy_nats", "codec_kl_nats", "row_bytes")
    found: dict[str, Any] = {
        name: sum(rows * said[name] for rows, said in parts) / max(1, num_rows) for name in means
    }
    found["codec_kl_max_nats"] = max((said["codec_kl_max_nats"] for _, said in parts), default=0.0)
    return found


def codec_kl(rows: Rows, decoded: Rows) -> NDArray[np.float64]:
    """KL(before || after) of each row in nats, [N]: over its kept ids and one bucket for all others.

    What comes back is scaled to a sum of 1 first, as a loss would. Exact ids are required: AssertionError
    for rows that come back with others, since a codec that loses an id is a mistake of ours.
    """
    assert len(rows) == len(decoded)
    assert np.array_equal(rows.head_offsets, decoded.head_offsets)
    assert np.array_equal(rows.draw_offsets, decoded.draw_offsets)
    assert np.array_equal(rows.draw_ids, decoded.draw_ids)
    row_H = np.repeat(np.arange(len(rows)), np.diff(rows.head_offsets))
    if np.array_equal(rows.head_ids, decoded.head_ids):
        before_H, after_H = rows.head_logprobs, decoded.head_logprobs
    else:
        # Values that were rounded to the same may come back in another order.
        ours, theirs = np.lexsort((rows.head_ids, row_H)), np.lexsort((decoded.head_ids, row_H))
        assert np.array_equal(rows.head_ids[ours], decoded.head_ids[theirs])
        before_H, after_H = rows.head_logprobs[ours], decoded.head_logprobs[theirs]
    log_p_H, log_q_H = before_H.astype(np.float64), after_H.astype(np.float64)
    p_H = np.exp(log_p_H)
    kept_N = np.bincount(row_H, p_H, len(rows))
    came_back_N = np.bincount(row_H, np.exp(log_q_H), len(rows))
    tail_N, tail_back_N = rows.tail_mass.astype(np.float64), decoded.tail_mass.astype(np.float64)
    # Counting nothing at all gives whole numbers.
    kl_N = np.bincount(row_H, p_H * (log_p_H - log_q_H), len(rows)).astype(np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        kl_N += np.where(tail_N > 0, tail_N * np.log(tail_N / tail_back_N), 0.0)
    # Both sides sum to about 1; scaled to it, the error of first order goes.
    total_N, total_back_N = kept_N + tail_N, came_back_N + tail_back_N
    scaled_N: NDArray[np.float64] = kl_N / total_N - np.log(total_N) + np.log(total_back_N)
    return np.maximum(scaled_N, 0.0)


def _rounded(value: float) -> float:
    """To 7 digits, so that the order of sums on another machine seldom shows."""
    return float(f"{value:.7g}")
