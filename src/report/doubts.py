"""What a reader must know before believing an SAE's numbers: found in the results of runs, by one rule."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

_LOGGER = logging.getLogger(__name__)
_MOST_L0_OVER_K = 1.5
_MOST_SD_RATIO = 100.0
SD_RATIO_KEY = "train/largest_sd_over_median"
"""Result of `train_sae`: the largest deviation of a feature over the median one, where features are as on disk."""


def describe_doubts(results: Sequence[tuple[int | str | None, Mapping[str, float]]], k: float | None) -> list[str]:
    """Returns warnings about explained variance, L0 and unequal features: a sentence a kind and part of the split.

    Args:
        results: fold and results of runs of train_sae, encode and evaluate_sae. Keys of train slides are left out.
        k: the L0 that the SAE was trained for; None where it has none.
    """
    found: dict[tuple[str, str], dict[int | str | None, float]] = {}
    for fold, numbers in results:
        for key, value in numbers.items():
            part, _, name = key.rpartition("/")
            is_held_out = bool(part) and "train" not in part
            if (
                (is_held_out and name == "explained_variance" and value < 0)
                or (is_held_out and name == "l0" and k is not None and value > _MOST_L0_OVER_K * k)
                or (key == SD_RATIO_KEY and value > _MOST_SD_RATIO)
            ):
                found.setdefault((name, part), {})[fold] = value
    return [_describe(name, part, by_fold, k) for (name, part), by_fold in sorted(found.items())]


def warn_of_doubts(cfg: Any, results: Mapping[str, float]) -> list[str]:
    """Logs and returns the warnings about the results of one run of train_sae, encode or evaluate_sae."""
    doubts = describe_doubts([(None, results)], expected_l0(cfg))
    for doubt in doubts:
        _LOGGER.warning("%s", doubt)
    return doubts


def expected_l0(cfg: Any) -> float | None:
    """Returns the L0 that a configuration's SAE is trained for; None where it has none, or was trained elsewhere."""
    if cfg.get("sae_run") is not None:
        return None
    return cfg.get("train", {}).get("calibrate_l0") or cfg.sae.get("k") or cfg.sae.get("target_l0")


def _describe(name: str, part: str, by_fold: Mapping[int | str | None, float], k: float | None) -> str:
    folds = sorted(fold for fold in by_fold if fold is not None)
    where = f" (fold{'s' * (len(folds) > 1)} {', '.join(map(str, folds))})" if folds else ""
    if name == "explained_variance":
        return (
            f"Explained variance on {part} items is down to {min(by_fold.values()):.3g}{where}: the mean activation "
            "reconstructs them better than the SAE does. Look for rows far from those of the train items, and at "
            "dataset.standardize."
        )
    if name == "l0":
        return (
            f"L0 on {part} items is up to {max(by_fold.values()):.4g}{where}, more than {_MOST_L0_OVER_K:g} times the "
            f"k={k:g} that the SAE was trained for: they are unlike the train items, or the SAE overfits few of them."
        )
    return (
        f"The widest feature's deviation is {max(by_fold.values()):.3g} times the median one{where}: it decides what "
        "the SAE learns. Try dataset.standardize=true."
    )
