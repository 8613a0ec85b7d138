import numpy as np
import pytest
import torch

from src.analysis.steering_trials import (
    KEEP,
    NO_SAE,
    RECONSTRUCT,
    REMOVE,
    UNION,
    Neurons,
    Plan,
    describe_controls,
    dose_trials,
    parse_sizes,
    single_trials,
    size_trials,
)

N = 40


def make_neurons(replace="mean"):
    rng = np.random.default_rng(0)
    rankings = np.stack([np.arange(N), np.arange(N)[::-1], np.roll(np.arange(N), 7)])
    return Neurons(("a", "b", "c"), rankings, rng.random((3, N)), torch.linspace(1, 2, N), replace)


def test_sizes_above_the_number_of_neurons_are_dropped_and_all_is_that_number():
    assert parse_sizes([1, 100, 10, "all", 40], 40) == [1, 10, 40]
    assert parse_sizes([0, "all"], 7) == [0, 7]
    for wrong in ("most", -1, 2.5):
        with pytest.raises(ValueError, match="whole numbers from 0 or all"):
            parse_sizes([1, wrong], 40)


def test_a_size_is_tried_with_the_best_neurons_and_with_random_sets_kept_and_removed():
    trials = list(size_trials(make_neurons(), "b", [1, 5], n_controls=3))
    assert [(t.action, t.k, t.draw) for t in trials if t.k == 5] == [
        (action, 5, draw) for draw in (-1, 0, 1, 2) for action in (KEEP, REMOVE)
    ]
    kept, removed = (t.edit.changed for t in trials if t.k == 5 and t.draw < 0)
    assert removed.nonzero().squeeze(1).tolist() == [35, 36, 37, 38, 39]
    assert torch.equal(kept, ~removed)
    for trial in trials:
        assert int(trial.edit.changed.sum()) == (trial.k if trial.action == REMOVE else N - trial.k)
        torch.testing.assert_close(trial.edit.offset, torch.linspace(1, 2, N) * trial.edit.changed)


def test_the_union_is_of_all_classes_best_without_repeats():
    (_, removed) = size_trials(make_neurons(), UNION, [2])
    assert removed.edit.changed.nonzero().squeeze(1).tolist() == [0, 1, 33, 34, 38, 39]
    assert removed.target == UNION


def test_what_is_taken_away_becomes_what_the_replacement_says():
    zero, resample = (next(size_trials(make_neurons(replace), "a", [3])).edit for replace in ("zero", "resample"))
    assert zero.offset is None
    assert not zero.resamples
    assert resample.resamples


def test_doses_scale_set_and_add_in_units_of_train_means():
    doses = {"scale": [0, 2.0], "add": [0.5], "set": [3]}
    scaled, doubled, added, put = dose_trials(make_neurons(), "a", 2, doses)
    assert (scaled.edit.factor, doubled.edit.factor, added.edit.factor, put.edit.factor) == (0, 2, 1, 0)
    assert (scaled.strength, added.strength) == (0.0, 0.5)
    torch.testing.assert_close(added.edit.offset[:3], torch.tensor([0.5, 0.5 * (1 + 1 / 39), 0]))
    torch.testing.assert_close(put.edit.offset[:3], torch.tensor([3.0, 3 * (1 + 1 / 39), 0]))


def test_single_neurons_are_removed_one_by_one():
    trials = list(single_trials(make_neurons(), "b", 3))
    assert [trial.neuron_id for trial in trials] == [39, 38, 37]
    assert [trial.edit.changed.nonzero().item() for trial in trials] == [39, 38, 37]


def test_a_plan_gives_each_class_its_own_sets_and_at_the_chosen_size_those_of_the_others():
    options = {"n_controls": 4, "n_single": 2, "has_union": True, "has_side_effects": True, "seed": 0}
    plan = Plan(make_neurons(), [1, 5, 10], 5, control_sizes=[1, 5, 10], doses={"scale": [2.0]}, **options)
    trials = plan.of_class("a")
    assert [trial.action for trial in trials[:2]] == [NO_SAE, RECONSTRUCT]
    counts = {target: sum(t.target == target for t in trials) for target in ("a", "b", "c", UNION)}
    # 3 sizes x 5 sets x 2 actions, 2 single neurons, 1 dose; 1 size x 2 actions, 1 dose; 3 sizes x 2 actions
    assert counts == {"a": 33, "b": 3, "c": 3, UNION: 6}
    assert len(set(trials)) == len(trials)
    shared = set(trials) & set(plan.of_class("b")) & set(plan.of_class("c"))
    assert {(t.target, t.k) for t in shared if t.action == KEEP} == {
        *((name, 5) for name in "abc"),
        *((UNION, k) for k in (1, 5, 10)),
    }
    alone = Plan(make_neurons(), [1, 5, 10], 5, control_sizes=[5], doses={}, **options).of_class("a")
    assert {trial.k for trial in alone if trial.draw >= 0} == {5}


def test_how_well_random_sets_match_is_told():
    neurons = make_neurons()
    rows = describe_controls(neurons, list(size_trials(neurons, "c", [4, N], n_controls=2)))
    assert [(row["k"], row["draw"]) for row in rows] == [(4, 0), (4, 1), (N, 0), (N, 1)]
    assert {row["class"] for row in rows} == {"c"}
    assert all(row["mass_ratio"] == pytest.approx(1, abs=0.03) for row in rows)
    assert [row["shared"] for row in rows] == [0, 0, 1, 1]
