import numpy as np
import pytest

from src.analysis.class_statistics import (
    ClassStatistics,
    rank_neurons_for_classes,
    read_class_statistics,
    write_class_statistics,
)

STATISTICS = ClassStatistics(
    ("NA", "01", "c"),
    np.array([1, 2, 3]),
    np.array([[1.0, 0, 3, 0, 1], [2, 0, 0, 0, 1], [0, 0, 1, 0, 1]]),
    np.array([[4, 0, 1, 0, 4], [0, 0, 2, 0, 1], [0, 0, 0, 0, 0]]),
)


def test_rules_by_hand():
    # Of others: the mean over their items, so that large classes weigh more.
    ranked = rank_neurons_for_classes(STATISTICS, "contrast")
    assert ranked[0].tolist() == [2, 0, 1, 3, 4]  # 3 - 3/5, 1 - 4/5, and 0 by id
    assert ranked[1].tolist() == [0, 1, 3, 4, 2]  # 2 - 1/4, 0, 0, 0, 0 - 6/4
    assert rank_neurons_for_classes(STATISTICS, "count").tolist()[:2] == [[0, 4, 2, 1, 3], [2, 4, 0, 1, 3]]
    assert rank_neurons_for_classes(STATISTICS, "mean_abs")[0].tolist() == [2, 0, 4, 1, 3]


def test_a_neuron_that_no_class_has_scores_exactly_zero():
    generator = np.random.default_rng(0)
    means = generator.random((5, 50))
    means[:, 7] = 0
    means[:, 3] = 0.1  # equal in all classes
    statistics = ClassStatistics(tuple("abcde"), np.array([3, 7, 11, 13, 17]), means, means.astype(int))
    assert (rank_neurons_for_classes(statistics) >= 0).all()
    single = ClassStatistics(("a", "b"), np.array([2, 1]), np.array([[0.1, 0, 0], [0, 0, 0]]), np.zeros((2, 3), int))
    assert rank_neurons_for_classes(single)[1].tolist() == [1, 2, 0]


def test_what_cannot_be_ranked_is_refused():
    with pytest.raises(ValueError, match="contrast, count, mean_abs, got 'best'"):
        rank_neurons_for_classes(STATISTICS, "best")
    empty = ClassStatistics(("a", "b"), np.array([3, 0]), np.ones((2, 4)), np.ones((2, 4), int))
    with pytest.raises(ValueError, match="got none of 'b'"):
        rank_neurons_for_classes(empty)
    alone = ClassStatistics(("a",), np.array([3]), np.ones((1, 4)), np.ones((1, 4), int))
    with pytest.raises(ValueError, match="two classes to contrast"):
        rank_neurons_for_classes(alone)
    assert rank_neurons_for_classes(alone, "mean_abs").tolist() == [[0, 1, 2, 3]]


def test_statistics_come_back_as_they_were(tmp_path):
    write_class_statistics(tmp_path / "s.npz", STATISTICS)
    found = read_class_statistics(tmp_path / "s.npz")
    assert found.classes == STATISTICS.classes
    for name in ("n_items", "means", "counts"):
        np.testing.assert_array_equal(getattr(found, name), getattr(STATISTICS, name))


def test_missing_and_damaged_statistics_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="task=summarize_latents"):
        read_class_statistics(tmp_path / "s.npz")
    (tmp_path / "s.npz").write_bytes(b"PK\x03\x04 cut")
    with pytest.raises(ValueError, match="overwrite=true"):
        read_class_statistics(tmp_path / "s.npz")
    write_class_statistics(tmp_path / "t.npz", ClassStatistics(("a",), *(np.ones((2, 2), int) for _ in range(3))))
    with pytest.raises(ValueError, match="a row a class"):
        read_class_statistics(tmp_path / "t.npz")


@pytest.mark.golden
def test_mean_abs_is_the_published_ranking(golden_dir):
    arrays = np.load(golden_dir / "stats" / "mammo_intervention.npz")
    concepts, labels = arrays["global_concepts"].astype(np.float64), arrays["labels"]
    classes = sorted(
        int(key.split("/")[1][5:]) for key in arrays.files if key.startswith("ranking/class") and key.endswith("index")
    )
    means = np.stack([concepts[labels == label].mean(axis=0) for label in classes])
    n_items = np.array([(labels == label).sum() for label in classes])
    statistics = ClassStatistics(tuple(map(str, classes)), n_items, means, np.zeros(means.shape, np.int64))
    ranked = rank_neurons_for_classes(statistics, "mean_abs")
    for label, neuron_ids in zip(classes, ranked, strict=True):
        expected, importance = (arrays[f"ranking/class{label}/{name}"] for name in ("index", "importance"))
        np.testing.assert_allclose(means[label][neuron_ids], importance, rtol=1e-5)
        distinct = np.diff(importance, append=-1) != 0
        np.testing.assert_array_equal(
            neuron_ids[distinct & np.roll(distinct, 1)], expected[distinct & np.roll(distinct, 1)]
        )
