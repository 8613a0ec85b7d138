"""Summarises how neurons fire over items, classes and cases, in one pass over the latents."""

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy.sparse import csr_matrix

from src.analysis.case_figures import plot_case_heatmap
from src.analysis.class_statistics import ClassStatistics, write_class_statistics
from src.analysis.consistency import compare_rankings, halve_cases, mean_consistency
from src.analysis.label_entropy import label_mass
from src.analysis.latent_summary import (
    RECIPES,
    Recipe,
    add_up,
    tabulate_class_neurons,
    tabulate_neurons,
    tabulate_top_items,
)
from src.analysis.latent_sums import CaseSums, ClassSums, NeuronSums
from src.analysis.neuron_figure import plot_neurons
from src.analysis.patients import TooFewCasesError, classify_cases, label_cases, tabulate_cases
from src.analysis.published_features import describe_features, rank_concepts
from src.analysis.top_items import TopItemLists, TopItems
from src.data.fold import FoldData, open_fold
from src.progress import track
from src.records import ALL, PARTS, class_name
from src.report.page import Page, PageTable
from src.runs.rundir import RunDir
from src.stores.case_matrix import CaseMatrix, write_case_matrix, write_h5ad
from src.stores.concept_files import ImageConcepts, write_concept_files
from src.stores.feature_data import feature_data_dir, write_feature_data
from src.stores.latents.source import LatentSource
from src.stores.neurons import read_neurons, write_neurons
from src.tasks.upstream_latents import open_upstream_latents, require_items
from src.wording import words_of

_LOGGER = logging.getLogger(__name__)
_N_CLASS_NEURONS = 10
_FEATURE_DATA, _CONCEPTS = "feature_data", "concepts"

Told = tuple[dict[str, float], list[str]]
"""Numbers and paragraphs of the page."""


def missing_inputs(cfg: Any) -> list[str]:
    """Returns why there is nothing to summarise: fold=all has test items only."""
    parts = cfg.latent_summary.split
    if cfg.fold == ALL and "test" not in parts.split("+"):
        return [f"fold=all has no {parts} items; give latent_summary.split=test"]
    return []


def run(cfg: Any, rundir: RunDir) -> dict[str, float]:
    """Writes the tables of the items of `latent_summary.split`.

    Always `analysis/neurons.csv` (see `src.stores.neurons`) and `analysis/top_items.csv`. Where items have labels of
    two classes `analysis/class_statistics.npz`, `class_neurons.csv` and `consistency.csv`. Where cases may have several
    items, `cases.npz`, `cases.csv`, and where they have labels `case_predictions.csv` and a heatmap. Published files
    lie below `published/`.

    Returns:
        `n_items`, `n_rows`, `n_active_neurons`; of each comparison of rankings `consistency/<what>_overlap` (mean over
        classes, of the first length of lists), `..._expected` and `..._correlation`; the numbers of `classify_cases`.

    Raises:
        ValueError: when the SAE was fitted on held-out items, there are no items, or an option is unknown.
    """
    options = cfg.latent_summary
    recipe = _check(options)
    fold = open_fold(cfg)
    parts = options.split
    held_out = [part for part in PARTS if part not in parts.split("+")]
    compared = options.compare_with if options.compare_with in held_out else None
    read = parts if compared is None else f"{parts}+{compared}"
    of_csv = ("split train+val+test", "cases all", f"labels {read}", "classes")
    rundir.record(*fold.inputs(*of_csv, f"activations {read}"))
    latents = open_upstream_latents(cfg, rundir, fold, "+".join(held_out), options.source)
    item_ids = require_items(latents, fold.split.item_ids(parts), f"{parts} of fold {cfg.fold}")
    made_with = rundir.upstream("encode" if "encode" in rundir.upstreams() else "train_sae")
    rundir.pass_on_fitted(made_with, fold.fitted(parts))

    labels, case_ids = _labels(fold, item_ids), [fold.items[item_id].case_id for item_id in item_ids]
    n_latents, n_classes = latents.n_latents, len(fold.classes)
    neurons, top_lists = NeuronSums(n_latents), TopItemLists(n_latents, options.n_top, recipe.top_by)
    classes = cases = items = None
    if n_classes > 1 and (labels >= 0).any():
        # Each class in two halves of its cases, which are compared.
        groups = np.where(labels < 0, -1, 2 * labels + halve_cases(case_ids, labels, cfg.seed))
        classes = ClassSums(groups, 2 * n_classes, n_latents)
    if options.cases == "always" or not recipe.divides_cases or (options.cases == "auto" and case_ids != item_ids):
        codes = np.unique(np.array(case_ids, dtype=str), return_inverse=True)[1]
        cases = CaseSums(codes, len(set(case_ids)), n_latents)
    if _CONCEPTS in options.export:
        items = CaseSums(np.arange(len(item_ids)), len(item_ids), n_latents)
    wanted = [one for one in (neurons, top_lists, classes, cases, items) if one is not None]
    add_up(track(latents.read(item_ids), f"Summarising {parts} items"), options.threshold, *wanted)

    top = top_lists.compute()
    results, paragraphs = _write_neurons(cfg, rundir, fold, neurons, top, item_ids, labels)
    if classes is None:
        statistics = None
        paragraphs.append("No two classes of items: nothing is said of classes.")
    else:
        statistics = classes.statistics(fold.classes, _groups(n_classes), recipe.counts_rows)
        told = _write_classes(cfg, rundir, fold, latents, classes, statistics, compared)
        results, paragraphs = results | told[0], paragraphs + told[1]
    if cases is not None:
        told = _write_cases(cfg, rundir, fold, cases, recipe, statistics, item_ids)
        results, paragraphs = results | told[0], paragraphs + told[1]
    _write_published(cfg, rundir, fold, neurons, top, statistics, cases, items, item_ids, labels)
    for paragraph in paragraphs:
        _LOGGER.info("%s", paragraph)
    table = PageTable(rundir.table("neurons"), "Every neuron.", 0)
    rundir.write_page(Page("How neurons fire", paragraphs, results, tables=(table,)))
    return results


def _check(options: Any) -> Recipe:
    if _FEATURE_DATA in options.export and options.recipe == "default":
        raise ValueError(
            f"Expected a published recipe for published files, got latent_summary.export=[{_FEATURE_DATA}] and "
            "latent_summary.recipe=default: give latent_summary.recipe=patchsae or cytosae."
        )
    return RECIPES[options.recipe]


def _labels(fold: FoldData, item_ids: Sequence[str]) -> np.ndarray:
    """Returns the label of each item as an index into the classes, -1 of items without."""
    known = [fold.items[item_id].label is not None for item_id in item_ids]
    labels = [fold.label_index(item_id) if one else -1 for item_id, one in zip(item_ids, known, strict=True)]
    return np.array(labels, np.int64)


def _groups(n_classes: int, half: int | None = None) -> np.ndarray:
    """Returns the groups of each class: both halves of its cases [n_classes, 2], or one of them [n_classes, 1]."""
    return 2 * np.arange(n_classes)[:, None] + (np.arange(2) if half is None else np.array([half]))


def _write_neurons(
    cfg: Any,
    rundir: RunDir,
    fold: FoldData,
    neurons: NeuronSums,
    top: TopItems,
    item_ids: Sequence[str],
    labels: np.ndarray,
) -> Told:
    options, classes, mass = cfg.latent_summary, fold.classes, None
    if (labels >= 0).any():
        ignored = _ignored(options.ignore_label, classes)
        mass = label_mass(top.values, top.labels(labels), len(classes), ignored)
    table = tabulate_neurons(neurons, mass, classes)
    write_neurons(rundir.table("neurons").parent, table)
    rundir.add_figure("neurons", plot_neurons(table), "Every neuron that fires.")
    names = [fold.items[item_id].label for item_id in item_ids]
    rundir.add_table("top_items", tabulate_top_items(top, item_ids, names), "Top items of each neuron.", 0)
    n_active = int((neurons.active_rows > 0).sum())
    words = words_of(cfg.dataset)
    counted = RECIPES[options.recipe].counted(words)
    text = (
        f"{neurons.n_rows:,} {words.rows} of {neurons.n_items:,} {options.split} {words.items}. {n_active:,} of "
        f"{len(table):,} neurons fire; counts are of {counted} above {options.threshold:g}."
    )
    return {"n_items": neurons.n_items, "n_rows": neurons.n_rows, "n_active_neurons": n_active}, [text]


def _ignored(label: Any, classes: Sequence[str]) -> int | None:
    key = "latent_summary.ignore_label"
    if label is None:
        return None
    if (name := class_name(label, key)) not in classes:
        raise ValueError(f"Expected {key} among the classes {list(classes)}, got {name!r}.")
    return classes.index(name)


def _write_classes(
    cfg: Any,
    rundir: RunDir,
    fold: FoldData,
    latents: LatentSource,
    sums: ClassSums,
    whole: ClassStatistics,
    compared: str | None,
) -> Told:
    """Writes the statistics of classes, their best neurons, and how steady these are."""
    options, n_classes = cfg.latent_summary, len(fold.classes)
    counts_rows = RECIPES[options.recipe].counts_rows
    write_class_statistics(rundir.table("class_statistics").with_suffix(".npz"), whole)
    paragraphs = []
    if empty := [name for name, n in zip(whole.classes, whole.n_items, strict=True) if not n]:
        paragraphs.append(f"No {options.split} items of {', '.join(empty)}: no neurons are ranked for classes.")
        return {}, paragraphs
    best = tabulate_class_neurons(whole, options.rule, _N_CLASS_NEURONS)
    rundir.add_table("class_neurons", best, f"The best neurons of each class by {options.rule}.", 30)

    halves = [sums.statistics(fold.classes, _groups(n_classes, half), counts_rows) for half in (0, 1)]
    pairs: dict[str, tuple[ClassStatistics, ClassStatistics]] = {"halves": (halves[0], halves[1])}
    if compared is not None:
        item_ids = [item_id for item_id in fold.split.item_ids(compared) if fold.items[item_id].label is not None]
        others = ClassSums(_labels(fold, item_ids), n_classes, latents.n_latents)
        if item_ids:
            add_up(latents.read(require_items(latents, item_ids, compared)), options.threshold, others)
        pairs[compared] = whole, others.statistics(fold.classes, np.arange(n_classes)[:, None], counts_rows)
    top_k = list(options.top_k)
    found = {name: compare_rankings(*pair, top_k, options.rule) for name, pair in pairs.items()}
    table = pd.concat(
        [table.assign(compared=name) for name, table in found.items() if len(table)] or list(found.values())
    )
    rundir.add_table("consistency", table, "Best neurons of each class: of halves of the cases, and of parts.")
    means = {f"consistency/{name}": mean_consistency(table) for name, table in found.items() if len(table)}
    return {f"{name}_{key}": value for name, of_pair in means.items() for key, value in of_pair.items()}, paragraphs


def _write_cases(
    cfg: Any,
    rundir: RunDir,
    fold: FoldData,
    sums: CaseSums,
    recipe: Recipe,
    statistics: ClassStatistics | None,
    item_ids: Sequence[str],
) -> Told:
    """Writes the matrix of cases by neurons, how well it tells their labels, and draws it."""
    options = cfg.latent_summary
    of_items = [fold.items[item_id] for item_id in item_ids]
    label_of_case = label_cases([item.case_id for item in of_items], [item.label for item in of_items])
    values = sums.means() if recipe.divides_cases else csr_matrix(sums.rows_above() / sums.n_latents)
    matrix = CaseMatrix(tuple(label_of_case), tuple(label_of_case.values()), sums.n_items, values)
    write_case_matrix(rundir.table("cases").with_suffix(".npz"), matrix)
    if options.h5ad:
        neurons = read_neurons(rundir.table("neurons").parent)
        write_h5ad(rundir.table("cases").with_suffix(".h5ad"), matrix, neurons)
    rundir.add_table("cases", tabulate_cases(matrix), "Cases.", 0)
    paragraphs = [f"{len(matrix.case_ids):,} cases, {sum(label is None for label in matrix.labels)} without one label."]
    try:
        predictions, results = classify_cases(matrix.values, label_of_case, options.n_case_folds, cfg.seed)
    except TooFewCasesError as error:
        return {}, [*paragraphs, f"Cases were not classified: {error}"]
    rundir.add_table("case_predictions", predictions, "Labels of cases, predicted from their neurons.", 0)
    text = (
        f"Logistic regression on the neurons of {results['cases/n']} cases tells their label with a balanced accuracy "
        f"of {results['cases/balanced_accuracy']:.3f} on cases that it was not fitted on. The SAE has seen their rows, "
        "without labels."
    )
    paragraphs.append(text)
    if statistics is not None and (statistics.n_items > 0).all():
        _draw_cases(rundir, matrix, statistics, options.rule)
    return results, paragraphs


def _draw_cases(rundir: RunDir, matrix: CaseMatrix, statistics: ClassStatistics, rule: str) -> None:
    best = tabulate_class_neurons(statistics, rule, _N_CLASS_NEURONS).drop_duplicates("neuron_id")
    labelled = [row for row, label in enumerate(matrix.labels) if label is not None]
    neuron_ids = best["neuron_id"].tolist()
    figure = plot_case_heatmap(
        matrix.values[labelled][:, neuron_ids].toarray(),
        [matrix.case_ids[row] for row in labelled],
        [str(matrix.labels[row]) for row in labelled],
        neuron_ids,
        best["class"].tolist(),
    )
    caption = f"The {_N_CLASS_NEURONS} best neurons of each class ({rule}), chosen on these cases, in every case."
    rundir.add_figure("cases", figure, caption)


def _write_published(
    cfg: Any,
    rundir: RunDir,
    fold: FoldData,
    neurons: NeuronSums,
    top: TopItems,
    statistics: ClassStatistics | None,
    cases: CaseSums | None,
    items: CaseSums | None,
    item_ids: Sequence[str],
    labels: np.ndarray,
) -> None:
    options, root = cfg.latent_summary, rundir.path / "published"
    if _FEATURE_DATA in options.export:
        counts = None if statistics is None else statistics.counts
        is_cytosae = options.recipe == "cytosae"
        if is_cytosae and cases is not None:
            counts = cases.rows_above().toarray() / len(neurons.sums)
        ignored = _ignored(options.ignore_label, fold.classes)
        data = describe_features(neurons, top, labels, ignored, counts)
        checkpoint = options.checkpoint or f"sae_{cfg.name}"
        folder = feature_data_dir(root, checkpoint, options.vit_type, cfg.dataset.name)
        write_feature_data(folder, data, options.transpose, float_indices=is_cytosae)
    if items is not None:
        concepts = ImageConcepts(items.means().astype(np.float32).toarray(), labels, tuple(item_ids))
        rankings = rank_concepts(neurons, statistics)
        write_concept_files(root / "eval_outputs", cfg.dataset.name, options.split, concepts, rankings)
