import numpy as np
import pandas as pd
import pytest
from PIL import Image

from src.analysis import figures
from src.analysis.figure_labels import spread
from src.analysis.figure_style import save_figure
from src.analysis.methods import parse_methods

METHODS = parse_methods(["neuron", "max_latents"], ["max"])


def _texts(figure):
    return [text.get_text() for axes in figure.axes for text in axes.texts]


def test_figure_is_written_as_png_and_nothing_else_is_left(tmp_path):
    save_figure(figures.plot_volcano(_neurons()), tmp_path / "plots" / "volcano.png")
    assert [file.name for file in (tmp_path / "plots").iterdir()] == ["volcano.png"]
    with Image.open(tmp_path / "plots" / "volcano.png") as image:
        assert image.format == "PNG"
        assert min(image.size) > 400


def test_training_curves_draw_the_columns_that_are_there():
    table = pd.DataFrame(
        {
            "step": [1, 2, 3, 4],
            "train/loss": [1.0, 0.5, np.nan, 0.25],
            "val/loss": [np.nan, 0.6, np.nan, 0.3],
            "val/l0": [np.nan, 20.0, np.nan, 16.0],
            "val/other": [1.0, 1.0, 1.0, 1.0],
        }
    )
    figure = figures.plot_training_curves(table)
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["Active latents (L0)", "Loss"]
    train, val = figure.axes[1].lines
    assert train.get_xydata().tolist() == [[1, 1.0], [2, 0.5], [4, 0.25]]
    assert val.get_xydata().tolist() == [[2, 0.6], [4, 0.3]]


def test_training_curves_without_a_known_metric_are_refused():
    with pytest.raises(ValueError, match=r"Expected a column step and at least one of .*got \['step', 'val/x'\]"):
        figures.plot_training_curves(pd.DataFrame({"step": [1], "val/x": [1.0]}))


def _neurons():
    return pd.DataFrame(
        {
            "neuron_id": [42, 7, 9, 1, 5],
            "effect_size": [3.0, 2.0, -2.0, 0.1, np.nan],
            "q_value": [0.0, 0.01, 0.001, 0.9, np.nan],
        }
    )


def test_volcano_names_what_was_found_and_counts_what_was_not_tested():
    figure = figures.plot_volcano(_neurons())
    # Neuron 9 is significant in the wrong direction: it is no finding. A q-value of 0 stays finite.
    assert _texts(figure) == ["42", "7"]
    assert figure.axes[0].get_title(loc="left") == "2 of 4 neurons found; 1 could not be tested"
    assert np.isfinite(figure.axes[0].get_ylim()).all()


def test_volcano_of_one_against_the_rest_names_the_class():
    neurons = _neurons().assign(**{"class": "b"})
    assert _texts(figures.plot_volcano(neurons)) == ["b: 42", "b: 7"]


def test_volcano_without_findings_is_drawn():
    neurons = _neurons().assign(q_value=0.5)
    assert _texts(figures.plot_volcano(neurons)) == []


def _predictions():
    return pd.DataFrame(
        {
            "method": ["neuron"] * 4 + ["max_latents"] * 4,
            "split": ["val", "test", "test", "test"] * 2,
            "item_id": ["a", "b", "c", "d"] * 2,
            "label": ["normal", "tumor", "normal", "tumor"] * 2,
            "prob_tumor": [0.9, 0.9, 0.5, 0.6, 0.9, 0.1, 0.5, 0.6],
        }
    )


def test_roc_uses_test_slides_and_orders_methods_by_auroc():
    figure = figures.plot_roc(_predictions(), "tumor", METHODS)
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["1.000  Best neuron", "0.500  Max MIL on latents"]


def test_roc_of_one_class_is_refused():
    rows = _predictions()
    with pytest.raises(ValueError, match="with and without 'tumor', got 2 of 2 with it"):
        figures.plot_roc(rows[rows["label"] == "tumor"], "tumor", METHODS)


def test_roc_of_an_unknown_class_is_refused():
    with pytest.raises(ValueError, match="column prob_x"):
        figures.plot_roc(_predictions(), "x", METHODS)


def test_summary_shows_every_method_once_and_bears_missing_intervals():
    summary = pd.DataFrame(
        {
            "method": ["neuron", "max_latents", "neuron"],
            "metric": ["auroc", "auroc", "balanced_accuracy"],
            "mean": [0.9, 0.8, 0.7],
            "fold_low": [np.nan, 0.7, 0.6],
            "fold_high": [np.nan, 0.9, 0.8],
            "pooled": [0.9, 0.8, 0.7],
            "slide_low": [0.8, 0.7, 0.6],
            "slide_high": [1.0, 0.9, 0.8],
        }
    )
    figure = figures.plot_summary(summary, METHODS)
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["AUROC", "Balanced accuracy"]
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["Best neuron", "Max MIL on latents"]


def test_labels_are_spread_in_order_and_stay_inside():
    moved = spread(np.array([1.0, 1.0, 0.95, 0.1]), gap=0.1, low=0.0, high=1.0)
    assert moved[3] == 0.1
    assert np.all(np.diff(np.sort(moved)) >= 0.1 - 1e-12)
    assert moved.max() <= 1.0
    assert moved[2] < moved[0] < moved[1]
