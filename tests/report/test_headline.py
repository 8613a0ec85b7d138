import pandas as pd
import pytest

from src.analysis.methods import SINGLE, parse_methods, write_methods
from src.report.headline import build_headline


@pytest.fixture(autouse=True)
def methods(tmp_path):
    """Every table lies beside a record of its methods."""
    write_methods(SINGLE | parse_methods(["max_latents"], ["max"]), tmp_path / "methods.csv")


def _ranking(path, neuron_id, q_value=1e-6, **columns):
    table = pd.DataFrame({"rank": [1, 2], "neuron_id": [neuron_id, 0], "auroc": [0.9, 0.6], "q_value": [q_value, 0.9]})
    table.assign(**columns).to_csv(path, index=False)
    return path


def _localization(path, neuron, random):
    rows = pd.DataFrame(
        {
            "method": ["random_neuron", "neuron"],
            "auroc": [random, neuron],
            "auroc_low": [random - 0.1, neuron - 0.1],
            "auroc_high": [random + 0.1, neuron + 0.05],
            "n_outlined_slides": [4, 4],
        }
    )
    rows.to_csv(path, index=False)
    return path


def test_one_fold_names_its_neuron_and_shows_the_interval_over_slides(tmp_path):
    headline = build_headline(
        {0: _ranking(tmp_path / "r.csv", 42)}, {0: _localization(tmp_path / "l.csv", 0.9, 0.5)}, None, None, "tumor"
    )
    assert "Of 2 neurons, neuron 42 tells tumor slides from the others best" in headline.sentences[0]
    assert "(AUROC on train slides 0.900, q = 1e-06)" in headline.sentences[0]
    assert "patch-level AUROC 0.900; 4 outlined slides" in headline.sentences[1]
    (chart,) = headline.charts
    assert [bar.label for bar in chart.bars] == ["Best neuron", "Random neuron"]
    assert (chart.bars[0].value, chart.bars[0].low, chart.bars[0].high) == pytest.approx((0.9, 0.8, 0.95))


def test_several_folds_show_their_mean_and_range(tmp_path):
    rankings = {k: _ranking(tmp_path / f"r{k}.csv", 40 + k) for k in (0, 2)}
    tables = {k: _localization(tmp_path / f"l{k}.csv", 0.8 + k / 20, 0.5) for k in (0, 2)}
    headline = build_headline(rankings, tables, None, None, "tumor")
    assert "neuron 40, 42 (folds 0, 2)" in headline.sentences[0]
    assert "0.850, in the mean of 2 folds; 8 outlined slides" in headline.sentences[1]
    bar = headline.charts[0].bars[0]
    assert (bar.value, bar.low, bar.high) == pytest.approx((0.85, 0.8, 0.9))


def test_a_neuron_that_is_not_significant_is_not_praised(tmp_path):
    headline = build_headline({0: _ranking(tmp_path / "r.csv", 42, q_value=0.4)}, {}, None, None, "tumor")
    assert "this is not significant" in headline.sentences[0]


def test_of_many_classes_the_ranking_names_the_class(tmp_path):
    headline = build_headline({0: _ranking(tmp_path / "r.csv", 42, **{"class": "b"})}, {}, None, None, None)
    assert "tells b slides" in headline.sentences[0]


@pytest.mark.parametrize(("n_folds", "expected"), [(1, (0.8, 0.7, 0.9)), (5, (0.8, 0.75, 0.85))])
def test_slide_chart_shows_the_interval_over_slides_or_folds(tmp_path, n_folds, expected):
    summary = pd.DataFrame(
        {
            "method": ["max_latents", "max_latents"],
            "metric": ["auroc", "accuracy"],
            "mean": [0.8, 0.1],
            "n_folds": n_folds,
            "fold_low": 0.75,
            "fold_high": 0.85,
            "slide_low": 0.7,
            "slide_high": 0.9,
        }
    )
    summary.to_csv(tmp_path / "s.csv", index=False)
    headline = build_headline({}, {}, tmp_path / "s.csv", None, "tumor")
    (bar,) = headline.charts[0].bars
    assert (bar.value, bar.low, bar.high) == pytest.approx(expected)


def test_nothing_gives_an_empty_headline():
    headline = build_headline({}, {}, None, None, None)
    assert (headline.sentences, headline.charts, headline.figure) == ([], [], None)
