"""Makes a compact codec for one teacher and one corpus, from what the teacher says of a few of its sequences.

Done once, before the plan is written; whoever works on the folder later reads the codec from it.
Knows nothing of folders or models.
"""

import numpy as np
from numpy.typing import NDArray

from distillcache.corpus.spool import Spool
from distillcache.errors import ConfigError
from distillcache.teach.config import TeachConfig
from distillcache.teach.events import Calibrating
from distillcache.teach.plan import grid_of
from distillcache.teach.rows_config import TOPK
from distillcache.teach.source import OnEvent, RowSource
from distillcache_shards.codecs.codec import Codec
from distillcache_shards.codecs.compact_sampled import CompactSampled
from distillcache_shards.codecs.compact_tilted import CompactTilted
from distillcache_shards.codecs.compact_topk import CompactTopk
from distillcache_shards.codecs.tilt import TiltedGrid

__all__ = ["calibrated", "calibration_sequences"]

# A twentieth of the work at most, where that is enough. Bytes of a top-64 row on real text, by the rows that
# its codec was made from: 96 by 2,000, 90 by 8,000, 86.5 by 24,000, 84.6 by 49,000.
SHARE, FEWEST_ROWS, MOST_ROWS = 20, 2048, 32_768


def calibration_sequences(rows_n: NDArray[np.int64]) -> NDArray[np.int64]:
    """Numbers of sequences, spaced evenly over the corpus, from the rows of each, [n]; none without rows."""
    with_rows = np.flatnonzero(rows_n)
    total = int(rows_n.sum())
    wanted = min(MOST_ROWS, max(FEWEST_ROWS, total // SHARE))
    count = min(len(with_rows), -(-wanted * len(with_rows) // max(1, total)))
    # From the middle of as many equal parts.
    places = (np.arange(count) * 2 + 1) * len(with_rows) // max(1, 2 * count)
    return with_rows[places]


def calibrated(
    config: TeachConfig, source: RowSource, spool: Spool, vocab_size: int, on_event: OnEvent
) -> Codec:
    """The codec, from rows of the source.

    Raises ConfigError if no codec can be as exact, or as small, as was asked for.
    """
    # In no order, for the codec tries what it made on the last of them.
    numbers = np.random.default_rng(0).permutation(calibration_sequences(spool.rows))
    rows_total, rows_done = int(spool.rows[numbers].sum()), 0

    def heard(_: int, num_rows: int) -> None:
        nonlocal rows_done
        rows_done += num_rows
        on_event(Calibrating(rows_done, rows_total))

    batch_tokens = config.batch_tokens or source.about().get("batch_tokens", 0)
    rows = source.topk_rows(spool.take(numbers), numbers, batch_tokens, heard)
    planned_rows = int(spool.rows.sum())
    if config.tilt_power:
        counts_V = spool.supervised_counts(vocab_size)
        tilted = TiltedGrid.of_counts(grid_of(config), counts_V, config.tilt_power)
        return CompactTilted.trained(rows, vocab_size, tilted, planned_rows=planned_rows)
    if config.kept != TOPK:
        return CompactSampled.trained(rows, vocab_size, grid_of(config), planned_rows=planned_rows)
    asked = config.asked()
    try:
        return CompactTopk.trained(
            rows,
            vocab_size,
            planned_rows=planned_rows,
            max_kl_nats=asked.get("max_kl_nats"),
            row_bytes=asked.get("row_bytes"),
        )
    except ValueError as error:
        if "row_bytes" in asked:
            raise ConfigError(
                f"--bytes-per-token: too few; found {asked['row_bytes']:g}, and {error}; "
                "ask for more, for a smaller --k, or for --keep sampled"
            ) from None
        raise ConfigError(
            f"--max-kl: too small; found {asked['max_kl_nats']:g}, and {error}; "
            "ask for more, or take --codec zstd"
        ) from None
