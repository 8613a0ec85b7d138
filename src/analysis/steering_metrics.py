"""What edits of latents do to predictions: by class, over all classes, and beside random sets of neurons."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from sklearn.metrics import average_precision_score, precision_recall_fscore_support, roc_auc_score

from src.analysis.steering_trials import KEEP, NO_SAE, RECONSTRUCT, REMOVE, UNION, Trial

RECALL, PROBABILITY, TARGET_SHARE, TARGET_PROBABILITY = "recall", "probability", "target_share", "target_probability"
_INTERVAL = (0.025, 0.975)
_ENOUGH = 0.95
_TRIAL = ("action", "target", "k", "strength", "draw")


@dataclass(frozen=True)
class Outcome:
    """What a head says of the items of one class under one edit.

    Attributes:
        predicted: [n_items] index of the class with the largest logit.
        own: [n_items] probability of the items' own class.
        target: [n_items] probability of the class whose neurons are edited; None where there is no such class.
        probabilities: [n_items, n_classes], kept where they are scored over all classes; None else.
    """

    predicted: np.ndarray
    own: np.ndarray
    target: np.ndarray | None
    probabilities: np.ndarray | None


Outcomes = Mapping[Trial, Outcome]
"""What a head says of the items of one class, by edit."""


def describe_outcomes(by_class: Mapping[str, Outcomes], classes: Sequence[str]) -> pd.DataFrame:
    """Returns the long table: a row an edit, class of items and metric.

    Of each class's items: `recall`, and `probability` (the median) of their own class; of the class whose neurons are
    edited `target_share` (the share of the items that are predicted as it) and `target_probability` (the median). Of
    edits that the items of all classes were given: `accuracy` (class `all`), by class `precision` and `f1`, and `auroc`
    and `auprc` against the rest of every class, where one class's neurons were edited of that class.

    Args:
        by_class: outcomes by the class of the items.
        classes: those of the head.

    Returns:
        Columns `action, target, k, strength, draw, class, metric, value, n_items`.
    """
    rows: list[dict[str, Any]] = []
    for name, outcomes in by_class.items():
        for trial, outcome in outcomes.items():
            if trial.neuron_id < 0:
                rows += _of_class(trial, name, classes, outcome)
    for trial, outcomes in _of_all_classes(by_class):
        rows += _over_classes(trial, outcomes, classes)
    return pd.DataFrame(rows)


def tabulate_confusions(by_class: Mapping[str, Outcomes], classes: Sequence[str]) -> pd.DataFrame:
    """Returns how many items of a class (`class`) were predicted as which (`predicted`), for edits of all items."""
    rows = []
    for trial, outcomes in _of_all_classes(by_class):
        for name, outcome in outcomes.items():
            for number, n_items in enumerate(np.bincount(outcome.predicted, minlength=len(classes)).tolist()):
                rows.append({**_of_trial(trial), "class": name, "predicted": classes[number], "n_items": n_items})
    return pd.DataFrame(rows)


def effects_of_single_neurons(by_class: Mapping[str, Outcomes]) -> pd.DataFrame:
    """Returns what removing single neurons does to the class that they are among the best for.

    Returns:
        `neuron_id`, `steer_class`, `steer_rank` (from 1) and `steer_effect`: the mean change of the probability of the
        class over its items. A neuron that is among the best of several classes stands with the one it is best for.
    """
    rows = []
    for name, outcomes in by_class.items():
        plain = next(outcome for trial, outcome in outcomes.items() if trial.action == RECONSTRUCT)
        singles = ((trial.neuron_id, outcome) for trial, outcome in outcomes.items() if trial.neuron_id >= 0)
        for rank, (neuron_id, outcome) in enumerate(singles, start=1):
            rows.append((neuron_id, name, rank, float(np.mean(outcome.own - plain.own))))
    found = pd.DataFrame(rows, columns=["neuron_id", "steer_class", "steer_rank", "steer_effect"])
    return found.sort_values("steer_rank", kind="stable").drop_duplicates("neuron_id")


def _of_all_classes(by_class: Mapping[str, Outcomes]) -> Iterator[tuple[Trial, dict[str, Outcome]]]:
    """Yields the edits that the items of every class were given, with outcomes by class."""
    for trial in dict.fromkeys(trial for outcomes in by_class.values() for trial in outcomes):
        if trial.neuron_id < 0 and all(trial in outcomes for outcomes in by_class.values()):
            yield trial, {name: outcomes[trial] for name, outcomes in by_class.items()}


def _of_class(trial: Trial, name: str, classes: Sequence[str], outcome: Outcome) -> list[dict[str, Any]]:
    values = {RECALL: np.mean(outcome.predicted == classes.index(name)), PROBABILITY: np.median(outcome.own)}
    if outcome.target is not None:
        values[TARGET_SHARE] = np.mean(outcome.predicted == classes.index(trial.target))
        values[TARGET_PROBABILITY] = np.median(outcome.target)
    n_items = len(outcome.predicted)
    return [_row(trial, name, metric, float(value), n_items) for metric, value in values.items()]


def _over_classes(trial: Trial, by_class: Mapping[str, Outcome], classes: Sequence[str]) -> list[dict[str, Any]]:
    sizes = [len(outcome.predicted) for outcome in by_class.values()]
    labels = np.repeat([classes.index(name) for name in by_class], sizes)
    predicted = np.concatenate([outcome.predicted for outcome in by_class.values()])
    rows = [_row(trial, "all", "accuracy", float(np.mean(predicted == labels)), len(labels))]
    numbers = [classes.index(name) for name in by_class]
    never: Any = 0.0  # of a class that is never predicted
    scores: Any = precision_recall_fscore_support(labels, predicted, labels=numbers, zero_division=never)
    for name, precision, f1, n_items in zip(by_class, scores[0], scores[2], sizes, strict=True):
        rows += [_row(trial, name, "precision", precision, n_items), _row(trial, name, "f1", f1, n_items)]
        values = [_scores_of(outcome, trial, name, classes) for outcome in by_class.values()]
        known = [value for value in values if value is not None]
        if len(by_class) > 1 and len(known) == len(values):
            is_class, joined = labels == classes.index(name), np.concatenate(known)
            rows.append(_row(trial, name, "auroc", float(roc_auc_score(is_class, joined)), n_items))
            rows.append(_row(trial, name, "auprc", float(average_precision_score(is_class, joined)), n_items))
    return rows


def _scores_of(outcome: Outcome, trial: Trial, name: str, classes: Sequence[str]) -> np.ndarray | None:
    if outcome.probabilities is not None:
        return outcome.probabilities[:, classes.index(name)]
    return outcome.target if trial.target == name else None


def choose_size(table: pd.DataFrame) -> int:
    """Returns the number of neurons whose effect exceeds that of random sets most, on validation items.

    The effect is the mean over classes of the own class's probability (median over its items): how far it is above the
    random sets' mean when only the neurons are kept, plus how far below when they are removed. Recall would do for many
    items; probabilities also tell sizes apart where a class has few. Effects flatten out, so the smallest size is taken
    that has 95 % of the largest excess.

    Args:
        table: of `describe_outcomes`, random sets among them.

    Raises:
        ValueError: when there are no random sets, or no sizes.
    """
    rows: Any = table[(table["metric"] == PROBABILITY) & table["action"].isin([KEEP, REMOVE])]
    own = rows[rows["class"] == rows["target"]]
    effect = own[own["draw"] < 0].groupby(["action", "k"])["value"].mean()
    chance = own[own["draw"] >= 0].groupby(["action", "k"])["value"].mean()
    gain = effect - chance
    if not len(gain) or gain.isna().any():
        raise ValueError("Expected every size beside random sets to choose by, got some without: set steer.n_controls.")
    total = (gain.loc[KEEP] - gain.loc[REMOVE]).sort_index()
    return int(total.index[total >= total.max() - (1 - _ENOUGH) * abs(total.max())][0])


def summarize_effects(table: pd.DataFrame, k: int, metric: str = RECALL) -> pd.DataFrame:
    """Returns what k neurons of each class do to its own items, beside the random sets.

    Args:
        table: of `describe_outcomes`.
        k: the number of neurons.
        metric: `recall` or `probability`.

    Returns:
        A row a class: `class, n_items, no_sae, reconstruct, keep, keep_low, keep_high, raised, remove, remove_low,
        remove_high, lowered`; low and high bound the middle 95 % of the random sets, and an effect is `raised` or
        `lowered` where it lies beyond. Without random sets the bounds are NaN and nothing is beyond.
    """
    of_metric: Any = table[table["metric"] == metric]
    rows = []
    for name, of_class in of_metric.groupby("class", sort=False):
        plain = of_class.set_index("action")["value"]
        row: dict[str, Any] = {"class": name, "n_items": int(of_class["n_items"].iloc[0])}
        row |= {action: float(plain[action]) for action in (NO_SAE, RECONSTRUCT)}
        own = of_class[(of_class["target"] == name) & (of_class["k"] == k)]
        for action, sign, verdict in ((KEEP, 1, "raised"), (REMOVE, -1, "lowered")):
            values = own[own["action"] == action]
            row[action] = float(values.loc[values["draw"] < 0, "value"].iloc[0])
            drawn = values.loc[values["draw"] >= 0, "value"]
            row[f"{action}_low"], row[f"{action}_high"] = (float(drawn.quantile(level)) for level in _INTERVAL)
            bound = row[f"{action}_high"] if sign > 0 else row[f"{action}_low"]
            row[verdict] = sign * (row[action] - bound) > 0
        rows.append(row)
    return pd.DataFrame(rows)


def effects_by_size(table: pd.DataFrame) -> pd.DataFrame:
    """Returns recall over the number of neurons, as means over classes.

    Returns:
        Rows of `target` (`own` class or `union`), `action`, `k`, `recall`, and of random sets `low`, `mean` and `high`
        of their means over classes.
    """
    rows: Any = table[(table["metric"] == RECALL) & table["action"].isin([KEEP, REMOVE])]
    found = []
    for target in ("own", UNION):
        used = rows[rows["target"] == UNION] if target == UNION else rows[rows["target"] == rows["class"]]
        for (action, k), values in used.groupby(["action", "k"], sort=True):
            means = values.groupby("draw")["value"].mean()
            drawn = means[means.index >= 0]
            low, high = (float(drawn.quantile(level)) for level in _INTERVAL)
            row = {"target": target, "action": action, "k": k, RECALL: float(means.loc[-1])}
            found.append({**row, "low": low, "mean": float(drawn.mean()), "high": high})
    return pd.DataFrame(found)


def published_layout(table: pd.DataFrame, classes: Sequence[str], sizes: Sequence[int]) -> pd.DataFrame:
    """Returns recall in percent as PatchSAE's `metrics.csv` has it: rows no_sae, on_k and off_k, columns classes.

    Args:
        table: of `describe_outcomes`.
        classes: the columns.
        sizes: numbers of neurons, in the order of the rows.
    """
    recall: Any = table[(table["metric"] == RECALL) & (table["draw"] < 0)]
    own = recall[(recall["target"] == recall["class"]) | (recall["action"] == NO_SAE)]
    values = own.set_index(["action", "k", "class"])["value"]
    rows = {NO_SAE: (NO_SAE, 0)}
    for k in sizes:
        rows |= {f"on_{k}": (KEEP, k), f"off_{k}": (REMOVE, k)}
    cells = [[100 * float(values[(*row, name)]) for name in classes] for row in rows.values()]
    return pd.DataFrame(cells, index=list(rows), columns=list(classes))


def _row(trial: Trial, name: str, metric: str, value: float, n_items: int) -> dict[str, Any]:
    return {**_of_trial(trial), "class": name, "metric": metric, "value": value, "n_items": n_items}


def _of_trial(trial: Trial) -> dict[str, Any]:
    return {name: getattr(trial, name) for name in _TRIAL}
