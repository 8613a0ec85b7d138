"""A study keeps its trials, and gives a trial that did not end again."""

import pytest

from src.analysis.search_study import begin_trial, corners, end_trial, n_ended, open_study, tabulate_trials

pytest.importorskip("optuna")
SPACE = {"a": {"low": 1, "high": 64, "log": True}, "b": {"low": 0.0, "high": 1.0}, "c": {"choices": ["x", None, 3]}}


@pytest.mark.slow
@pytest.mark.parametrize("sampler", ["tpe", "nsga2"])
def test_a_stop_changes_no_proposal(tmp_path, sampler):
    def propose(name, stops_at):
        proposed = []
        with open_study(tmp_path / name, ["maximize"]) as study:
            for start in range(4):
                trial = begin_trial(study, SPACE, sampler, seed=5)
                proposed.append((trial.number, trial.params))
                if start != stops_at:  # else it does not end, as when its process dies
                    end_trial(study, trial, [trial.params["b"]])
            assert n_ended(study) == 4 - (stops_at is not None)
        return proposed

    first, second, third, _ = propose("whole", None)
    assert propose("stopped", 1) == [first, second, second, third]


def test_the_table_has_the_best_and_the_failed(tmp_path):
    with open_study(tmp_path / "study", ["maximize", "minimize"]) as study:
        for number, values in enumerate(([1.0, 1.0], [2.0, 2.0], [0.5, 3.0], None)):
            trial = begin_trial(study, SPACE, "random", seed=0)
            trial.set_user_attr("tried", [f"a={number}", "b=[1,2]"])
            end_trial(study, trial, values)
        table = tabulate_trials(study, ["up", "down"])
    assert table["best"].tolist() == [True, True, False, False]
    assert table["state"].tolist() == ["complete"] * 3 + ["fail"]
    assert table["b"].tolist() == ["[1,2]"] * 4
    assert table["up"].tolist()[:3] == [1.0, 2.0, 0.5]


def test_corners_have_every_choice_and_every_end():
    found = corners(SPACE)
    for key, values in {"a": {1, 64}, "b": {0.0, 1.0}, "c": {"x", None, 3}}.items():
        assert {corner[key] for corner in found} == values
    assert corners({}) == []
