"""The answer in short: which neuron carries the phenotype, where it fires, and how that compares."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from src.analysis.methods import NEURON, Method, read_methods
from src.report.page import PageFigure
from src.wording import SLIDES, Words

_Q_LIMIT = 0.05


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
    words: Words = SLIDES,
) -> Headline:
    """Builds the headline from the tables that are there; what is not there is left out.

    Args:
        rankings: neurons.csv by fold.
        localizations: localization.csv by fold, each beside its methods.csv.
        summary: summary.csv of the cross-validation, beside its methods.csv.
        figure: the chosen neuron's map beside the true outline.
        positive_class: the class that is looked for.
        words: what items are called.
    """
    sentences = [_describe_neurons(rankings, positive_class, words)] if rankings else []
    charts = []
    if localizations:
        table: Any = pd.concat([pd.read_csv(path) for path in localizations.values()], ignore_index=True)
        charts.append(_patch_chart(table, len(localizations), _methods(*localizations.values())))
        sentences.append(_describe_place(table[table["method"] == NEURON]))
    if summary is not None:
        table: Any = pd.read_csv(summary)
        if len(table := table[table["metric"] == "auroc"].set_index("method")):
            charts.append(_item_chart(table, _methods(summary), words))
    return Headline(sentences, charts, figure)


def _methods(*tables: Path) -> dict[str, Method]:
    found = {name: one for path in tables for name, one in read_methods(path.with_name("methods.csv")).items()}
    return dict(sorted(found.items(), key=lambda item: item[0] != NEURON))  # the others are compared with it


def _describe_neurons(rankings: Mapping[int | str, Path], positive_class: str | None, words: Words) -> str:
    best = pd.DataFrame({fold: pd.read_csv(path).iloc[0] for fold, path in rankings.items()}).T
    n_neurons = pd.read_csv(next(iter(rankings.values())))["neuron_id"].nunique()
    sought = best["class"].iloc[0] if "class" in best else positive_class
    aurocs = ", ".join(f"{auroc:.3f}" for auroc in best["auroc"])
    evidence = f"(AUROC on train {words.items} {aurocs}, q at most {best['q_value'].max():.3g})"
    names = ", ".join(str(int(neuron_id)) for neuron_id in best["neuron_id"])
    if len(best) == 1:
        chosen = f"Of {n_neurons:,} neurons, neuron {names}"
        evidence = evidence.replace("at most", "=")
    else:
        chosen = f"Of each fold's {n_neurons:,} neurons, neuron {names} (folds {', '.join(map(str, rankings))})"
    if bool((best["q_value"].to_numpy(float) < _Q_LIMIT).all()):
        return (
            f"{chosen} tells {sought} {words.items} from the others best, by the labels of train {words.items} alone "
            f"{evidence}."
        )
    return (
        f"{chosen} comes closest to telling {sought} {words.items} from the others, by the labels of train "
        f"{words.items} alone; "
        f"this is not significant {evidence}."
    )


def _describe_place(of_neuron: pd.DataFrame) -> str:
    value = of_neuron["auroc"].mean()
    mean = f", in the mean of {len(of_neuron)} folds" if len(of_neuron) > 1 else ""
    return (
        f"Where: on test slides, the neuron is higher on a patch inside the true outlines than on one outside in "
        f"{value:.1%} of pairs (patch-level AUROC {value:.3f}{mean}; {of_neuron['n_outlined_slides'].sum()} outlined "
        "slides)."
    )


def _patch_chart(table: Any, n_folds: int, methods: Mapping[str, Method]) -> Chart:
    if n_folds > 1:
        values, spread = table.groupby("method")["auroc"].agg(["mean", "min", "max"]), "lowest to highest fold"
    else:
        values = table.set_index("method")[["auroc", "auroc_low", "auroc_high"]]
        spread = "95 % bootstrap interval over slides"
    note = f"Patch-level AUROC on test slides; lines: {spread}."
    return Chart("Does it fire in the right place?", note, _bars(values, methods))


def _item_chart(table: Any, methods: Mapping[str, Method], words: Words) -> Chart:
    several = bool((table["n_folds"] > 1).any())
    ends = ["fold_low", "fold_high"] if several else ["slide_low", "slide_high"]
    over = "folds, about their mean" if several else words.items
    note = f"AUROC on test {words.items}; lines: 95 % interval over {over}."
    return Chart(f"Does it tell {words.items} apart?", note, _bars(table[["mean", *ends]], methods))


def _bars(values: pd.DataFrame, methods: Mapping[str, Method]) -> list[Bar]:
    """Returns a bar a method from its value, low and high."""
    shown = [method for method in methods.values() if method.name in values.index]
    return [Bar(method.label, method.color, *map(float, values.loc[method.name])) for method in shown]
