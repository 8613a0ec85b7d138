import numpy as np
import pytest

from src.analysis import latent_sums
from src.analysis.item_latents import gather_items
from src.analysis.latent_sums import CaseSums, ClassSums, NeuronSums
from tests.analysis.planted import cut, make_items

ITEMS = make_items(n_items=12)
ROWS = np.concatenate([rows.double().numpy() for rows in ITEMS])
MEANS = np.stack([rows.double().numpy().mean(axis=0) for rows in ITEMS])
ABOVE = np.stack([(rows.numpy() > 1).sum(axis=0) for rows in ITEMS])
N_LATENTS = ROWS.shape[1]


def add(sums, n_rows=5, order=None):
    for found in gather_items(cut(ITEMS, n_rows, order), threshold=1.0):
        sums.update(found)
    return sums


@pytest.mark.parametrize("order", [None, np.random.default_rng(0).permutation(len(ITEMS))])
def test_sums_of_neurons(order):
    sums = add(NeuronSums(N_LATENTS), order=order)
    assert (sums.n_rows, sums.n_items) == (len(ROWS), len(ITEMS))
    np.testing.assert_array_equal(sums.active_rows, (ROWS > 0).sum(axis=0))
    np.testing.assert_array_equal(sums.active_items, (MEANS > 0).sum(axis=0))
    np.testing.assert_allclose(sums.sums, ROWS.sum(axis=0))
    np.testing.assert_allclose(sums.item_means, MEANS.sum(axis=0))
    np.testing.assert_array_equal(sums.maxima, ROWS.max(axis=0))


@pytest.mark.parametrize("counts_rows", [False, True])
def test_classes_are_means_over_items_and_counts_of_items_or_rows(counts_rows):
    labels = np.array([0, 1, -1, 2] * 3)
    found = add(ClassSums(labels, 4, N_LATENTS)).statistics(tuple("abcd"), np.arange(4)[:, None], counts_rows)
    assert found.n_items.tolist() == [3, 3, 3, 0]
    for label in range(3):
        np.testing.assert_allclose(found.means[label], MEANS[labels == label].mean(axis=0))
        of_class = ABOVE[labels == label] if counts_rows else ABOVE[labels == label] > 0
        np.testing.assert_array_equal(found.counts[label], of_class.sum(axis=0))
    assert np.isnan(found.means[3]).all()


def test_a_class_of_two_groups_is_that_of_all_their_items():
    labels = np.arange(12) % 2
    halves = np.arange(12) // 6
    split = add(ClassSums(2 * labels + halves, 4, N_LATENTS)).statistics(("a", "b"), np.array([[0, 1], [2, 3]]))
    whole = add(ClassSums(labels, 2, N_LATENTS)).statistics(("a", "b"), np.array([[0], [1]]))
    assert split.n_items.tolist() == whole.n_items.tolist()
    np.testing.assert_allclose(split.means, whole.means)
    np.testing.assert_array_equal(split.counts, whole.counts)


@pytest.mark.parametrize("pending", [1, 10, 1 << 22])
def test_cases_are_divided_by_their_own_items(monkeypatch, pending):
    monkeypatch.setattr(latent_sums, "_PENDING_ENTRIES", pending)
    cases = np.array([0, 1, 1, 2, 2, 2, 3, 3, 3, 3, -1, 3])
    sums = add(CaseSums(cases, 4, N_LATENTS), n_rows=2)
    assert sums.n_items.tolist() == [1, 2, 3, 5]
    for case in range(4):
        of_case = cases == case
        np.testing.assert_allclose(sums.means()[[case]].toarray()[0], MEANS[of_case].mean(axis=0))
        np.testing.assert_allclose(sums.item_shares()[[case]].toarray()[0], (ABOVE[of_case] > 0).mean(axis=0))
        np.testing.assert_array_equal(sums.rows_above()[[case]].toarray()[0], ABOVE[of_case].sum(axis=0))
