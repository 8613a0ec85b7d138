import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from src.analysis.localization import (
    PatchScoring,
    choose_random_neuron,
    compare_methods,
    relative_attention,
    score_pooled,
    score_slides,
    spread_out,
)


def _patches():
    # Slide 01 (ids keep zeros): positives 3, 1; negatives 2, 0. Slide b: negatives only.
    return pd.DataFrame(
        {
            "item_id": ["01"] * 4 + ["b"] * 2,
            "label": [True, True, False, False, False, False],
            "neuron": [3.0, 1.0, 2.0, 0.0, 0.0, 4.0],
            "flat": [1.0] * 6,
        }
    )


def test_pooled_scores_by_hand():
    table = score_pooled(_patches(), ["neuron", "flat"], PatchScoring(n_bootstrap=50)).set_index("method")
    # Ordered pairs, positive above negative: 3 beats 2, 0, 0; 1 beats 0, 0; of 8 pairs.
    assert table.loc["neuron", "auroc"] == pytest.approx(5 / 8)
    # Precision at the two positives: 1/2 at rank 2, 2/4 at rank 4.
    assert table.loc["neuron", "average_precision"] == pytest.approx(0.5)
    assert table.loc["flat", "auroc"] == 0.5
    assert table.loc["flat", "average_precision"] == pytest.approx(2 / 6)
    assert table.loc["neuron", "mean_slide_auroc"] == pytest.approx(3 / 4)
    assert table.loc["neuron", ["n_slides", "n_outlined_slides", "n_patches", "n_positive"]].tolist() == [2, 1, 6, 2]


def test_slide_scores_leave_out_slides_of_one_class():
    table = score_slides(_patches(), ["neuron"])
    assert table["item_id"].tolist() == ["01"]
    assert table["auroc"].tolist() == [0.75]
    assert table["average_precision"].tolist() == [pytest.approx((1 + 2 / 3) / 2)]


def _random_patches(rng, n_slides=8, n=40):
    frames = []
    for slide in range(n_slides):
        label = rng.random(n) < 0.3 if slide % 2 else np.zeros(n, bool)
        score = np.round(rng.normal(size=n) + label, 1)  # rounded, so that there are ties
        frames.append(pd.DataFrame({"item_id": f"s{slide}", "label": label, "m": score}))
    return pd.concat(frames, ignore_index=True)


@pytest.mark.slow
def test_interval_is_that_of_drawing_whole_slides():
    patches = _random_patches(np.random.default_rng(1))
    table = score_pooled(patches, ["m"], PatchScoring(n_bootstrap=1000, seed=3)).iloc[0]
    slides = dict(iter(patches.groupby("item_id")))
    with_positive = [s for s in slides if slides[s]["label"].any()]
    without = [s for s in slides if s not in with_positive]
    rng = np.random.default_rng(0)
    values = []
    for _ in range(1000):
        drawn = [*rng.choice(with_positive, len(with_positive)), *rng.choice(without, len(without))]
        rows = pd.concat([slides[s] for s in drawn])
        values.append((roc_auc_score(rows["label"], rows["m"]), average_precision_score(rows["label"], rows["m"])))
    low, high = np.percentile(values, (2.5, 97.5), axis=0)
    width = high - low
    found = np.array(
        [
            [table["auroc_low"], table["average_precision_low"]],
            [table["auroc_high"], table["average_precision_high"]],
        ]
    )
    assert np.all(np.abs(found - [low, high]) < 0.15 * width)
    assert table["auroc_low"] < table["auroc"] < table["auroc_high"]


def test_one_slide_has_an_interval_of_no_width():
    patches = _patches().iloc[:4]
    row = score_pooled(patches, ["neuron"], PatchScoring(n_bootstrap=10)).iloc[0]
    assert row["auroc_low"] == row["auroc_high"] == pytest.approx(row["auroc"])
    assert row["average_precision_low"] == pytest.approx(row["average_precision"])


def test_attention_of_slides_of_any_size_means_the_same():
    assert (
        relative_attention(np.full(4, 0.25)).tolist() == relative_attention(np.full(8, 0.125))[:4].tolist() == [1] * 4
    )


def test_patches_of_one_class_are_refused():
    with pytest.raises(ValueError, match="inside and outside the outlines, got 0 of 2"):
        score_pooled(_patches().iloc[4:], ["neuron"])


def test_scores_that_are_not_finite_name_the_slide():
    patches = _patches()
    patches.loc[5, "neuron"] = np.nan
    with pytest.raises(ValueError, match="finite scores of neuron, got others on slide 'b'"):
        score_pooled(patches, ["neuron"])


def test_random_neuron_is_active_another_and_the_same_again():
    density = pd.Series([0.0, 0.5, 0.1, 0.2], index=[3, 7, 1, 9])
    drawn = {choose_random_neuron(density, chosen=7, seed=seed) for seed in range(40)}
    assert drawn == {1, 9}
    assert choose_random_neuron(density, 7, 5) == choose_random_neuron(density.iloc[::-1], 7, 5)


def test_no_other_active_neuron_is_an_error():
    with pytest.raises(ValueError, match="besides neuron 7, got none"):
        choose_random_neuron(pd.Series([0.5, 0.0], index=[7, 1]), chosen=7, seed=0)


@pytest.mark.parametrize(
    ("n", "expected"),
    [(1, ["c"]), (2, ["c", "e"]), (3, ["c", "a", "e"]), (9, ["c", "a", "b", "d", "e"]), (0, [])],
)
def test_shown_slides_are_spread_over_the_ranking_the_middle_first(n, expected):
    assert spread_out(list("abcde"), n) == expected


def test_nothing_to_spread():
    assert spread_out([], 3) == []


def test_delong_intervals_and_pairs_are_clustered_by_slide():
    rng = np.random.default_rng(2)
    patches = _random_patches(rng, n_slides=12).assign(noise=lambda table: rng.normal(size=len(table)))
    row = score_pooled(patches, ["m", "noise"], PatchScoring(n_bootstrap=300)).iloc[0]
    assert row["auroc_delong_low"] < row["auroc"] < row["auroc_delong_high"]
    wide = row["auroc_high"] - row["auroc_low"]
    assert row["auroc_delong_high"] - row["auroc_delong_low"] == pytest.approx(wide, rel=0.4)
    pair = compare_methods(patches, ["m", "noise"]).iloc[0]
    assert (pair["method"], pair["other"]) == ("m", "noise")
    assert pair["difference"] == pytest.approx(
        roc_auc_score(patches["label"], patches["m"]) - roc_auc_score(patches["label"], patches["noise"])
    )
    assert pair["p_value"] < 0.01
    assert compare_methods(_patches(), ["neuron", "flat"]).empty


def test_without_threshold_and_lesions_what_needs_them_is_nan():
    row = score_pooled(_patches(), ["neuron"], PatchScoring(n_bootstrap=5)).iloc[0]
    assert row[["f1", "dice", "froc", "threshold", "auroc_delong_low"]].isna().all()
    row = score_pooled(_patches(), ["neuron"], PatchScoring({"neuron": 1.5}, n_bootstrap=5)).iloc[0]
    # Found: 3 (inside), 2 and 4 (outside); missed: 1. On slide 01 two are found, one of them inside.
    assert row["f1"] == pytest.approx(2 * 1 / (3 + 2))
    assert row["dice"] == pytest.approx(2 * 1 / (2 + 2))
    assert row["pointing_game"] == 1
