import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from src.ops.sparse_latents import SparseLatents


@pytest.fixture
def dense():
    latents = torch.zeros(4, 5)
    latents[0, 1], latents[0, 4], latents[2, 1], latents[3, 0] = 2.0, 1.0, 3.0, 0.5
    return latents


def test_from_dense_lists_the_entries(dense):
    latents = SparseLatents.from_dense(dense)
    assert latents.row_offsets.tolist() == [0, 2, 2, 3, 4]
    assert latents.neuron_ids.tolist() == [1, 4, 1, 0]
    assert latents.values.tolist() == [2.0, 1.0, 3.0, 0.5]
    assert latents.row_ids.tolist() == [0, 0, 2, 3]
    assert (latents.n_rows, latents.n_latents, latents.n_entries) == (4, 5, 4)


def test_views(dense):
    latents = SparseLatents.from_dense(dense)
    assert torch.equal(latents.to_dense(), dense)
    assert torch.equal(latents.to_dense(), dense)
    assert torch.equal(latents.rows(1, 3).to_dense(), dense[1:3])
    assert torch.equal(latents.max_over_rows(), torch.tensor([0.5, 3.0, 0.0, 0.0, 1.0]))
    assert torch.equal(latents.columns([4, 0, 4, 2]), dense[:, [4, 0, 4, 2]])
    assert torch.equal(latents.columns([]), dense[:, []])


def test_neuron_order_lists_each_neurons_rows(dense):
    latents = SparseLatents.from_dense(dense)
    order = latents.neuron_order
    assert order.neuron_offsets.tolist() == [0, 1, 3, 3, 3, 4]
    assert order.row_ids.tolist() == [3, 0, 2, 0]
    assert latents.values[order.entries].tolist() == [0.5, 2.0, 3.0, 1.0]


def test_with_values_keeps_the_pattern_and_what_is_known_of_it(dense):
    latents = SparseLatents.from_dense(dense)
    order = latents.neuron_order
    doubled = latents.with_values(2 * latents.values)
    assert doubled.neuron_order is order
    assert torch.equal(doubled.to_dense(), 2 * dense)


@given(st.integers(0, 6), st.integers(1, 7), st.lists(st.integers(0, 6), max_size=3), st.integers(0, 2**31))
def test_cat_of_rows_is_the_whole(n_rows, n_latents, cuts, seed):
    dense = torch.rand(n_rows, n_latents, generator=torch.Generator().manual_seed(seed)).sub(0.6).relu()
    latents = SparseLatents.from_dense(dense)
    cuts = [0, *sorted(min(cut, n_rows) for cut in cuts), n_rows]
    whole = SparseLatents.cat([latents.rows(*pair) for pair in itertools.pairwise(cuts)])
    assert torch.equal(whole.to_dense(), dense)
    assert torch.equal(whole.row_offsets, latents.row_offsets)


def _by_loop(dense, starts):
    """Each row once per group of columns, zero outside of its group."""
    rows = []
    for row, (start, stop) in itertools.product(dense, itertools.pairwise([*starts, dense.shape[1]])):
        group = torch.zeros_like(row)
        group[start:stop] = row[start:stop]
        rows.append(group)
    return torch.stack(rows) if rows else dense[:0]


@given(st.integers(0, 5), st.integers(1, 8), st.sets(st.integers(1, 7), max_size=4), st.integers(0, 2**31))
def test_groups_are_those_of_a_plain_loop(n_rows, n_latents, starts, seed):
    dense = torch.rand(n_rows, n_latents, generator=torch.Generator().manual_seed(seed)).sub(0.5).relu()
    starts = [0, *sorted(start for start in starts if start < n_latents)]
    latents = SparseLatents.from_dense(dense)
    grouped = latents.by_groups(starts)
    assert grouped.shape == (n_rows * len(starts), n_latents)
    assert torch.equal(grouped.to_dense(), _by_loop(dense, starts))
    assert grouped.values is latents.values


def test_groups_of_int32_ids_and_their_gradient(dense):
    latents = SparseLatents.from_dense(dense)
    values = latents.values.clone().requires_grad_()
    stored = SparseLatents(latents.row_offsets, latents.neuron_ids.int(), values, latents.shape)
    grouped = stored.by_groups([0, 1, 4])
    assert torch.equal(grouped.to_dense(), _by_loop(dense, [0, 1, 4]))
    (gradient,) = torch.autograd.grad(grouped.to_dense()[2::3].sum(), values)
    assert gradient.tolist() == [0.0, 1.0, 0.0, 0.0]  # the last group holds neuron 4 only


def test_per_neuron_looks_up_each_entry_and_sums_gradients(dense):
    latents = SparseLatents.from_dense(dense)
    vector = torch.tensor([10.0, 11.0, 12.0, 13.0, 14.0], requires_grad=True)
    for ids in (latents.neuron_ids, latents.neuron_ids.int()):
        looked_up = SparseLatents(latents.row_offsets, ids, latents.values, latents.shape).per_neuron(vector)
        assert looked_up.tolist() == [11.0, 14.0, 11.0, 10.0]
        assert torch.autograd.grad(looked_up.sum(), vector)[0].tolist() == [1.0, 2.0, 0.0, 0.0, 1.0]
    assert SparseLatents.from_dense(dense[:0]).per_neuron(vector).shape == (0,)


def test_to_dense_and_from_dense_carry_gradients(dense):
    dense = dense.double().requires_grad_()
    weights = torch.randn(4, 5, dtype=torch.float64)
    (SparseLatents.from_dense(dense).to_dense() * weights).sum().backward()
    assert torch.equal(dense.grad, weights * (dense != 0))


def test_neuron_ids_of_a_store_may_be_int32(dense):
    latents = SparseLatents.from_dense(dense)
    stored = SparseLatents(latents.row_offsets, latents.neuron_ids.int(), latents.values, latents.shape)
    assert torch.equal(stored.to_dense(), dense)
    assert torch.equal(stored.to_dense(), dense)
    assert torch.equal(stored.columns([1, 0]), dense[:, [1, 0]])
    assert torch.equal(stored.max_over_rows(), latents.max_over_rows())
    assert torch.equal(stored.neuron_order.row_ids, latents.neuron_order.row_ids)


def test_errors_say_what_was_expected(dense):
    latents = SparseLatents.from_dense(dense)
    with pytest.raises(ValueError, match="rows within 0:4, got 2:5"):
        latents.rows(2, 5)
    with pytest.raises(ValueError, match="neuron ids within 0:5"):
        latents.columns([5])
    with pytest.raises(ValueError, match=r"one width, got \[5, 6\]"):
        SparseLatents.cat([latents, SparseLatents.from_dense(torch.zeros(1, 6))])
    with pytest.raises(ValueError, match="one width, got nothing"):
        SparseLatents.cat([])
    with pytest.raises(ValueError, match="5 row offsets"):
        SparseLatents(torch.zeros(3, dtype=torch.int64), latents.neuron_ids, latents.values, (4, 5))
    with pytest.raises(ValueError, match="one value per neuron id"):
        SparseLatents(latents.row_offsets, latents.neuron_ids, latents.values[:-1], (4, 5))
