import numpy as np
import pytest
import torch

from src.analysis.item_latents import gather_items, segments
from src.ops.sparse_latents import SparseLatents
from tests.analysis.planted import cut, make_items


def by_item_and_neuron(pieces, threshold=1.0):
    """Returns the entries of all pieces, and the rows of the items."""
    entries, n_rows = {}, {}
    for found in gather_items(pieces, threshold):
        n_rows |= dict(zip(found.positions.tolist(), found.n_rows.tolist(), strict=True))
        columns = (found.sums, found.means, found.maxima, found.rows, found.n_active, found.n_above)
        for entry, values in enumerate(zip(*columns, strict=True)):
            key = int(found.positions[found.items[entry]]), int(found.neuron_ids[entry])
            assert key not in entries
            entries[key] = values
    return entries, n_rows


@pytest.mark.parametrize("n_rows", [1, 2, 3, 7, 1000])
def test_pieces_of_any_size_give_what_brute_force_does(n_rows):
    items = make_items()
    entries, counted = by_item_and_neuron(cut(items, n_rows))
    assert counted == {position: len(rows) for position, rows in enumerate(items)}
    expected = {}
    for position, rows in enumerate(items):
        for neuron_id, column in enumerate(rows.double().numpy().T):
            if column.any():
                values = (column.sum(), column.mean(), column.max(), column.argmax())
                expected[position, neuron_id] = (*values, (column > 0).sum(), (column > 1.0).sum())
    assert entries.keys() == expected.keys()
    for key, values in expected.items():
        np.testing.assert_allclose(entries[key], values, rtol=1e-12)


def test_items_keep_their_positions_in_any_order_of_reading():
    items = make_items()
    order = np.random.default_rng(1).permutation(len(items))
    assert by_item_and_neuron(cut(items, 4, order)) == by_item_and_neuron(cut(items, 4))


def test_listed_zeros_and_items_without_entries_are_seen():
    latents = SparseLatents(torch.tensor([0, 1, 1]), torch.tensor([2]), torch.tensor([0.0]), (2, 3))
    (first, second) = gather_items([(np.array([4, 5]), latents)])
    assert first.positions.tolist() + second.positions.tolist() == [4, 5]
    assert len(first.neuron_ids) == len(second.neuron_ids) == 0
    assert not list(gather_items([]))


def test_segments_are_runs_of_equal_keys_in_stable_order():
    keys = np.array([5, 1, 5, 1, 9])
    order, starts = segments(keys)
    assert order.tolist() == [1, 3, 0, 2, 4]
    assert starts.tolist() == [0, 2, 4]
    assert [len(part) for part in segments(np.empty(0, np.int64))] == [0, 0]
