import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score, f1_score, log_loss, precision_recall_curve, roc_curve
from sklearn.preprocessing import StandardScaler

from src.analysis import neuron_probes
from src.analysis.neuron_probes import fit_neuron_probes, score_neuron_probes, tabulate_neuron_probes


def sparse_values(n_items=300, n_neurons=12, seed=0):
    """Latents that are mostly 0; the first tells class 0, the second is constant, the third silent."""
    rng = np.random.default_rng(seed)
    values = rng.gamma(1.0, size=(n_items, n_neurons)) * (rng.random((n_items, n_neurons)) < 0.3)
    labels = rng.integers(0, 3, n_items)
    values[labels == 0, 0] += rng.gamma(2.0, size=(labels == 0).sum())
    values[:, 1], values[:, 2] = 0.7, 0.0
    return values.astype(np.float32), (labels[:, None] == np.arange(3)).astype(np.float32)


@pytest.mark.parametrize("metric", ["balanced_accuracy", "f1"])
def test_thresholds_are_the_best_of_all(metric, monkeypatch):
    monkeypatch.setattr(neuron_probes, "_CHUNK_VALUES", 5 * 300)  # several chunks, the last one shorter
    values, members = sparse_values()
    values[:, 3] -= 5  # a channel of negative values
    probes = fit_neuron_probes(values, members, metric)
    scores = score_neuron_probes(probes, values, members)[metric]
    for c in range(3):
        for j in range(values.shape[1]):
            if metric == "f1":
                precision, recall, _ = precision_recall_curve(members[:, c], values[:, j])
                sums = precision + recall
                best = (2 * precision * recall / np.where(sums > 0, sums, 1)).max()
                score = f1_score
            else:
                fpr, tpr, _ = roc_curve(members[:, c], values[:, j], drop_intermediate=False)
                best = ((1 + tpr - fpr) / 2).max()
                score = balanced_accuracy_score
            assert scores[c, j] == pytest.approx(best, abs=1e-12)
            assert scores[c, j] == pytest.approx(score(members[:, c], values[:, j] > probes.thresholds[c, j]))
    assert np.isneginf(probes.thresholds[:, 1:3]).all()


def test_a_threshold_lies_midway_and_equal_values_stay_together():
    values = np.array([[0.0], [0.0], [1.0], [1.0], [3.0]], np.float32)
    members = np.array([[0.0], [0], [0], [1], [1]])
    assert fit_neuron_probes(values, members).thresholds.item() == 0.5  # 1 / 2 / 3: recall 1, specificity 2 / 3
    members = np.array([[0.0], [0], [0], [0], [1]])
    assert fit_neuron_probes(values, members).thresholds.item() == 2.0


@pytest.mark.parametrize("l2", [None, 1e-3, 1.0])
def test_regressions_are_scikit_learns(l2):
    values, members = sparse_values()
    values[:, 4] *= 1000
    values[:, 5] += 50
    probes = fit_neuron_probes(values, members, l2=l2)
    losses = score_neuron_probes(probes, values, members)["log_loss"]
    strength = 1.0 if l2 is None else 1 / (l2 * len(values))
    for c in range(3):
        for j in range(values.shape[1]):
            scaled = StandardScaler().fit_transform(values[:, [j]].astype(float))
            model = LogisticRegression(C=strength, tol=1e-10, max_iter=1000).fit(scaled, members[:, c])
            logits = values[:, j].astype(float) * probes.weights[c, j] + probes.biases[c, j]
            np.testing.assert_allclose(logits, model.decision_function(scaled), atol=2e-3)
            assert losses[c, j] == pytest.approx(log_loss(members[:, c], model.predict_proba(scaled)[:, 1]), abs=1e-6)
    assert (probes.weights[:, 1:3] == 0).all()


def test_newton_comes_down_also_where_a_full_step_does_not():
    rng = np.random.default_rng(0)
    values = np.concatenate([rng.normal(size=2000), [1e4]])[:, None].astype(np.float32)  # one item far away
    members = np.concatenate([rng.integers(0, 2, 2000), [1]])[:, None].astype(float)
    probes = fit_neuron_probes(values, members, l2=1e-8)
    scaler = StandardScaler().fit(values.astype(float))
    model = LogisticRegression(C=1 / (1e-8 * 2001), tol=1e-12, max_iter=10_000).fit(
        scaler.transform(values.astype(float)), members[:, 0]
    )
    best = log_loss(members[:, 0], model.predict_proba(scaler.transform(values.astype(float)))[:, 1])
    assert score_neuron_probes(probes, values, members)["log_loss"].item() <= best + 1e-5


def test_items_of_which_a_label_is_not_known_do_not_count():
    values, members = sparse_values()
    hidden = members.copy()
    hidden[:100, 0] = np.nan
    some, without = fit_neuron_probes(values, hidden), fit_neuron_probes(values[100:], members[100:])
    np.testing.assert_array_equal(some.thresholds[0], without.thresholds[0])
    np.testing.assert_array_equal(some.weights[0], without.weights[0])
    np.testing.assert_array_equal(
        score_neuron_probes(some, values, hidden)["f1"][0],
        score_neuron_probes(some, values[100:], members[100:])["f1"][0],
    )


def test_scores_that_items_do_not_define_are_nan():
    values, members = sparse_values()
    probes = fit_neuron_probes(values, members)
    of_one = np.tile(np.array([1.0, 0.0, np.nan]), (4, 1))
    scores = score_neuron_probes(probes, values[:4], of_one)
    assert np.isnan(scores["balanced_accuracy"]).all()
    assert not np.isnan(scores["f1"][0]).any()
    assert np.isnan(scores["f1"][1:]).all()
    assert np.isnan(scores["log_loss"][2]).all()


def test_a_class_without_items_or_others_and_an_unknown_metric_are_refused():
    values, members = sparse_values()
    members[:, 1] = 0
    with pytest.raises(ValueError, match="with and without class 1, got 0 with it of 300"):
        fit_neuron_probes(values, members)
    with pytest.raises(ValueError, match="got 'accuracy'"):
        fit_neuron_probes(values, members, "accuracy")


def test_a_row_a_class_and_neuron():
    values, members = sparse_values()
    probes = fit_neuron_probes(values, members)
    table = tabulate_neuron_probes(probes, ["x", "y", "z"], {"train": score_neuron_probes(probes, values, members)})
    assert len(table) == 3 * 12
    row = table[(table["class"] == "y") & (table["neuron_id"] == 4)].iloc[0]
    assert row["threshold"] == probes.thresholds[1, 4]
    best = table[table["class"] == "x"].sort_values("train_balanced_accuracy").iloc[-1]
    assert best["neuron_id"] == 0
