"""Cases by their neurons: what is a case's label, and do its neurons tell it?"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from scipy.sparse import csr_matrix
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score, roc_auc_score
from sklearn.model_selection import StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MaxAbsScaler

from src.stores.case_matrix import CaseMatrix

_MAX_ITERATIONS = 5000


class TooFewCasesError(ValueError):
    """There are too few labelled cases to fit and test a classifier on."""


def label_cases(case_ids: Sequence[str], labels: Sequence[str | None]) -> dict[str, str | None]:
    """Returns the label of each case, in the order of their names: that of its items, None where these disagree.

    Args:
        case_ids: the case of each item.
        labels: the label of each item; items without a label say nothing.
    """
    known: dict[str, set[str]] = {case_id: set() for case_id in sorted(case_ids)}
    for case_id, label in zip(case_ids, labels, strict=True):
        if label is not None:
            known[case_id].add(label)
    return {case_id: next(iter(found)) if len(found) == 1 else None for case_id, found in known.items()}


def tabulate_cases(matrix: CaseMatrix) -> pd.DataFrame:
    """Returns a row a case: `case_id`, `label` (empty where its items disagree), `n_items`, `n_active_neurons`."""
    n_active = np.diff(matrix.values.indptr)
    columns = {"case_id": matrix.case_ids, "label": matrix.labels, "n_items": matrix.n_items}
    return pd.DataFrame(columns | {"n_active_neurons": n_active})


def classify_cases(
    matrix: csr_matrix, label_of_case: Mapping[str, str | None], n_folds: int, seed: int
) -> tuple[pd.DataFrame, dict[str, float]]:
    """Predicts the label of each case from its neurons, by folds of cases.

    Logistic regression (L2, C = 1) on neurons divided by their largest value, both fitted on the cases of the other
    folds. A case is one row, so that no patient is on both sides; folds are stratified by label.

    Args:
        matrix: [n_cases, n_latents], in the order of `label_of_case`.
        label_of_case: cases and their labels; those without one are left out.
        n_folds: at most so many; no more than the smallest class has cases.
        seed: of the folds.

    Returns:
        A row a case (`case_id`, `label`, `fold`, `predicted`, `prob_<class>`), and the numbers `cases/accuracy`,
        `cases/balanced_accuracy`, `cases/auroc` (one against the rest, averaged over classes), `cases/majority` (the
        share of the most common class) and `cases/n`.

    Raises:
        TooFewCasesError: when there are no two classes with two cases each.
    """
    labelled = [index for index, label in enumerate(label_of_case.values()) if label is not None]
    ids, all_labels = list(label_of_case), list(label_of_case.values())
    labels = np.array([str(all_labels[index]) for index in labelled])
    classes, counts = np.unique(labels, return_counts=True)
    if len(classes) < 2 or counts.min() < 2:
        found = ", ".join(f"{n} of {str(name)!r}" for name, n in zip(classes, counts, strict=True)) or "none"
        raise TooFewCasesError(
            f"Expected at least two classes of two labelled cases each, got {found}: summarize more of the split, e.g. "
            "latent_summary.split=train+val."
        )
    values = csr_matrix(matrix[labelled])
    probabilities, fold_of_case = np.empty((len(labels), len(classes))), np.empty(len(labels), np.int64)
    folds = StratifiedKFold(min(n_folds, int(counts.min())), shuffle=True, random_state=seed)
    for fold, (fitted, held_out) in enumerate(folds.split(labels, labels)):
        model = make_pipeline(MaxAbsScaler(), LogisticRegression(max_iter=_MAX_ITERATIONS))
        model.fit(values[fitted], labels[fitted])
        probabilities[held_out], fold_of_case[held_out] = model.predict_proba(values[held_out]), fold
    predicted = classes[probabilities.argmax(axis=1)]
    table = pd.DataFrame(
        {
            "case_id": [ids[index] for index in labelled],
            "label": labels,
            "fold": fold_of_case,
            "predicted": predicted,
            **{f"prob_{name}": probabilities[:, index] for index, name in enumerate(classes)},
        }
    )
    scores = probabilities[:, 1] if len(classes) == 2 else probabilities
    return table, {
        "cases/accuracy": float((predicted == labels).mean()),
        "cases/balanced_accuracy": float(balanced_accuracy_score(labels, predicted)),
        "cases/auroc": float(roc_auc_score(labels, scores, multi_class="ovr")),
        "cases/majority": float(counts.max() / counts.sum()),
        "cases/n": len(labels),
    }
