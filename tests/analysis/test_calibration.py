import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import brier_score_loss

from src.analysis.calibration import calibrate, plot_reliability, reliability
from src.analysis.methods import parse_methods

METHODS = parse_methods(["max_activations", "neuron"], ["max"])


def predict(probabilities, outcomes, method="neuron"):
    ids = [f"i{i}" for i in range(len(outcomes))]
    columns = {"method": method, "item_id": ids, "case_id": ids, "label": np.where(outcomes, "yes", "no")}
    return pd.DataFrame(columns | {"prob_no": 1 - probabilities, "prob_yes": probabilities})


def test_by_hand():
    predictions = predict(np.array([0.05, 0.05, 0.95, 0.95]), np.array([0, 1, 1, 1]))
    (row,) = calibrate(predictions).to_dict("records")
    assert row["brier"] == pytest.approx((3 * 0.05**2 + 0.95**2) / 4)
    assert row["calibration_error"] == pytest.approx((abs(0.5 - 0.05) + abs(1 - 0.95)) / 2)
    assert (row["mean_probability"], row["share_true"]) == (pytest.approx(0.5), 0.75)


def test_true_probabilities_are_calibrated_and_exaggerated_ones_are_not():
    rng = np.random.default_rng(0)
    true = rng.random(20_000)
    outcomes = rng.random(20_000) < true
    exaggerated = true**3 / (true**3 + (1 - true) ** 3)
    tables = [predict(true, outcomes), predict(exaggerated, outcomes, "max_activations")]
    scores = calibrate(pd.concat(tables)).set_index("method")
    assert scores.loc["neuron", "calibration_error"] < 0.02
    assert scores.loc["max_activations", "calibration_error"] > 0.1
    assert scores.loc["neuron", "brier"] == pytest.approx(brier_score_loss(outcomes, true))
    assert scores.loc["neuron", "brier"] < scores.loc["max_activations", "brier"]


def test_of_more_classes_the_most_probable_one_is_judged():
    table = pd.DataFrame({"method": "m", "item_id": ["a", "b"], "case_id": ["a", "b"], "label": ["x", "y"]})
    table = table.assign(prob_x=[0.7, 0.5], prob_y=[0.2, 0.3], prob_z=[0.1, 0.2])
    (row,) = calibrate(table).to_dict("records")
    assert row["brier"] == pytest.approx(((0.3**2 + 0.2**2 + 0.1**2) + (0.5**2 + 0.7**2 + 0.2**2)) / 2)
    assert row["calibration_error"] == pytest.approx((0.3 + 0.5) / 2)


def test_probability_one_is_in_the_last_bin():
    assert reliability(np.array([1.0, 0.95, 0.0]), np.array([True, False, False]))["bin"].tolist() == [0, 9]


def test_every_method_has_a_panel():
    outcomes = np.array([0, 1, 1, 0])
    both = pd.concat([predict(np.array([0.2, 0.8, 0.7, 0.4]), outcomes, name) for name in METHODS])
    figure = plot_reliability(both, METHODS)
    assert len(figure.axes) == 2
    assert "ECE" in figure.axes[0].get_title(loc="left")
