"""Claims about how many ids a `topk` row keeps: as few as were asked for, and no mass is lost."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distillcache.teach.bounds import Bounds
from distillcache.teach.keep import top_k
from distillcache_shards.rows import Rows


def _rows(seed: int = 0, k: int = 40, scale: float = 3.0) -> Rows:
    logits_NV = torch.randn(30, 200, generator=torch.Generator().manual_seed(seed)) * scale
    kept = top_k(logits_NV, k, torch.ones(200, dtype=torch.bool))
    return Rows.top_k(
        kept.ids_NK.numpy(), kept.logprobs_NK.numpy(), kept.tail_mass_N.numpy(), kept.entropy_N.numpy()
    )


@settings(deadline=None, max_examples=50)
@given(
    st.integers(0, 10_000),
    st.one_of(st.none(), st.floats(0.01, 1.0)),
    st.one_of(st.none(), st.floats(1e-6, 1.0)),
    st.integers(0, 50),
)
def test_each_row_keeps_the_fewest_ids_that_do(
    seed: int, top_p: float | None, least: float | None, fewest: int
) -> None:
    """Against one row at a time; the rest joins the tail, and order and values stay."""
    rows = _rows(seed)
    bounded = Bounds(top_p, least, fewest).bound(rows)
    assert bounded.fault(200) is None
    for n in range(30):
        p_K = np.exp(rows.head_logprobs[40 * n : 40 * n + 40].astype(np.float64))
        mass, wanted = 0.0, 0
        for p in p_K:
            if (top_p is not None and mass >= top_p) or (least is not None and p < least):
                break
            mass, wanted = mass + p, wanted + 1
        wanted = max(wanted, min(fewest, 40))
        kept = slice(*bounded.head_offsets[n : n + 2].tolist())
        assert kept.stop - kept.start == wanted
        np.testing.assert_array_equal(bounded.head_ids[kept], rows.head_ids[40 * n : 40 * n + wanted])
        whole = np.exp(bounded.head_logprobs[kept].astype(np.float64)).sum() + bounded.tail_mass[n]
        assert whole == pytest.approx(1.0, abs=1e-5)


def test_no_bound_changes_nothing() -> None:
    """Every array is as it was."""
    rows = _rows()
    for name, array in vars(Bounds().bound(rows)).items():
        np.testing.assert_array_equal(array, getattr(rows, name), err_msg=name)


def test_sharp_rows_keep_one_id_and_flat_ones_all() -> None:
    """A nucleus follows the row: that is what it is for."""
    assert np.diff(Bounds(top_p=0.9).bound(_rows(scale=40.0)).head_offsets).mean() < 2
    assert (np.diff(Bounds(top_p=0.9).bound(_rows(scale=0.01)).head_offsets) == 40).all()


@pytest.mark.parametrize(
    "bounds", [{"top_p": 0.0}, {"top_p": 1.1}, {"least_probability": 0.0}, {"fewest": -1}]
)
def test_bounds_that_bound_nothing_are_ours_to_refuse(bounds: dict[str, float]) -> None:
    """The settings check these; here they would be a mistake of ours."""
    with pytest.raises(AssertionError):
        Bounds(**bounds)  # type: ignore[arg-type]
