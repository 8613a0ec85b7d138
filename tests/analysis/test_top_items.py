import numpy as np
import pytest

from src.analysis.item_latents import gather_items
from src.analysis.top_items import TopItemLists
from tests.analysis.planted import cut, make_items

ITEMS = make_items(n_items=40, n_latents=6)


def top(n, by, n_rows=3, order=None):
    lists = TopItemLists(6, n, by)
    for found in gather_items(cut(ITEMS, n_rows, order)):
        lists.update(found)
    return lists.compute()


@pytest.mark.parametrize("by", ["maximum", "mean"])
@pytest.mark.parametrize("n", [1, 4, 60])
def test_lists_hold_the_strongest_items_and_ties_go_by_position(by, n):
    pooled = np.stack([rows.amax(0) if by == "maximum" else rows.double().mean(0) for rows in ITEMS])
    pooled = pooled.astype(np.float32)
    found = top(n, by)
    for neuron_id in range(6):
        order = np.argsort(-pooled[:, neuron_id], kind="stable")[:n]
        order = order[pooled[order, neuron_id] > 0]
        kept = len(order)
        assert found.positions[neuron_id, :kept].tolist() == order.tolist()
        np.testing.assert_array_equal(found.values[neuron_id, :kept], pooled[order, neuron_id])
        rows = [int(ITEMS[position][:, neuron_id].argmax()) for position in order]
        assert found.rows[neuron_id, :kept].tolist() == rows
        assert (found.positions[neuron_id, kept:] == -1).all()
        assert not found.values[neuron_id, kept:].any()


def test_the_order_of_items_and_the_size_of_pieces_change_nothing():
    expected = top(5, "maximum")
    for n_rows, seed in ((1, 0), (7, 1), (1000, 2)):
        found = top(5, "maximum", n_rows, np.random.default_rng(seed).permutation(len(ITEMS)))
        for name in ("values", "positions", "rows"):
            np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))


def test_labels_are_those_of_the_items():
    found = top(60, "maximum")
    labels = found.labels(np.arange(40) * 10)
    assert (labels[found.positions < 0] == -1).all()
    assert (labels[found.positions >= 0] == 10 * found.positions[found.positions >= 0]).all()


def test_an_unknown_measure_is_refused():
    with pytest.raises(ValueError, match="maximum, mean, got 'sum'"):
        TopItemLists(3, 2, "sum")
