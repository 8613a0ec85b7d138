import numpy as np
import pytest

from src.analysis.probe_targets import targets_of_classes, targets_of_columns
from src.records import Item

ITEMS = {
    "1": Item("1", "1", "cat", {"tail": "1", "fur": "0"}),
    "2": Item("2", "2", "dog", {"tail": None, "fur": "1"}),
    "3": Item("3", "3", None, {"tail": None, "fur": None}),
    "4": Item("4", "4", "cat", {"tail": "0", "fur": "1"}),
}


def test_classes_of_labelled_items():
    targets = targets_of_classes(ITEMS, ["cat", "dog"])
    assert targets.of(["4", "2", "1"]).tolist() == [0, 1, 0]
    assert targets.members(["2"]).tolist() == [[0.0, 1.0]]
    assert set(targets.values) == {"1", "2", "4"}


def test_labels_of_which_any_is_known():
    targets = targets_of_columns(ITEMS, ["tail", "fur"], "1")
    np.testing.assert_array_equal(targets.of(["1", "2", "4"]), [[1, 0], [np.nan, 1], [0, 1]])
    assert "3" not in targets.values
    targets.require_all(["1", "2", "4"], "train")


def test_a_class_without_items_is_refused():
    targets = targets_of_classes(ITEMS, ["cat", "dog", "fish"])
    with pytest.raises(ValueError, match="train items of every class, got none of 'fish' among 3"):
        targets.require_all(["1", "2", "4"], "train")
    with pytest.raises(ValueError, match="train items without 'fur', got none among 2"):
        targets_of_columns(ITEMS, ["fur"], "1").require_all(["2", "4"], "train")


def test_columns_that_were_not_read_or_never_say_so_are_refused():
    with pytest.raises(ValueError, match=r"among dataset.labels, got 'ears': give dataset.labels=\[ears"):
        targets_of_columns(ITEMS, ["ears"], "1")
    with pytest.raises(ValueError, match=r"column 'fur' to say 'yes' of some items, got '0', '1': give"):
        targets_of_columns(ITEMS, ["fur"], "yes")
