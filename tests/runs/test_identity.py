from pathlib import Path

import pytest

from src.runs.identity import TaskSpec, result_values, run_path, variant

GROUPS = ("dataset", "sae", "train")


def test_no_override_that_matters_is_default():
    overrides = ["exp=quickstart", "fold=3", "name=x", "overwrite=true", "trainer.accelerator=cpu", "paths.data=/a/b"]
    assert variant(overrides, GROUPS) == "default"


def test_order_does_not_matter_and_the_last_of_two_holds():
    assert variant(["sae.k=8", "train.lr=0.1"], GROUPS) == variant(["train.lr=0.1", "sae.k=8"], GROUPS)
    assert variant(["sae.k=8", "sae.k=16"], GROUPS) == "sae.k-16"


def test_only_groups_that_shape_the_result_enter():
    overrides = ["sae.k=8", "selection.method=auroc"]
    assert variant(overrides, GROUPS) == "sae.k-8"
    assert variant(overrides, (*GROUPS, "selection")) == "sae.k-8,selection.method-auroc"


def test_group_choice_seed_and_added_or_removed_keys_enter():
    assert variant(["sae=topk", "seed=3", "+sae.extra=1", "~train.decay"], GROUPS) == (
        "sae-topk,sae.extra-1,seed-3,train.decay-removed"
    )


def test_different_values_never_share_a_name():
    values = ["a,b", "a b", "a:b", "a%b", "[a,b]", "a_b", "a-b"]
    assert len({variant([f"sae.x={value}"], GROUPS) for value in values}) == len(values)


def test_paths_enter_by_digest_and_long_names_are_closed_by_one():
    first, second = (variant([f"sae_run={path}"], GROUPS) for path in ("/runs/a", "/runs/b"))
    assert first != second
    assert "/" not in first
    long = [
        variant([f"sae.key_{index}={index}" for index in range(40)] + [last], GROUPS) for last in ("sae.k=1", "sae.k=2")
    ]
    assert long[0] != long[1]
    assert max(map(len, long)) <= 80


def test_names_and_places_of_data_do_not_enter():
    places = ["dataset.name=a", "dataset.features_dir=/a", "dataset.tensors.train=/a.npy", "backbone.checkpoint=/w.pt"]
    assert variant(places, (*GROUPS, "backbone")) == "default"
    assert variant(["dataset=camelyon16", "dataset.standardize=true"], GROUPS) != "default"


@pytest.mark.parametrize(
    ("scope", "expected"),
    [("fold", "r/s/sae.k-8/fold_2/t"), ("name", "r/s/sae.k-8/t"), ("dataset", "r/s/t/sae.k-8")],
)
def test_scope_fixes_the_depth(scope, expected):
    assert run_path(Path("r"), "s", 2, TaskSpec("t", scope, GROUPS), ["sae.k=8"]) == Path(expected)


def test_unknown_scope_is_named():
    with pytest.raises(ValueError, match=r"task\.scope of t to be fold, name or dataset, got 'slide'"):
        run_path(Path("r"), "s", 0, TaskSpec("t", "slide", ()), [])


def test_result_values_leave_neutral_keys_and_other_groups_out():
    config = {"dataset": {"dir": "/x", "name": "d"}, "sae": {"k": 8}, "mil": {"lr": 1}, "seed": 0, "fold": 1}
    assert result_values(config, GROUPS) == {"sae.k": 8, "seed": 0}
    assert result_values(config, (*GROUPS, "fold"))["fold"] == 1


@pytest.mark.parametrize(
    ("typed", "swept"), [("true", "True"), ("1e-3", "0.001"), ("08", "8"), ("null", "null"), ("2.50", "2.5")]
)
def test_sweeps_and_single_runs_spell_values_alike(typed, swept):
    assert variant([f"sae.x={typed}"], GROUPS) == variant([f"sae.x={swept}"], GROUPS)
