"""How well predictions of classes, exclusive or not, fit what is known."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from sklearn.metrics import confusion_matrix

from src.analysis.slide_metrics import METRICS, ranking_areas

NAMES = (*METRICS, "f1")
OUTCOMES = ("true positive", "false negative", "false positive", "true negative")


def score_classes(
    probabilities: np.ndarray, targets: np.ndarray, classes: Sequence[str], is_multilabel: bool = False
) -> pd.DataFrame:
    """Scores each class against the rest.

    Args:
        probabilities: [n_items, n_classes].
        targets: [n_items] int; or [n_items, n_classes], 1, 0 or NaN where nobody knows.
        classes: their names.
        is_multilabel: whether a class is predicted where it is the most probable, or where its probability is at least
            0.5.

    Returns:
        A row a class: class, n_items (known), n_positive, recall, precision, f1, auroc, average_precision, accuracy and
        balanced_accuracy; NaN where the items do not define it. Precision is 0 where nothing is predicted, as in
        scikit-learn.
    """
    rows = []
    for index, name in enumerate(classes):
        known = np.ones(len(targets), bool) if targets.ndim == 1 else ~np.isnan(targets[:, index])
        is_member = (targets == index) if targets.ndim == 1 else targets[known, index] > 0
        of_class = probabilities[known]
        is_called = of_class[:, index] >= 0.5 if is_multilabel else of_class.argmax(1) == index
        n_positive, n_called = int(is_member.sum()), int(is_called.sum())
        hits, n_others = int((is_member & is_called).sum()), int((~is_member).sum())
        recall, specificity = _share(hits, n_positive), _share(int((~is_member & ~is_called).sum()), n_others)
        areas = ranking_areas(of_class[:, index], is_member, np.ones((1, len(is_member)))) if len(is_member) else ()
        auroc, average_precision = (float(area[0]) for area in areas) if areas else (np.nan, np.nan)
        rows.append(
            {
                "class": name,
                "n_items": len(is_member),
                "n_positive": n_positive,
                "recall": recall,
                "precision": hits / n_called if n_called else 0.0,
                "f1": _share(2 * hits, n_called + n_positive),
                "auroc": auroc,
                "average_precision": average_precision,
                "accuracy": float((is_member == is_called).mean()) if len(is_member) else np.nan,
                "balanced_accuracy": (recall + specificity) / 2,
            }
        )
    return pd.DataFrame(rows)


def score_overall(
    probabilities: np.ndarray, targets: np.ndarray, classes: Sequence[str], is_multilabel: bool = False
) -> dict[str, float]:
    """Returns accuracy, AUROC, average precision, balanced accuracy and F1 over all classes.

    Of two exclusive classes AUROC, average precision and F1 are those of the last, the positive one; of more, the means
    over classes; of labels all are means over the labels that define them. See `score_classes` for the arguments.
    """
    table: Any = score_classes(probabilities, targets, classes, is_multilabel)
    if is_multilabel:
        return {name: float(table[name].mean()) for name in NAMES}
    once = np.ones((1, len(targets)))
    scores = {name: float(metric(probabilities, targets, once)[0]) for name, metric in METRICS.items()}
    f1 = table["f1"].to_numpy()
    return scores | {"f1": float(f1[-1] if len(classes) == 2 else np.nanmean(f1) if len(targets) else np.nan)}


def count_confusions(
    probabilities: np.ndarray, targets: np.ndarray, classes: Sequence[str], is_multilabel: bool = False
) -> pd.DataFrame:
    """Counts what was predicted for items of each class; see `score_classes` for the arguments.

    Returns:
        Rows: classes. Columns: the predicted classes; of labels the four outcomes `OUTCOMES`.
    """
    if not is_multilabel:
        counts = confusion_matrix(targets, probabilities.argmax(1), labels=np.arange(len(classes)))
        return pd.DataFrame(counts, index=list(classes), columns=list(classes))
    is_called = probabilities >= 0.5
    outcomes = [(targets == 1) & is_called, (targets == 1) & ~is_called]
    outcomes += [(targets == 0) & is_called, (targets == 0) & ~is_called]
    columns: Mapping[str, np.ndarray] = dict(zip(OUTCOMES, (one.sum(0) for one in outcomes), strict=True))
    return pd.DataFrame(columns, index=list(classes))


def _share(part: int, whole: int) -> float:
    return part / whole if whole else float("nan")
