"""Edits the latents of a layer inside the running model, and measures what its classes do."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch

from src.analysis.class_statistics import rank_neurons_for_classes, read_class_statistics
from src.analysis.steering_figures import plot_doses, plot_effects, plot_side_effects, plot_sizes
from src.analysis.steering_metrics import (
    PROBABILITY,
    RECALL,
    Outcomes,
    choose_size,
    describe_outcomes,
    effects_by_size,
    effects_of_single_neurons,
    published_layout,
    summarize_effects,
    tabulate_confusions,
)
from src.analysis.steering_runs import SteeredModel
from src.analysis.steering_trials import (
    KEEP,
    NO_SAE,
    RECONSTRUCT,
    REMOVE,
    Neurons,
    Plan,
    describe_controls,
    parse_sizes,
    size_trials,
)
from src.data.fold import FoldData, open_fold
from src.files import write_atomically
from src.models.heads import Head
from src.models.saes.base import SAE
from src.models.zero_shot import half_of_classes
from src.report.page import Page
from src.runs.rundir import RunDir
from src.stores.neurons import join, read_neurons, write_neurons
from src.tasks.upstream_head import open_upstream_head
from src.tasks.upstream_sae import open_inference, open_upstream_sae

_LOGGER = logging.getLogger(__name__)
_WITHOUT_VALIDATION = 50  # neurons, where no validation items choose
_MANY = 20  # classes that a figure of every class by every class has room for


def missing_inputs(cfg: Any) -> list[str]:
    """Returns why the pipeline does not steer: its heads are those of images."""
    if cfg.dataset.get("images_dir") is None:
        return ["the pipeline steers image data sets; type task=steer steer.head=mil for a MIL model over slides"]
    return []


def run(cfg: Any, rundir: RunDir) -> dict[str, float]:
    """Writes `analysis/metrics.csv`, a row an edit, class and metric, and what is read from it.

    `effects.csv` has each class's recall and probability at the chosen size beside random sets, `sizes.csv` means over
    classes by size, `controls.csv` how well the sets match, `confusion.csv` what was predicted, `neurons.csv` the table
    of neurons with what removing the best ones does. The ranking is made on train items, the size is chosen on
    validation items (`validation.csv`), everything is scored on test items.

    Returns:
        `k_chosen`, `n_items`, mean recall over classes `test/recall_<edit>`, the same of random sets as
        `test/recall_<edit>_controls`, and how many classes lie beyond these, `test/n_raised` and `test/n_lowered`.

    Raises:
        ValueError: when the class names of ranking, head and labels do not match, a class has no items, something was
            fitted on held-out items, or the SAE is of other activations.
        FileNotFoundError: when something was not made yet.
    """
    steer = cfg.steer
    fold = open_fold(cfg).of_labelled()
    parts = "train+val+test"
    rundir.record(*fold.inputs(*(f"{what} {parts}" for what in ("split", "cases", "labels", "activations")), "classes"))
    fold.table.labelled("test")
    sae = open_upstream_sae(rundir, fold, "val+test")
    head = open_upstream_head(cfg, rundir, fold)
    neurons = _open_neurons(cfg, rundir, fold, sae)
    _check_head(head, neurons.classes)
    inference = open_inference(cfg, sae)
    model = SteeredModel(
        head.to(inference.device),
        sae,
        fold.store,
        inference,
        fold.split.train,
        steer.error_term == "kept",
        steer.added_constant,
        steer.batch_size,
        cfg.seed,
    )
    sizes = parse_sizes(list(steer.sizes), sae.n_latents)
    k = _choose_size(cfg, rundir, model, fold, neurons, sizes)
    sizes = sorted({*sizes, k})
    control_sizes = {"all": sizes, "chosen": [k]}[steer.control_sizes]
    options = (steer.n_controls, control_sizes, steer.n_single, steer.union, steer.side_effects, steer.doses, cfg.seed)
    plan = Plan(neurons, sizes, k, *options)
    outcomes = {name: model.run(plan.of_class(name), name, _items(fold, "test", name)) for name in neurons.classes}
    table = describe_outcomes(outcomes, head.classes)
    _write_csv(rundir, "metrics", table)
    _write_csv(rundir, "confusion", tabulate_confusions(outcomes, head.classes))
    controls = [row for of_class in outcomes.values() for row in describe_controls(neurons, of_class)]
    _write_csv(rundir, "controls", pd.DataFrame(controls))
    if steer.published_layout:
        with write_atomically(rundir.path / "analysis" / "published" / "metrics.csv") as temporary:
            published_layout(table, neurons.classes, plan.sizes).to_csv(temporary, index=False)
    _write_neurons(rundir, outcomes)
    return _write_page(cfg, rundir, table, neurons.classes, k)


def _items(fold: FoldData, part: str, name: str) -> list[str]:
    """Returns the items of a class; raises ValueError where there are none."""
    found = [item_id for item_id in fold.split.item_ids(part) if fold.items[item_id].label == name]
    if not found:
        raise ValueError(
            f"Expected items of class {name!r} in {part} of fold {fold.split.fold}, got none: give another fold"
            + (", or the number of neurons as steer.k_chosen." if part == "val" else ".")
        )
    return found


def _check_head(head: Head, classes: Sequence[str]) -> None:
    if head.is_multilabel:
        raise ValueError("Expected a head of classes that exclude each other, got one of several labels an item.")
    if unknown := [name for name in classes if name not in head.classes]:
        raise ValueError(
            f"Expected a head that knows the classes {list(classes)}, got one of {list(head.classes)}, without "
            f"{unknown}: give a head that was trained on these labels, or dataset.class_names as it calls them."
        )


def _open_neurons(cfg: Any, rundir: RunDir, fold: FoldData, sae: SAE) -> Neurons:
    """Returns rankings and means of train items."""
    summarized = rundir.trusted_upstream("summarize_latents", fold.fitted("val+test"))
    statistics = read_class_statistics(summarized.table("class_statistics").with_suffix(".npz"))
    if set(statistics.classes) != set(fold.classes) or statistics.means.shape[1] != sae.n_latents:
        raise ValueError(
            f"Expected statistics of {sae.n_latents} neurons for the classes {list(fold.classes)} in "
            f"{summarized.path}, got {statistics.means.shape[1]} for {list(statistics.classes)}: run "
            "task=summarize_latents again."
        )
    classes = half_of_classes(fold.classes, cfg.steer.classes)
    order = [statistics.classes.index(name) for name in classes]
    rankings = rank_neurons_for_classes(statistics, cfg.steer.rule)[order]
    table = read_neurons(summarized.path / "analysis").sort_values("neuron_id")
    means = torch.from_numpy(table["mean"].to_numpy(np.float32, copy=True))
    return Neurons(classes, rankings, statistics.means[order], means, cfg.steer.replace)


def _choose_size(
    cfg: Any, rundir: RunDir, model: SteeredModel, fold: FoldData, neurons: Neurons, sizes: Sequence[int]
) -> int:
    """Returns `steer.k_chosen`, or the size that `choose_size` takes on validation items."""
    steer = cfg.steer
    if steer.k_chosen is not None:
        if not 0 <= steer.k_chosen <= neurons.n_latents:
            raise ValueError(f"Expected steer.k_chosen within 0:{neurons.n_latents}, got {steer.k_chosen}.")
        return int(steer.k_chosen)
    if not fold.split.val:
        k = min(sizes, key=lambda size: abs(size - _WITHOUT_VALIDATION))
        _LOGGER.warning("Fold %s has no validation items to choose by: k = %d. Give steer.k_chosen.", cfg.fold, k)
        return k
    outcomes: dict[str, Outcomes] = {}
    for name in neurons.classes:
        trials = list(size_trials(neurons, name, sizes, steer.n_controls_val, cfg.seed + 1))
        outcomes[name] = model.run(trials, name, _items(fold, "val", name))
    table = describe_outcomes(outcomes, model.head.classes)
    _write_csv(rundir, "validation", table)
    k = choose_size(table)
    _LOGGER.info("k = %d neurons a class, chosen on %d validation items.", k, len(fold.split.val))
    return k


def _write_neurons(rundir: RunDir, outcomes: Mapping[str, Outcomes]) -> None:
    """Joins to the table of neurons what removing each of the best ones alone does to the class it is best for."""
    table = read_neurons(rundir.upstream("summarize_latents").path / "analysis")
    write_neurons(rundir.path / "analysis", join(table, effects_of_single_neurons(outcomes)))


def _write_csv(rundir: RunDir, name: str, table: pd.DataFrame) -> None:
    with write_atomically(rundir.table(name)) as temporary:
        table.to_csv(temporary, index=False)


def _write_page(cfg: Any, rundir: RunDir, table: pd.DataFrame, classes: Sequence[str], k: int) -> dict[str, float]:
    steer = cfg.steer
    by_metric = {metric: summarize_effects(table, k, metric) for metric in (RECALL, PROBABILITY)}
    effects: Any = by_metric[RECALL]
    by_size: Any = effects_by_size(table)
    both = pd.concat([one.assign(metric=metric) for metric, one in by_metric.items()])
    rundir.add_table("effects", both, f"What {k} neurons of each class do to its own test items.", len(both))
    rundir.add_table("sizes", by_size, "Recall by the number of neurons, means over classes.", len(by_size))
    plain = effects[[NO_SAE, RECONSTRUCT]].mean()
    band = "; grey: the middle 95 % of random sets of as many neurons with as much activation on the class"
    figure = plot_sizes(by_size, plain[RECONSTRUCT], plain[NO_SAE])
    rundir.add_figure("sizes", figure, f"Recall on test items, mean over {len(classes)} classes{band}.")
    rundir.add_figure("effects", plot_effects(effects, k), f"Each class by itself{band}.")
    if steer.side_effects and len(classes) <= _MANY:
        caption = "How the neurons of one class change the recall of all."
        rundir.add_figure("side_effects", plot_side_effects(table, k), caption)
    if any(steer.doses.values()):
        caption = (
            f"Share of test items predicted as a class over the strength of its {k} neurons; thin: single classes."
        )
        rundir.add_figure("doses", plot_doses(table), caption)
    results = {"k_chosen": k, "n_items": int(effects["n_items"].sum())}
    results |= {f"test/recall_{name}": float(effects[name].mean()) for name in (NO_SAE, RECONSTRUCT, KEEP, REMOVE)}
    if steer.n_controls:
        at_k = by_size[(by_size["target"] == "own") & (by_size["k"] == k)].set_index("action")
        results |= {f"test/recall_{name}_controls": float(at_k.loc[name, "mean"]) for name in (KEEP, REMOVE)}
        results |= {f"test/n_{name}": int(effects[name].sum()) for name in ("raised", "lowered")}
    gone = {"mean": "its train mean", "zero": "zero", "resample": "that of another train item"}[steer.replace]
    chosen = "was given" if steer.k_chosen is not None else "was chosen on validation items"
    text = (
        f"The {k} neurons that rank best for a class on train items ({steer.rule}) are kept alone, or removed, on the "
        f"test items; k {chosen}. A latent that is taken away becomes {gone}; the reconstruction error is "
        f"{steer.error_term}. A class counts as raised or lowered where its recall lies beyond the middle 95 % of "
        f"{steer.n_controls} random sets."
    )
    numbers = {key: value for key, value in results.items() if key.startswith("test/")}
    rundir.write_page(Page("Steering", [text], numbers))
    return results
