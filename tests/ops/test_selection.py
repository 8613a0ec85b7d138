import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from src.ops.selection import ThresholdSearch, calibrate_threshold, keep_largest, keep_largest_per_row
from src.ops.sparse_latents import SparseLatents


def _sorted_selection(dense, n_kept):
    """The definition: by value descending, then by position ascending, positive values only."""
    flat = dense.numpy().ravel()
    order = [i for i in np.lexsort((np.arange(flat.size), -flat)) if flat[i] > 0][:n_kept]
    kept = np.zeros_like(flat)
    kept[order] = flat[order]
    return torch.from_numpy(kept.reshape(dense.shape))


# Few distinct values, so that ties are the rule.
_PRE_LATENTS = st.integers(1, 6).flatmap(
    lambda width: st.lists(st.lists(st.integers(-2, 4), min_size=width, max_size=width), min_size=1, max_size=6)
)


@given(_PRE_LATENTS, st.integers(1, 40), st.integers(0, 3))
def test_keeps_the_largest_of_the_batch_whatever_the_candidates(pre_latents, n_kept, cutoff):
    dense = torch.tensor(pre_latents, dtype=torch.float32)
    expected = _sorted_selection(dense, n_kept)
    n_candidates = int((dense > cutoff).sum())
    if n_candidates < n_kept:
        cutoff = 0
    candidates = SparseLatents.from_dense(torch.where(dense > cutoff, dense, 0.0))
    assert torch.equal(keep_largest(candidates, n_kept).to_dense(), expected)


def test_ties_go_to_the_lowest_position():
    dense = torch.tensor([[1.0, 2.0, 1.0], [1.0, 3.0, 1.0]])
    kept = keep_largest(SparseLatents.from_dense(dense), 4).to_dense()
    assert torch.equal(kept, torch.tensor([[1.0, 2.0, 1.0], [0.0, 3.0, 0.0]]))


@given(_PRE_LATENTS, st.integers(1, 8), st.lists(st.integers(0, 6), max_size=2))
def test_keeps_the_largest_of_each_row_by_sorting(pre_latents, k, cuts):
    dense = torch.tensor(pre_latents, dtype=torch.float32)
    expected = torch.cat([_sorted_selection(row.unsqueeze(0), k) for row in dense])
    cuts = [0, *sorted(min(cut, len(dense)) for cut in cuts), len(dense)]
    pieces = [dense[start:stop] for start, stop in itertools.pairwise(cuts)]
    kept = keep_largest_per_row(pieces, k)
    assert torch.equal(kept.to_dense(), expected)
    assert (kept.values > 0).all()
    # As made from the dense answer: ids ascend in each row, and zeros are not listed.
    by_definition = SparseLatents.from_dense(expected)
    assert torch.equal(kept.row_offsets, by_definition.row_offsets)
    assert torch.equal(kept.neuron_ids, by_definition.neuron_ids)


def test_ties_in_a_row_go_to_the_lowest_neurons():
    row = torch.ones(1, 100)
    row[0, 70] = 2.0
    assert keep_largest_per_row([row], 4).neuron_ids.tolist() == [0, 1, 2, 70]
    assert keep_largest_per_row([torch.ones(2, 5)], 5).row_offsets.tolist() == [0, 5, 10]


def test_rows_without_enough_positive_values_keep_fewer():
    rows = torch.tensor([[-1.0, 0.0, -3.0], [0.0, 2.0, -1.0], [3.0, 1.0, 2.0]])
    kept = keep_largest_per_row([rows], 2)
    assert kept.row_offsets.tolist() == [0, 0, 1, 3]
    assert kept.neuron_ids.tolist() == [1, 0, 2]


def test_no_rows_keep_nothing_per_row():
    kept = keep_largest_per_row([torch.zeros(0, 4)], 2)
    assert (kept.shape, kept.n_entries) == ((0, 4), 0)


def test_pieces_that_share_a_buffer_are_not_kept():
    buffer, first, second = torch.empty(1, 3), torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[9.0, 8.0, 7.0]])
    pieces = (buffer.copy_(rows) for rows in (first, second))
    assert keep_largest_per_row(pieces, 1).values.tolist() == [3.0, 9.0]


@pytest.mark.parametrize("k", [1, 3, 2.5])
def test_calibration_keeps_exactly_k_per_row(k):
    generator = torch.Generator().manual_seed(0)
    # The first batches are the smallest, so that early bounds would mislead a shortcut.
    batches = [scale * torch.randn(50, 40, generator=generator) for scale in (0.1, 0.5, 1.0, 3.0, 0.2)]
    threshold = calibrate_threshold(iter(batches), k, n_rows=250)
    assert int((torch.cat(batches) > threshold).sum()) == round(k * 250)


@pytest.mark.parametrize("k", [1, 3, 2.5])
def test_calibration_in_two_passes_that_hold_little_equals_one(k):
    generator = torch.Generator().manual_seed(0)
    batches = [scale * torch.randn(50, 40, generator=generator) for scale in (0.1, 0.5, 1.0, 3.0, 0.2)]
    search = ThresholdSearch(k, 250, most_held=10)
    n_passes, is_needed = 0, True
    while is_needed:
        for batch in batches:
            search.update(batch)
        n_passes, is_needed = n_passes + 1, search.needs_another_pass()
    assert n_passes == 2
    assert float(search.compute()) == float(calibrate_threshold(batches, k, 250))


def test_calibration_is_half_way_between_kept_and_dropped():
    batches = [torch.tensor([[5.0, 1.0, -9.0]]), torch.tensor([[2.0, 4.0, 0.0]])]
    assert float(calibrate_threshold(batches, 1, n_rows=2)) == 3.0


def test_calibration_with_neighbouring_floats_still_separates_them():
    low = torch.tensor(1.0)
    high = torch.nextafter(low, torch.tensor(2.0))
    threshold = calibrate_threshold([torch.stack([low, high]).view(1, 2)], 1, n_rows=1)
    assert low <= threshold < high


def test_calibration_keeps_all_positive_values_when_there_are_too_few():
    assert float(calibrate_threshold([torch.tensor([[1.0, -1.0], [-2.0, 0.0]])], 1, n_rows=2)) == 0.0


@pytest.mark.parametrize(
    ("k", "n_rows", "message"), [(0, 1, "positive k, got 0"), (1, 3, "3 rows to calibrate on, got 1")]
)
def test_calibration_refuses(k, n_rows, message):
    with pytest.raises(ValueError, match=message):
        calibrate_threshold([torch.ones(1, 2)], k, n_rows)
