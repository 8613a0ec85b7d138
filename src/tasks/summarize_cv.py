"""Gathers the folds of a preset that are there: mean, spread, intervals and comparisons of every slide classifier."""

import itertools
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from src import config
from src.analysis.class_statistics import read_class_statistics
from src.analysis.consistency import compare_rankings
from src.analysis.cross_validation import describe_test_sets, fold_metrics, summarize
from src.analysis.figures import plot_summary
from src.analysis.fold_figures import plot_fold_ranks, plot_precision_bands, plot_roc_bands
from src.analysis.fold_ranks import rank_over_folds
from src.analysis.method_comparison import compare_methods
from src.analysis.methods import Method, read_methods, write_methods
from src.analysis.published_table import read_published, set_beside, to_latex
from src.files import write_atomically
from src.report.page import Page
from src.runs.identity import Draw
from src.runs.rundir import RunDir
from src.split_files import given_splits
from src.wording import words_of

_LOGGER = logging.getLogger(__name__)


def inputs(cfg: Any, rundir: RunDir) -> list[Path]:
    """Returns the files that a summary made now would read."""
    runs = rundir.upstream_draws("train_mil").values()
    found = [run.table(name) for run in runs for name in ("predictions", "methods")]
    found += [_class_statistics(run) for run in _summaries(cfg, rundir).values()]
    found += [run.table("neurons") for run in _rankings(cfg, rundir).values()]
    return found + ([] if cfg.summary.published is None else [Path(cfg.summary.published)])


def run(cfg: Any, rundir: RunDir) -> dict[str, float]:
    """Writes tables and figures over all folds that are there, and logs the summary as a table.

    With repeat 0 and seed 0 folds of all repeats and seeds are gathered, else those of the given ones. Tables:
    `folds.csv` has every metric of every fold, `summary.csv` means and intervals, `comparisons.csv` tests between
    methods, `table.csv` and `table.tex` the study's table beside published numbers, `fold_ranks.csv` where each fold
    ranks the neurons that some fold chooses. Where all folds have one SAE (`sae_run=`), `neuron_consistency.csv`
    compares the neurons that they rank first for each class.

    Returns:
        `test/<method>_<metric>` means over folds, and the number of folds.

    Raises:
        FileNotFoundError: when no fold is finished.
    """
    runs = rundir.upstream_draws("train_mil")
    if not runs:
        rundir.upstream("train_mil")  # its error names the directory and the command
    predictions, options = _read_all(runs), cfg.summary
    folds = fold_metrics(predictions)
    with write_atomically(rundir.table("folds")) as temporary:
        folds.to_csv(temporary, index=False)
    n_train = [len(run.read_fitted_on()) for run in runs.values()]
    how = options.n_bootstrap, options.confidence, cfg.seed, n_train
    summary = summarize(predictions, *how)
    rundir.add_table("summary", summary, "Every method and metric with both intervals.", 60)
    if len(set(predictions["method"])) > 1:
        compared = compare_methods(predictions, *how)
        rundir.add_table("comparisons", compared, "Every pair of methods: differences, and p and q of three tests.", 60)
    methods = {name: method for run in runs.values() for name, method in read_methods(run.table("methods")).items()}
    write_methods(methods, rundir.table("methods"))
    remarks = [describe_test_sets(predictions), *_missing(cfg, list(runs)), *_undefined(folds)]
    for remark in remarks:
        _LOGGER.info("%s", remark)
    _LOGGER.info("Test items, %d folds:\n%s", len(runs), _as_text(summary, options.confidence))
    _write_study_table(cfg, rundir, summary, methods, len(runs))
    _compare_neurons(cfg, rundir)
    _draw(cfg, rundir, predictions, summary, methods)
    rundir.write_page(Page("Cross-validation", [*remarks, _describe_tests(options.confidence)], {"n_folds": len(runs)}))
    keys = "test/" + summary["method"] + "_" + summary["metric"]
    return {"n_folds": len(runs)} | {str(key): float(mean) for key, mean in zip(keys, summary["mean"], strict=True)}


def _read_all(runs: Mapping[Draw, RunDir]) -> pd.DataFrame:
    """Returns the test predictions of all runs, with columns fold, and repeat and seed where there are several."""
    tables = [_read(run).assign(**draw._asdict()) for draw, run in runs.items()]
    predictions = pd.concat(tables, ignore_index=True)
    alike = [key for key in ("repeat", "seed") if len(set(predictions[key])) == 1]
    return predictions.drop(columns=alike)


def _read(run: RunDir) -> pd.DataFrame:
    ids: Any = dict.fromkeys(("method", "split", "item_id", "case_id", "label"), str)
    table = pd.read_csv(run.table("predictions"), dtype=ids, keep_default_na=False)
    return table.loc[table["split"] == "test"]


def _summaries(cfg: Any, rundir: RunDir) -> dict[int | str, RunDir]:
    """Returns the folds whose neurons can be compared: those of one SAE, with statistics of classes."""
    if "train_sae" not in config.tasks().given(cfg):
        return {}
    runs = rundir.upstream_folds("summarize_latents")
    return {fold: run for fold, run in runs.items() if _class_statistics(run).is_file()}


def _rankings(cfg: Any, rundir: RunDir) -> dict[int | str, RunDir]:
    """Returns the folds' own rankings of neurons."""
    return {} if "select_neurons" in config.tasks().given(cfg) else rundir.upstream_folds("select_neurons")


def _class_statistics(run: RunDir) -> Path:
    return run.path / "analysis" / "class_statistics.npz"


def _compare_neurons(cfg: Any, rundir: RunDir) -> None:
    options = cfg.latent_summary
    statistics = {fold: read_class_statistics(_class_statistics(run)) for fold, run in _summaries(cfg, rundir).items()}
    tables = [
        compare_rankings(statistics[one], statistics[other], list(options.top_k), options.rule).assign(
            fold=one, other_fold=other
        )
        for one, other in itertools.combinations(sorted(statistics, key=str), 2)
    ]
    if tables:
        caption = (
            "The best neurons of each class, fold by fold. Train items of folds overlap, so agreement is expected."
        )
        rundir.add_table("neuron_consistency", pd.concat(tables, ignore_index=True), caption)
    _follow_neurons(cfg, rundir)


def _follow_neurons(cfg: Any, rundir: RunDir) -> None:
    """Writes `fold_ranks.csv` and its figure, where at least two folds of this repeat and seed rank neurons."""
    rankings: dict[str, list[int]] = {
        str(fold): pd.read_csv(run.table("neurons"))["neuron_id"].drop_duplicates().tolist()
        for fold, run in _rankings(cfg, rundir).items()
    }
    atoms, saes = None, {}
    if "train_sae" not in config.tasks().given(cfg):
        saes = {str(fold): run for fold, run in rundir.upstream_folds("train_sae").items()}
        rankings = {fold: ranking for fold, ranking in rankings.items() if fold in saes}
    if len(rankings) < 2:
        return
    if saes:
        from src.stores.sae import load_sae  # with torch

        atoms = {fold: load_sae(saes[fold].export_dir).W_dec.detach().numpy() for fold in rankings}
    ranks = rank_over_folds(rankings, cfg.summary.n_top_neurons, atoms)
    how = "by id" if atoms is None else f"by their atoms, named as in fold {next(iter(rankings))}"
    caption = f"Ranks in all folds of the {cfg.summary.n_top_neurons} best neurons of each, followed {how}."
    rundir.add_table("fold_ranks", ranks, caption, 10)
    rundir.add_figure("fold_ranks", plot_fold_ranks(ranks), f"{caption} Points: where a fold chose the neuron.")


def _missing(cfg: Any, present: list[Draw]) -> list[str]:
    """Names the folds of a repeat that have a split and no finished run."""
    given = given_splits(cfg.dataset.splits_dir) if cfg.dataset.splits_dir else {}
    remarks = []
    for repeat, seed in sorted({(draw.repeat, draw.seed) for draw in present}):
        # Those of task=splits are of the folder's one repeat.
        expected = given.get(repeat) or given.get(0, set())
        there = {draw.fold for draw in present if (draw.repeat, draw.seed) == (repeat, seed)}
        if missing := [f"fold_{fold}" for fold in sorted(expected) if str(fold) not in there]:
            of = f" of repeat {repeat}, seed {seed}" if repeat or seed else ""
            remarks.append(f"Missing{of}, no finished train_mil run: {', '.join(missing)}.")
    return remarks


def _undefined(folds: pd.DataFrame) -> list[str]:
    gaps: Any = folds[folds["auroc"].isna()]
    return [
        f"AUROC and average precision are undefined in fold {row['fold']}: a class is missing among its "
        f"{row['n_items']} test items."
        for _, row in gaps.drop_duplicates("fold").iterrows()
    ]


def _describe_tests(confidence: float) -> str:
    return (
        f"Intervals of {confidence:.0%}. Over folds: Nadeau and Bengio's corrected resampled t interval (2003), which "
        "allows for train sets that overlap, cut off at 0 and 1. Over all test items: a percentile bootstrap of whole "
        "cases. Methods are compared in pairs by the same t, by the bootstrap of the same cases, and by DeLong's test "
        "of AUROC with cases as clusters; q corrects each p for the number of pairs (Benjamini and Hochberg, 1995)."
    )


def _as_text(summary: pd.DataFrame, confidence: float) -> str:
    """Returns the summary as a table for people: a line a method, a column a metric."""
    shown = summary.assign(
        text=[
            f"{row['mean']:.3f} ± {row['sd']:.3f} [{row['fold_low']:.3f}, {row['fold_high']:.3f}] "
            f"pooled {row['pooled']:.3f} [{row['slide_low']:.3f}, {row['slide_high']:.3f}]"
            for _, row in summary.iterrows()
        ]
    )
    lines = [f"mean ± sd [{confidence:.0%} over folds], all test items pooled [{confidence:.0%} over cases]"]
    for metric, part in shown.groupby("metric", sort=False):
        lines += [f"{metric}:", *(f"  {row['method']:<24} {row['text']}" for _, row in part.iterrows())]
    return "\n".join(lines)


def _write_study_table(
    cfg: Any, rundir: RunDir, summary: pd.DataFrame, methods: Mapping[str, Method], n_folds: int
) -> None:
    metrics = list(cfg.summary.metrics)
    published = None if cfg.summary.published is None else read_published(cfg.summary.published)
    table = set_beside(summary, methods, metrics, published)
    beside = "" if published is None else ", beside published numbers"
    caption = f"{cfg.name}: test {words_of(cfg.dataset).items}, mean and sd over {n_folds} folds{beside}."
    rundir.add_table("table", table, caption, 30)
    with write_atomically(rundir.table("table").with_suffix(".tex")) as temporary:
        temporary.write_text(to_latex(table, metrics, caption))


def _draw(
    cfg: Any, rundir: RunDir, predictions: pd.DataFrame, summary: pd.DataFrame, methods: dict[str, Method]
) -> None:
    words = words_of(cfg.dataset)
    caption = (
        f"Test {words.items}: mean over folds with the t interval, and all {words.items} pooled with the bootstrap "
        "interval."
    )
    rundir.add_figure("summary", plot_summary(summary, methods, words), caption)
    classes = [column.removeprefix("prob_") for column in predictions.columns if column.startswith("prob_")]
    for name in classes if len(classes) > 2 else classes[-1:]:
        kinds = predictions.groupby(["fold", *(key for key in ("repeat", "seed") if key in predictions)])["label"]
        if not any((one == name).any() and (one != name).any() for _, one in kinds):
            continue  # said among the remarks
        of = "" if len(classes) == 2 else f"_{name}"
        text = f"of {name} in every fold (thin), their mean (thick) and mean ± sd."
        rundir.add_figure(f"roc_folds{of}", plot_roc_bands(predictions, name, methods), f"ROC curves {text}")
        figure = plot_precision_bands(predictions, name, methods)
        rundir.add_figure(f"precision_folds{of}", figure, f"Precision and recall {text} Dotted: the share of {name}.")
