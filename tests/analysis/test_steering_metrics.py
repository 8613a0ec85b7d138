import numpy as np
import pandas as pd
import pytest

from src.analysis.steering_figures import plot_doses, plot_effects, plot_side_effects, plot_sizes
from src.analysis.steering_metrics import (
    PROBABILITY,
    RECALL,
    Outcome,
    choose_size,
    describe_outcomes,
    effects_by_size,
    effects_of_single_neurons,
    published_layout,
    summarize_effects,
    tabulate_confusions,
)
from src.analysis.steering_trials import KEEP, NO_SAE, RECONSTRUCT, REMOVE, UNION, Trial

CLASSES = ("cat", "dog", "other")


def outcome(probabilities, own, target=None):
    values = np.array(probabilities, float)
    of_target = None if target is None else values[:, target]
    return Outcome(values.argmax(1), values[:, own], of_target, values if target is None else None)


def make_outcomes():
    """Cats are recognised by 2 of 2, dogs by 1 of 3; without the dogs' neurons all are cats."""
    plain = {0: [[0.8, 0.1, 0.1], [0.6, 0.3, 0.1]], 1: [[0.2, 0.7, 0.1], [0.5, 0.3, 0.2], [0.1, 0.3, 0.6]]}
    without = {0: [[0.9, 0.05, 0.05]] * 2, 1: [[0.7, 0.2, 0.1]] * 3}
    return {
        name: {
            Trial(NO_SAE): outcome(plain[own], own),
            Trial(RECONSTRUCT): outcome(plain[own], own),
            Trial(REMOVE, "dog", 4): outcome(without[own], own, 1),
            Trial(REMOVE, "dog", 1, neuron_id=7): outcome(without[own], own, 1),
        }
        for own, name in enumerate(CLASSES[:2])
    }


def value(table, action, name, metric, target=""):
    rows = table[(table.action == action) & (table["class"] == name) & (table.metric == metric)]
    return rows[rows.target == target]["value"].item()


def test_numbers_by_hand():
    table = describe_outcomes(make_outcomes(), CLASSES)
    assert value(table, RECONSTRUCT, "cat", RECALL) == 1
    assert value(table, RECONSTRUCT, "dog", RECALL) == pytest.approx(1 / 3)
    assert value(table, RECONSTRUCT, "dog", PROBABILITY) == pytest.approx(0.3)
    assert value(table, RECONSTRUCT, "all", "accuracy") == pytest.approx(3 / 5)
    assert value(table, RECONSTRUCT, "cat", "precision") == pytest.approx(2 / 3)
    assert value(table, RECONSTRUCT, "cat", "f1") == pytest.approx(0.8)
    assert value(table, RECONSTRUCT, "cat", "auroc") == 1
    assert value(table, RECONSTRUCT, "dog", "auroc") == pytest.approx(5 / 6)
    assert value(table, REMOVE, "cat", "target_share", "dog") == 0
    assert value(table, REMOVE, "cat", "target_probability", "dog") == pytest.approx(0.05)
    assert value(table, REMOVE, "dog", RECALL, "dog") == 0
    assert value(table, REMOVE, "dog", "auroc", "dog") == 1
    with pytest.raises(ValueError, match="can only convert"):
        value(table, REMOVE, "cat", "auroc", "dog")  # of the others only the target's probabilities are kept
    assert (table.k != 1).all()  # single neurons have a table of their own


def test_confusions_count_every_item_once():
    table = tabulate_confusions(make_outcomes(), CLASSES)
    plain = table[table.action == RECONSTRUCT].pivot(index="class", columns="predicted", values="n_items")
    assert plain.loc["dog", list(CLASSES)].tolist() == [1, 1, 1]
    assert plain.loc["cat", list(CLASSES)].tolist() == [2, 0, 0]
    removed = table[(table.action == REMOVE) & (table.k == 4)].groupby("predicted")["n_items"].sum()
    assert removed.to_dict() == {"cat": 5, "dog": 0, "other": 0}


def test_single_neurons_stand_with_the_class_they_are_best_for():
    outcomes = make_outcomes()
    del outcomes["cat"][Trial(REMOVE, "dog", 1, neuron_id=7)]
    outcomes["cat"][Trial(REMOVE, "cat", 1, neuron_id=3)] = outcomes["cat"][Trial(RECONSTRUCT)]
    outcomes["cat"][Trial(REMOVE, "cat", 1, neuron_id=7)] = outcomes["cat"][Trial(RECONSTRUCT)]
    table = effects_of_single_neurons(outcomes).set_index("neuron_id")
    assert table.loc[7, ["steer_class", "steer_rank"]].tolist() == ["dog", 1]
    assert table.loc[7, "steer_effect"] == pytest.approx(0.2 - (0.7 + 0.3 + 0.3) / 3)
    assert table.loc[3, "steer_effect"] == 0


def long_table(values):
    """Rows of recall and probability: of keep and remove by class, size and draw."""
    rows = [
        {"action": action, "target": target, "k": k, "strength": None, "draw": draw, "class": name, "metric": metric}
        | {"value": value, "n_items": 10}
        for (action, target, k, draw, name), value in values.items()
        for metric in (RECALL, PROBABILITY)
    ]
    return pd.DataFrame(rows)


def make_table():
    values = {}
    for name, gain in (("a", 0.3), ("b", 0.0)):
        values |= {(action, "", 0, -1, name): 0.5 for action in (NO_SAE, RECONSTRUCT)}
        for k in (1, 5, 9):
            size = {1: 0.1, 5: 1.0, 9: 0.5}[k]
            for action, sign in ((KEEP, 1), (REMOVE, -1)):
                values[action, name, k, -1, name] = 0.5 + sign * gain * size
                for other in "ab":
                    values[action, UNION, k, -1, other] = 0.5
                other = "ab".replace(name, "")
                values[action, name, 5, -1, other] = 0.5
                values |= {(action, name, k, draw, name): 0.45 + draw * 0.01 for draw in range(11)}
    return long_table(values)


def test_the_size_is_the_smallest_whose_effect_exceeds_random_sets_nearly_most():
    assert choose_size(make_table()) == 5
    better = make_table()
    is_own = (better.action == REMOVE) & (better.target == "a") & (better.draw < 0)
    better.loc[is_own & (better.k == 9), "value"] = 0.04
    assert choose_size(better.query("k == 9 or k == 1")) == 9
    assert choose_size(better) == 5  # 9 neurons do 2 % more
    table = make_table()
    with pytest.raises(ValueError, match="beside random sets"):
        choose_size(table[table.draw < 0])


def test_an_effect_counts_where_it_lies_beyond_the_middle_of_random_sets():
    effects = summarize_effects(make_table(), 5).set_index("class")
    assert effects.loc["a", ["keep", "remove"]].tolist() == pytest.approx([0.8, 0.2])
    assert effects.loc["a", ["keep_low", "keep_high"]].tolist() == pytest.approx([0.4525, 0.5475])
    assert effects.loc["a", ["raised", "lowered"]].tolist() == [True, True]
    assert effects.loc["b", ["raised", "lowered"]].tolist() == [False, False]
    alone = summarize_effects(make_table().query("draw < 0"), 5)
    assert not alone[["raised", "lowered"]].any(axis=None)


def test_means_over_classes_by_size_with_the_band_of_random_sets():
    by_size = effects_by_size(make_table()).set_index(["target", "action", "k"])
    assert by_size.loc[("own", KEEP, 5), RECALL] == pytest.approx(0.65)
    assert by_size.loc[("own", KEEP, 5), ["low", "mean", "high"]].tolist() == pytest.approx([0.4525, 0.5, 0.5475])
    assert np.isnan(by_size.loc[(UNION, KEEP, 5), "mean"])


def test_the_published_layout_has_percent_and_no_other_rows():
    table = published_layout(make_table(), ["a", "b"], [1, 5, 9])
    assert table.index.tolist() == ["no_sae", "on_1", "off_1", "on_5", "off_5", "on_9", "off_9"]
    assert table.loc["on_5"].tolist() == pytest.approx([80, 50])
    assert table.loc["off_9"].tolist() == pytest.approx([35, 50])


def test_figures_are_drawn():
    table = make_table()
    doses = [
        {"action": "scale", "target": target, "k": 5, "strength": s, "draw": -1, "class": name}
        | {"metric": "target_share", "value": s / 4 if target == name else 0.1, "n_items": 10}
        for target in "ab"
        for name in "ab"
        for s in (0.0, 1.0, 2.0)
    ]
    figures = {
        "sizes": plot_sizes(effects_by_size(table), 0.5, 0.55),
        "effects": plot_effects(summarize_effects(table, 5), 5),
        "side_effects": plot_side_effects(table, 5),
        "doses": plot_doses(pd.DataFrame(doses)),
    }
    assert {name: len(figure.axes) for name, figure in figures.items()} == {
        "sizes": 2,
        "effects": 2,
        "side_effects": 3,
        "doses": 1,
    }
