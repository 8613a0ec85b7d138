"""Gathers the folds of a preset that are there: mean, spread and intervals of every slide classifier."""

import itertools
import logging
from pathlib import Path
from typing import Any

import pandas as pd

from src import config
from src.analysis.class_statistics import read_class_statistics
from src.analysis.consistency import compare_rankings
from src.analysis.cross_validation import describe_test_sets, fold_metrics, summarize
from src.analysis.figures import plot_summary
from src.analysis.methods import Method, read_methods, write_methods
from src.records import given_splits
from src.report.page import Page
from src.runs.rundir import RunDir
from src.wording import words_of

_LOGGER = logging.getLogger(__name__)


def inputs(cfg: Any, rundir: RunDir) -> list[Path]:
    """Returns the files that a summary made now would read."""
    runs = rundir.upstream_folds("train_mil").values()
    found = [run.table(name) for run in runs for name in ("predictions", "methods")]
    return found + [_class_statistics(run) for run in _summaries(cfg, rundir).values()]


def run(cfg: Any, rundir: RunDir) -> dict[str, float]:
    """Writes `analysis/summary.csv` and `analysis/folds.csv`, and logs the summary as a table.

    Where all folds have one SAE (`sae_run=`), `analysis/neuron_consistency.csv` compares the neurons that they rank
    first for each class; those of SAEs that each fold trained have nothing in common.

    Returns:
        `test/<method>_<metric>` means over folds, and the number of folds.

    Raises:
        FileNotFoundError: when no fold is finished.
    """
    runs = rundir.upstream_folds("train_mil")
    if not runs:
        rundir.upstream("train_mil")  # its error names the directory and the command
    predictions = pd.concat([_read(run).assign(fold=fold) for fold, run in runs.items()], ignore_index=True)
    folds = fold_metrics(predictions)
    folds.to_csv(rundir.table("folds"), index=False)
    n_train = [len(run.read_fitted_on()) for run in runs.values()]
    summary = summarize(predictions, cfg.summary.n_bootstrap, cfg.summary.confidence, cfg.seed, n_train)
    rundir.add_table("summary", summary, "Every method and metric with both intervals.", 60)
    methods = {name: method for run in runs.values() for name, method in read_methods(run.table("methods")).items()}
    write_methods(methods, rundir.table("methods"))
    remarks = [describe_test_sets(predictions), *_missing(cfg, sorted(runs)), *_undefined(folds)]
    for remark in remarks:
        _LOGGER.info("%s", remark)
    _LOGGER.info("Test items, %d folds:\n%s", len(runs), _as_text(summary, cfg.summary.confidence))
    _compare_neurons(cfg, rundir)
    _write_page(cfg, rundir, summary, methods, [*remarks, _describe_intervals(cfg.summary.confidence)], len(runs))
    keys = "test/" + summary["method"] + "_" + summary["metric"]
    return {"n_folds": len(runs)} | {str(key): float(mean) for key, mean in zip(keys, summary["mean"], strict=True)}


def _summaries(cfg: Any, rundir: RunDir) -> dict[int | str, RunDir]:
    """Returns the folds whose neurons can be compared: those of one SAE, with statistics of classes."""
    if "train_sae" not in config.tasks().given(cfg):
        return {}
    runs = rundir.upstream_folds("summarize_latents")
    return {fold: run for fold, run in runs.items() if _class_statistics(run).is_file()}


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


def _read(run: RunDir) -> pd.DataFrame:
    ids: Any = dict.fromkeys(("method", "split", "item_id", "case_id", "label"), str)
    table = pd.read_csv(run.table("predictions"), dtype=ids, keep_default_na=False)
    return table.loc[table["split"] == "test"]


def _missing(cfg: Any, present: list[int | str]) -> list[str]:
    """Names the folds that have a split and no finished run."""
    given = given_splits(cfg.dataset.splits_dir) if cfg.dataset.splits_dir else {}
    expected = given.get(cfg.repeat) or given.get(0, set())  # those of task=splits are of the folder's one repeat
    missing = [f"fold_{fold}" for fold in sorted(expected - set(present))]
    return [f"Missing, no finished train_mil run: {', '.join(missing)}."] if missing else []


def _undefined(folds: pd.DataFrame) -> list[str]:
    gaps: Any = folds[folds["auroc"].isna()]
    return [
        f"AUROC and average precision are undefined in fold {row['fold']}: a class is missing among its "
        f"{row['n_items']} test items."
        for _, row in gaps.drop_duplicates("fold").iterrows()
    ]


def _describe_intervals(confidence: float) -> str:
    return (
        f"Intervals of {confidence:.0%}. Over folds: Nadeau and Bengio's corrected resampled t interval (2003), which "
        "allows for train sets that overlap, cut off at 0 and 1. Over all test items: a percentile bootstrap of whole "
        "cases."
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


def _write_page(
    cfg: Any, rundir: RunDir, summary: pd.DataFrame, methods: dict[str, Method], remarks: list[str], n_folds: int
) -> None:
    words = words_of(cfg.dataset)
    caption = (
        f"Test {words.items}: mean over folds with the t interval, and all {words.items} pooled with the bootstrap "
        "interval."
    )
    rundir.add_figure("summary", plot_summary(summary, methods, words), caption)
    rundir.write_page(Page("Cross-validation", remarks, {"n_folds": n_folds}))
