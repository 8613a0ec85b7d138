import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import auc, average_precision_score, roc_auc_score

from src.analysis.fold_figures import (
    plot_fold_ranks,
    plot_precision_bands,
    plot_roc_bands,
    precision_on_grid,
    roc_on_grid,
)
from src.analysis.methods import parse_methods

GRID = np.linspace(0, 1, 201)
METHODS = parse_methods(["max_activations", "neuron"], ["max"])


def predict(n_folds=5, n=60):
    rng = np.random.default_rng(0)
    rows = []
    for fold in range(n_folds):
        for item in range(n):
            for method, signal in (("max_activations", 2.0), ("neuron", 1.0)):
                probability = 1 / (1 + np.exp(-(signal * (item % 2 - 0.5) + rng.normal())))
                rows.append((fold, method, f"{fold}_{item}", ("no", "yes")[item % 2], 1 - probability, probability))
    return pd.DataFrame(rows, columns=["fold", "method", "item_id", "label", "prob_no", "prob_yes"])


def test_curves_on_the_grid_keep_their_areas():
    part = predict(1, 400).query("method == 'neuron'")
    is_positive, scores = (part["label"] == "yes").to_numpy(), part["prob_yes"].to_numpy()
    assert auc(GRID, roc_on_grid(is_positive, scores)) == pytest.approx(roc_auc_score(is_positive, scores), abs=0.01)
    precision = precision_on_grid(is_positive, scores)
    assert precision.mean() == pytest.approx(average_precision_score(is_positive, scores), abs=0.01)
    assert precision[-1] <= precision[0]


def test_a_perfect_score_has_the_corner():
    is_positive = np.array([True, True, False, False])
    assert (roc_on_grid(is_positive, np.array([4.0, 3, 2, 1])) == 1).all()
    assert (precision_on_grid(is_positive, np.array([4.0, 3, 2, 1])) == 1).all()


@pytest.mark.parametrize(("plot", "metric"), [(plot_roc_bands, "AUROC"), (plot_precision_bands, "AP")])
def test_every_method_has_a_panel_with_a_band(plot, metric):
    figure = plot(predict(), "yes", METHODS)
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert [title.partition("\n")[0] for title in titles] == ["Max MIL on activations", "Best neuron"]
    assert all(f"{metric} 0." in title and " ± " in title for title in titles)
    assert all(len(axes.collections) == 1 for axes in figure.axes)
    one = plot(predict(1), "yes", METHODS)
    assert all("±" not in axes.get_title(loc="left") and not axes.collections for axes in one.axes)


def test_folds_of_one_class_have_no_curve():
    predictions = predict(2)
    one_class = predictions[(predictions["fold"] == 0) | (predictions["label"] == "no")]
    assert all("±" not in axes.get_title(loc="left") for axes in plot_roc_bands(one_class, "yes", METHODS).axes)
    with pytest.raises(ValueError, match="fold with test items with and without 'yes', got none"):
        plot_roc_bands(predictions[predictions["label"] == "no"], "yes", METHODS)


def test_neurons_of_most_folds_are_named():
    rows = [(7, fold, 1 + fold, True) for fold in range(4)] + [
        (9, fold, 3000 if fold else 2, fold == 0) for fold in range(4)
    ]
    ranks = pd.DataFrame(rows, columns=["neuron", "fold", "rank", "is_chosen"])
    figure = plot_fold_ranks(ranks)
    assert [text.get_text() for text in figure.axes[0].texts] == ["7"]
    assert figure.axes[0].get_title(loc="left") == "1 of 2 chosen neurons in most folds"
