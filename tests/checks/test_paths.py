"""What a task reads, looked for before it begins."""

import pytest

from src.checks.paths import missing_data
from src.split_files import MADE_BY_LOUPE


@pytest.fixture
def plain(tmp_path):
    splits, csv = tmp_path / "splits", tmp_path / "d.csv"
    splits.mkdir()
    csv.touch()
    return {
        "task": {"name": "select_neurons", "needs": ["metadata_csv", "splits_dir"], "fits": True},
        "dataset": {"metadata_csv": str(csv), "splits_dir": str(splits)},
        "train": {"residency": "auto"},
        "backbone": {"name": "none"},
        "fold": 0,
        "repeat": 0,
    }


def test_what_is_there_is_not_missing(plain):
    assert list(missing_data(plain)) == []


def test_a_cohort_without_splits_has_no_train_items(plain):
    plain["dataset"]["splits_dir"] = None
    (error,) = missing_data(plain | {"fold": "all"})
    assert "task=select_neurons needs train items: fold=all has none" in error


def test_published_folds_have_no_other_draw(plain, tmp_path):
    (tmp_path / "splits" / "splits_0.csv").touch()
    (error,) = missing_data(plain | {"repeat": 1})
    assert error.startswith("repeat: expected one of [0], of which")
    assert error.endswith("got 1; other repeats have files rep<r>_fold<k>.csv")
    (tmp_path / "splits" / "rep1_fold0.csv").touch()
    assert list(missing_data(plain | {"repeat": 1})) == []
    (tmp_path / "splits" / "rep1_fold0.csv").unlink()
    (tmp_path / "splits" / MADE_BY_LOUPE).touch()
    assert list(missing_data(plain | {"repeat": 1})) == []


def test_without_a_backbone_nobody_is_told_to_embed(plain):
    plain["task"] = {"name": "encode", "needs": ["features_dir"]}
    (error,) = missing_data(plain)
    assert "backbone=none computes no activations, so task=embed cannot make them" in error
    (error,) = missing_data(plain | {"backbone": {"name": "uni", "_target_": "x"}})
    assert "make it with task=embed" in error
