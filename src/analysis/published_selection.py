"""The table of a published selection, in its own columns."""

import numpy as np
import pandas as pd

from src.analysis.stratified import Stratum, stratified_t

SAE1N_CSV = "sae_analysis_t_test"


def tabulate_sae1n(maxima: np.ndarray, is_positive: np.ndarray, positive: str, negative: str) -> pd.DataFrame:
    """Returns the table that sae-1n (tamukei, PSB 2026; `analyze_sae.py`) picks its neurons from.

    Welch's test of every neuron's maxima over slides, two-sided and uncorrected, sorted by p, then falling t, then id;
    neurons that are constant are last, without a test. Numbers are rounded to float32, in which the original computes.

    Args:
        maxima: [n_slides, n_neurons].
        is_positive: [n_slides] bool.
        positive: the name of that class.
        negative: the name of the other.
    """
    strata = [Stratum(np.flatnonzero(is_positive), np.flatnonzero(~is_positive))]
    statistic, p_value = stratified_t(maxima, strata, equal_variances=False, alternative="two-sided")
    table = pd.DataFrame(
        {
            "unit_id": np.arange(maxima.shape[1]),
            "t_statistic": statistic.astype(np.float32),
            "p_value": p_value.astype(np.float32),
            f"{positive}_mean_activation": maxima[is_positive].mean(axis=0, dtype=np.float64).astype(np.float32),
            f"{negative}_mean_activation": maxima[~is_positive].mean(axis=0, dtype=np.float64).astype(np.float32),
        }
    )
    return table.sort_values(["p_value", "t_statistic", "unit_id"], ascending=[True, False, True], ignore_index=True)
