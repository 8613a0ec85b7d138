"""The answer in short: which neuron carries the phenotype, where it fires, and how that compares."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from src.analysis.figure_style import method_label, method_line
from src.report.page import PageFigure

# Shown in this order, each against the ones above it.
_PATCH_METHODS = (
    "neuron",
    "channel",
    "attention_activations",
    "attention_latents",
    "attention_top_neurons",
    "random_neuron",
)
_Q_LIMIT = 0.05
_SLIDE_METHODS = (
    "neuron",
    "max_activations",
    "attention_activations",
    "max_latents",
    "attention_latents",
    "max_top_neurons",
    "attention_top_neurons",
)


@dataclass(frozen=True)
class Bar:
    """A value between 0 and 1 with its interval (NaN when there is none)."""

    label: str
    color: str
    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Chart:
    """Bars that share a scale, and what they are."""

    title: str
    note: str
    bars: Sequence[Bar]


@dataclass(frozen=True)
class Headline:
    """What stands at the top of the report."""

    sentences: Sequence[str]
    charts: Sequence[Chart]
    figure: PageFigure | None


def build_headline(
    rankings: Mapping[int | str, Path],
    localizations: Mapping[int | str, Path],
    summary: Path | None,
    figure: PageFigure | None,
    positive_class: str | None,
) -> Headline:
    """Builds the headline from the tables that are there; what is not there is left out.

    Args:
        rankings: neurons.csv by fold.
        localizations: localization.csv by fold.
        summary: summary.csv of the cross-validation.
        figure: the chosen neuron's map beside the true outline.
        positive_class: the class that is looked for.
    """
    patch_scores = {fold: pd.read_csv(path).set_index("method") for fold, path in localizations.items()}
    sentences = [_describe_neurons(rankings, positive_class)] if rankings else []
    charts = []
    if patch_scores:
        charts.append(_patch_chart(patch_scores))
        sentences.append(_describe_place(patch_scores))
    if summary is not None:
        table = pd.read_csv(summary)
        if len(table := table[table["metric"] == "auroc"].set_index("method")):
            charts.append(_slide_chart(table))
    return Headline(sentences, charts, figure)


def _describe_neurons(rankings: Mapping[int | str, Path], positive_class: str | None) -> str:
    best = pd.DataFrame({fold: pd.read_csv(path).iloc[0] for fold, path in rankings.items()}).T
    n_neurons = pd.read_csv(next(iter(rankings.values())))["neuron_id"].nunique()
    sought = best["class"].iloc[0] if "class" in best else positive_class
    aurocs = ", ".join(f"{auroc:.3f}" for auroc in best["auroc"])
    evidence = f"(AUROC on train slides {aurocs}, q at most {best['q_value'].max():.3g})"
    names = ", ".join(str(int(neuron_id)) for neuron_id in best["neuron_id"])
    if len(best) == 1:
        chosen = f"Of {n_neurons:,} neurons, neuron {names}"
        evidence = evidence.replace("at most", "=")
    else:
        chosen = f"Of each fold's {n_neurons:,} neurons, neuron {names} (folds {', '.join(map(str, rankings))})"
    if bool((best["q_value"].to_numpy(float) < _Q_LIMIT).all()):
        return f"{chosen} tells {sought} slides from the others best, by the labels of train slides alone {evidence}."
    return (
        f"{chosen} comes closest to telling {sought} slides from the others, by the labels of train slides alone; "
        f"this is not significant {evidence}."
    )


def _describe_place(scores: Mapping[int | str, pd.DataFrame]) -> str:
    value = sum(table.loc["neuron", "auroc"] for table in scores.values()) / len(scores)  # pyright: ignore
    n_slides = sum(int(table.loc["neuron", "n_outlined_slides"]) for table in scores.values())  # pyright: ignore
    mean = f", in the mean of {len(scores)} folds" if len(scores) > 1 else ""
    return (
        f"Where: on test slides, the neuron is higher on a patch inside the true outlines than on one outside in "
        f"{value:.1%} of pairs (patch-level AUROC {value:.3f}{mean}; {n_slides} outlined slides)."
    )


def _patch_chart(scores: Mapping[int | str, pd.DataFrame]) -> Chart:
    bars = []
    for method in _PATCH_METHODS:
        rows = [table.loc[method] for table in scores.values() if method in table.index]
        if rows:
            values = [float(row["auroc"]) for row in rows]
            low = min(values) if len(rows) > 1 else float(rows[0]["auroc_low"])
            high = max(values) if len(rows) > 1 else float(rows[0]["auroc_high"])
            bars.append(_bar(method, sum(values) / len(values), low, high))
    spread = "lines: lowest to highest fold" if len(scores) > 1 else "lines: 95 % bootstrap interval over slides"
    return Chart("Does it fire in the right place?", f"Patch-level AUROC on test slides; {spread}.", bars)


def _slide_chart(table: pd.DataFrame) -> Chart:
    several = bool((table["n_folds"] > 1).any())
    low, high = ("fold_low", "fold_high") if several else ("slide_low", "slide_high")
    bars = [
        _bar(method, *(float(table.loc[method, column]) for column in ("mean", low, high)))  # pyright: ignore
        for method in _SLIDE_METHODS
        if method in table.index
    ]
    over = "folds, about their mean" if several else "slides"
    return Chart(
        "Does it tell slides apart?", f"Slide-level AUROC on test slides; lines: 95 % interval over {over}.", bars
    )


def _bar(method: str, value: float, low: float, high: float) -> Bar:
    return Bar(method_label(method), str(method_line(method)["color"]), value, low, high)
