import pytest

from src.report.doubts import SD_RATIO_KEY, describe_doubts, expected_l0


def test_good_numbers_raise_no_doubts():
    good = {"val/explained_variance": 0.4, "test/l0": 12.0, "train/l0": 90.0, SD_RATIO_KEY: 20.0, "n_slides": 3.0}
    good |= {"train/explained_variance": -1.0, "train+val/l0": 90.0}  # not held out
    assert describe_doubts([(0, good), (None, good)], k=8) == []


def test_folds_of_one_kind_share_a_sentence():
    folds = [(2, {"test/explained_variance": -0.2}), (0, {"test/explained_variance": -1.63}), (1, {"test/l0": 13.0})]
    low, dense = describe_doubts(folds, k=8)
    assert "variance on test items is down to -1.63 (folds 0, 2)" in low
    assert "L0 on test items is up to 13 (fold 1), more than 1.5 times the k=8" in dense
    assert describe_doubts(folds, k=None) == [low]  # no L0 was asked for


def test_unequal_features_call_for_standardising():
    (hint,) = describe_doubts([(None, {SD_RATIO_KEY: 2e4})], k=8)
    assert hint.startswith("The widest feature's deviation is 2e+04 times the median one: ")
    assert "dataset.standardize=true" in hint


@pytest.mark.parametrize(
    ("cfg", "expected"),
    [
        ({"sae": {"k": 8}, "train": {"calibrate_l0": None}}, 8),
        ({"sae": {"k": 8}, "train": {"calibrate_l0": 16}}, 16),
        ({"sae": {"l1_coefficient": 1}, "train": {}}, None),
        ({"sae": {"k": 8}, "sae_run": "elsewhere"}, None),
    ],
)
def test_expected_l0_is_what_the_sae_was_trained_for(cfg, expected):
    class Node(dict):
        __getattr__ = dict.__getitem__

    assert expected_l0(Node(cfg)) == expected
