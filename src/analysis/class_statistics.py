"""How neurons differ between classes: means and counts by class, and the rankings made of them."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from src.files import write_atomically

RULES = ("contrast", "count", "mean_abs")


@dataclass(frozen=True)
class ClassStatistics:
    """Means and counts of every neuron by class.

    Attributes:
        classes: the class names.
        n_items: [n_classes] int64, the items of each class.
        means: [n_classes, n_latents] float64, the mean over a class's items of the item's mean over its rows, zeros
            included, so that items of many rows count no more than others; NaN for a class without items.
        counts: [n_classes, n_latents] int64, the items of a class with at least one row above the threshold; the
            recipes `patchsae` and `cytosae` count the rows.
    """

    classes: tuple[str, ...]
    n_items: np.ndarray
    means: np.ndarray
    counts: np.ndarray


def rank_neurons_for_classes(statistics: ClassStatistics, rule: str = "contrast") -> np.ndarray:
    """Ranks all neurons for every class, best first; ties by the smaller neuron id.

    Args:
        statistics: of items that the ranking is not scored on.
        rule: `contrast`: the mean in the class minus the mean over the items of all others (ours). `count`: the count
            of the class, the published ranking of PatchSAE (H. Lim et al., arXiv 2412.05276), which there counts rows
            above 0.2. `mean_abs`: the absolute mean over the class's items (Mammo-SAE: K. Nakka, arXiv 2507.15227).

    Returns:
        Neuron ids [n_classes, n_latents] int64.

    Raises:
        ValueError: when the rule is unknown, a class has no items, or there is no second class to contrast with.
    """
    return np.argsort(-class_scores(statistics, rule), axis=1, kind="stable")


def class_scores(statistics: ClassStatistics, rule: str = "contrast") -> np.ndarray:
    """Returns what `rank_neurons_for_classes` sorts by, larger is better: [n_classes, n_latents] float64.

    Raises:
        ValueError: as `rank_neurons_for_classes`.
    """
    scores: dict[str, Callable[[ClassStatistics], np.ndarray]] = {
        "contrast": _contrast,
        "count": lambda one: one.counts.astype(np.float64),
        "mean_abs": lambda one: np.abs(one.means),
    }
    if rule not in scores:
        raise ValueError(f"Expected a rule among {', '.join(RULES)}, got {rule!r}.")
    if empty := [name for name, n in zip(statistics.classes, statistics.n_items, strict=True) if not n]:
        raise ValueError(
            f"Expected items of every class to rank neurons by, got none of {', '.join(map(repr, empty))}: summarize "
            "a part of the split that has some, or name the classes that there are with dataset.class_names."
        )
    return scores[rule](statistics)


def _contrast(statistics: ClassStatistics) -> np.ndarray:
    if len(statistics.classes) < 2:
        raise ValueError(f"Expected at least two classes to contrast, got {list(statistics.classes)}: use mean_abs.")
    n_items = statistics.n_items[:, None].astype(np.float64)
    sums = statistics.means * n_items
    # Of the others the sums are added up: the total minus the class's own would leave rounding errors where all are 0.
    others = [np.delete(sums, one, axis=0).sum(axis=0) for one in range(len(sums))]
    return statistics.means - np.stack(others) / (n_items.sum() - n_items)


def write_class_statistics(path: str | Path, statistics: ClassStatistics) -> None:
    """Writes statistics as one npz with the names of the fields."""
    with write_atomically(path) as temporary, open(temporary, "wb") as file:
        np.savez(
            file,
            classes=np.array(statistics.classes, dtype=str),
            n_items=statistics.n_items,
            means=statistics.means,
            counts=statistics.counts,
        )


def read_class_statistics(path: str | Path) -> ClassStatistics:
    """Reads what `write_class_statistics` wrote.

    Raises:
        FileNotFoundError: when there is no such file: task=summarize_latents found no labels, or did not run.
        ValueError: when the file holds something else.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"Expected statistics of neurons by class at {path}, found none: give dataset.target=<label column>, and "
            "run task=summarize_latents overwrite=true."
        )
    try:
        with np.load(path) as arrays:
            classes = tuple(arrays["classes"].tolist())
            found = ClassStatistics(classes, arrays["n_items"], arrays["means"], arrays["counts"])
    except (OSError, ValueError, KeyError, EOFError) as error:
        raise ValueError(
            f"Expected statistics of neurons by class in {path}, got {error}. Run task=summarize_latents again with "
            "overwrite=true."
        ) from error
    if not len(found.classes) == len(found.n_items) == len(found.means) == len(found.counts):
        raise ValueError(
            f"Expected a row a class in {path}, got {len(found.classes)} classes and means of shape "
            f"{found.means.shape}. Run task=summarize_latents again with overwrite=true."
        )
    return found
