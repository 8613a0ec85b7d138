"""Compares slide classifiers pair by pair on the same folds and slides."""

from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from src.analysis.cross_validation import DRAWS, fold_metrics, interval, pooled_resamples, share_tested
from src.analysis.delong import delong
from src.analysis.slide_metrics import METRICS
from src.analysis.statistics import benjamini_hochberg


def compare_methods(
    predictions: pd.DataFrame,
    n_bootstrap: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
    n_train: list[int] | None = None,
) -> pd.DataFrame:
    """Tests for every pair of methods and every metric whether they differ.

    Three tests, because each answers another question. Over folds: `corrected_t_test`. Over slides: the bootstrap of
    cases of `pooled_resamples`, the same resamples for both methods. For AUROC of two classes also DeLong's test, cases
    as clusters, on each slide's mean probability over all folds, repeats and seeds that test it.

    Args:
        predictions: as for `fold_metrics`; a pair is compared on the folds that both have.
        n_bootstrap: number of resamples of cases.
        confidence: of the intervals.
        seed: of the resamples.
        n_train: as for `summarize`.

    Returns:
        metric, method, other, difference (the first less the second, mean over folds), fold_low, fold_high, p_folds,
        pooled_difference, slide_low, slide_high, p_slides, p_delong, and of each p the q of Benjamini and Hochberg
        over the pairs of the metric: q_folds, q_slides, q_delong.
    """
    share = share_tested(predictions, n_train)
    keys = ["fold", *(key for key in DRAWS if key in predictions)]
    by_fold = fold_metrics(predictions).set_index(["method", *keys]).sort_index()
    parts = {str(method): part for method, part in predictions.groupby("method", sort=False)}
    resampled = {method: pooled_resamples(part, n_bootstrap, seed) for method, part in parts.items()}
    rows = []
    for name in METRICS:
        for one, other in combinations(parts, 2):
            differences: Any = (by_fold.loc[one, name] - by_fold.loc[other, name]).dropna()
            p_folds, (low, high) = corrected_t_test(differences.to_numpy(float), share, confidence)
            row = {"metric": name, "method": one, "other": other, "difference": differences.mean()}
            row |= {"fold_low": low, "fold_high": high, "p_folds": p_folds}
            (point, values), (other_point, other_values) = resampled[one][name], resampled[other][name]
            slide_low, slide_high = interval(values - other_values, confidence)
            row |= {"pooled_difference": point - other_point, "slide_low": slide_low, "slide_high": slide_high}
            row |= {"p_slides": bootstrap_p(values - other_values), "p_delong": np.nan}
            if name == "auroc":
                row["p_delong"] = _delong_p(parts[one], parts[other])
            rows.append(row)
    table = pd.DataFrame(rows)
    for test in ("folds", "slides", "delong") if len(table) else ():
        p_values = table.groupby("metric", sort=False)[f"p_{test}"]
        table[f"q_{test}"] = p_values.transform(lambda column: benjamini_hochberg(column.to_numpy(float)))
    return table


def corrected_t_test(
    differences: np.ndarray, test_share: float, confidence: float = 0.95
) -> tuple[float, tuple[float, float]]:
    """Tests whether the mean difference of two methods over folds is zero; two-sided.

    The corrected resampled t test: `t = mean / (sd sqrt(1 / n + test_share))` with n - 1 degrees of freedom, sd of
    ddof 1 (Nadeau and Bengio, "Inference for the generalization error", Machine Learning 52, 2003, section 4). Over
    repeated cross-validation n counts all folds of all repeats (R. R. Bouckaert and E. Frank, "Evaluating the
    replicability of significance tests for comparing learning algorithms", PAKDD 2004, section 3.3). Equal differences
    that are not zero say nothing of the spread: p is NaN.

    Args:
        differences: of a metric, [n_folds].
        test_share: test slides per slide that was trained on.
        confidence: of the interval.

    Returns:
        p, and the interval of the mean difference; NaN for fewer than two folds.
    """
    if len(differences) < 2:
        return np.nan, (np.nan, np.nan)
    mean, n = float(differences.mean()), len(differences)
    error = float(differences.std(ddof=1)) * np.sqrt(1 / n + test_share)
    if error == 0:
        return (1.0 if mean == 0 else np.nan), (mean, mean)
    reach = stats.t.ppf((1 + confidence) / 2, n - 1) * error
    return float(2 * stats.t.sf(abs(mean) / error, n - 1)), (mean - reach, mean + reach)


def bootstrap_p(differences: np.ndarray) -> float:
    """Returns the two-sided p of resampled differences: twice the smaller share on one side of zero.

    Counted with the observed sample itself, as A. C. Davison and D. V. Hinkley, "Bootstrap methods and their
    application", 1997, section 4.2, so that it is never 0; at most 1. NaN are left out; NaN when all are.

    Args:
        differences: [n_resamples].
    """
    defined = differences[~np.isnan(differences)]
    if not len(defined):
        return np.nan
    smaller = min(np.sum(defined <= 0), np.sum(defined >= 0))
    return float(min(2 * (smaller + 1) / (len(defined) + 1), 1.0))


def _delong_p(first: pd.DataFrame, second: pd.DataFrame) -> float:
    classes = [column for column in first.columns if column.startswith("prob_")]
    if len(classes) != 2:
        return np.nan
    scores: list[Any] = [part.groupby("item_id")[classes[1]].mean() for part in (first, second)]
    known: Any = first.drop_duplicates("item_id").set_index("item_id")
    known = known.loc[scores[0].index.intersection(scores[1].index)]
    is_positive = (known["label"] == classes[1].removeprefix("prob_")).to_numpy()
    by_kind = known["case_id"].groupby(is_positive).nunique()
    if len(by_kind) < 2 or by_kind.min() < 2:
        return np.nan  # the variance is not known
    both = np.stack([score.loc[known.index] for score in scores])
    return delong(both, is_positive, pd.factorize(known["case_id"])[0]).difference(0, 1)[2]
