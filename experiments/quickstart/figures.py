"""Writes the tables of this folder and the part of its README that quotes them, from a finished quickstart.

python -m experiments.quickstart.figures <runs folder>
"""

import argparse
import json
import shutil
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from omegaconf import OmegaConf

from experiments.quickstart.chance import count_chance_findings
from src.analysis.pooling import pool_items
from src.files import write_atomically
from src.records import read_items
from src.split_files import read_split
from src.stores.latents.store import LatentStore

FOLDER = Path(__file__).parent
BEGIN, END = "<!-- written by figures.py -->\n", "<!-- end -->\n"
_N_PERMUTATIONS = 200
_WIDTH = 126
# The task whose results each figure comes from; tile's run belongs to the data set.
_FIGURES = {
    "train_sae": ("n_train_rows", "n_steps", "d_in", "n_latents"),
    "encode": ("n_items", "n_rows", "test/explained_variance", "test/l0"),
    "select_neurons": ("neuron_id", "q_value", "n_found"),
}
_METHODS = {
    "neuron": "neuron {neuron_id:.0f} of {n_latents:,.0f}, chosen on train slides (q = {q_value:.0e})",
    "channel": "best raw channel, chosen the same way",
    "attention_activations": "attention MIL on activations",
    "attention_latents": "attention MIL on latents",
    "attention_top_neurons": "attention MIL on the 16 best neurons",
    "random_neuron": "random active neuron",
}
_METRICS = {"average_precision": "average precision", "f1": "F1", "dice": "Dice", "froc": "FROC"}


def main() -> None:
    """Writes figures.csv, localization.csv and the README's part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path)
    fold = parser.parse_args().runs / "quickstart" / "default" / "fold_0"
    figures = {**_results(fold), **_data(fold), **_permutations(fold)}
    with write_atomically(FOLDER / "figures.csv") as temporary:
        pd.DataFrame({"figure": list(figures), "value": list(figures.values())}).to_csv(temporary, index=False)
    shutil.copyfile(fold / "localize" / "analysis" / "localization.csv", FOLDER / "localization.csv")
    readme = FOLDER / "README.md"
    before, _, rest = readme.read_text().partition(BEGIN)
    with write_atomically(readme) as temporary:
        temporary.write_text(before + BEGIN + quoted(*read()) + END + rest.partition(END)[2])


def read() -> tuple[dict[str, float], pd.DataFrame]:
    """Returns the committed figures by name, and the scores of patches by method."""
    figures: Any = pd.read_csv(FOLDER / "figures.csv").set_index("figure")["value"]
    return figures.to_dict(), pd.read_csv(FOLDER / "localization.csv").set_index("method")


def quoted(figures: dict[str, float], scores: pd.DataFrame) -> str:
    """Returns the part of the README that quotes the tables."""
    first: Any = scores.iloc[0]
    metrics = [name for name in _METRICS if name in scores]
    lines = [
        _wrapped(
            f"**Measured** (`run.sh`, fold 0; {figures['n_train_slides']:.0f} train slides with "
            f"{figures['n_train_rows']:,.0f} patches in {figures['n_steps']:.0f} steps, {first['n_slides']:.0f} test "
            f"slides, {first['n_outlined_slides']:.0f} of them with outlines; 95 % intervals over slides):"
        ),
        "",
        " | ".join(["| score of a patch | AUROC", *(_METRICS[name] for name in metrics)]) + " |",
        "|---" * (2 + len(metrics)) + "|",
    ]
    for method, name in _METHODS.items():
        row: Any = scores.loc[method]
        auroc = f"{row['auroc']:.3f} [{row['auroc_low']:.3f}, {row['auroc_high']:.3f}]"
        rest = " | ".join(f"{row[metric]:.3f}" for metric in metrics)
        lines.append(f"| {name.format(**figures)} | {auroc} | {rest} |")
    attention: Any = scores.loc["attention_activations"]
    low, high = figures["least_slide_auroc"], figures["largest_slide_auroc"]
    span = f"{low:.3f}" if low == high else f"{low:.3f} to {high:.3f}"
    share = figures["n_permutations_with_findings"] / figures["n_permutations"]
    if "froc" in metrics:
        explained = (
            "F1 and Dice at the threshold of the largest F1 on validation slides; FROC: the mean share of lesions "
            "found at 1/4 to 8 false detections a slide, as CAMELYON16 defines it."
        )
        lines += ["", _wrapped(explained)]
    lines += [
        "",
        _wrapped(
            f"Test slides: explained variance {figures['test/explained_variance']:.3f}, L0 {figures['test/l0']:.1f}. "
            f"The {figures['n_classifiers']:.0f} slide classifiers reach AUROC {span} on them: with "
            f"{figures['n_test_slides_of_a_class']:.0f} slides a class that says little. Attention on activations "
            f"ranks patches within a slide with a mean AUROC of {attention['mean_slide_auroc']:.3f}, and across slides "
            f"with {attention['auroc']:.3f}: it is shared out within each slide, where a neuron's activation means the "
            "same on every slide."
        ),
        "",
        _wrapped(
            f"By the labels of train slides {figures['n_found']:.0f} neurons have q < 0.05. With labels permuted by "
            f"case, some neuron does in {figures['n_permutations_with_findings']:.0f} of "
            f"{figures['n_permutations']:.0f} permutations ({100 * share:.1f} %)."
        ),
    ]
    return "\n".join(lines) + "\n"


def _wrapped(text: str) -> str:
    return textwrap.fill(text, _WIDTH, break_long_words=False, break_on_hyphens=False)


def _results(fold: Path) -> dict[str, float]:
    found = {task: json.loads((fold / task / "results.json").read_text()) for task in (*_FIGURES, "train_mil")}
    aurocs = [value for key, value in found["train_mil"].items() if key.startswith("test/") and key.endswith("_auroc")]
    figures = {name: found[task][name] for task, names in _FIGURES.items() for name in names}
    return {
        **figures,
        "n_classifiers": len(aurocs),
        "least_slide_auroc": min(aurocs),
        "largest_slide_auroc": max(aurocs),
    }


def _open(fold: Path) -> tuple[dict[str, Any], Any]:
    dataset: Any = OmegaConf.load(fold / "encode" / "config.yaml")["dataset"]  # pyright: ignore[reportArgumentType]
    slides = {slide.item_id: slide for slide in read_items(dataset.metadata_csv)}
    return slides, read_split(dataset.splits_dir, 0)


def _data(fold: Path) -> dict[str, float]:
    slides, split = _open(fold)
    labels = [slides[item_id].label for item_id in split.test]
    return {
        "n_cases": len({slide.case_id for slide in slides.values()}),
        "n_train_slides": len(split.train),
        "n_test_slides_of_a_class": min(labels.count(label) for label in set(labels)),
    }


def _permutations(fold: Path) -> dict[str, float]:
    """Counts the permutations of labels by case under which some neuron still seems to carry them."""
    slides, split = _open(fold)
    store = LatentStore(fold / "encode" / "latents" / "all")
    maxima = pool_items(store.read(split.train), split.train).values
    classes = sorted({slide.label for slide in slides.values()})
    labels = np.array([classes.index(slides[item_id].label) for item_id in split.train])
    cases = [slides[item_id].case_id for item_id in split.train]
    found = count_chance_findings(maxima, labels, cases, classes, range(_N_PERMUTATIONS))
    return {"n_permutations": _N_PERMUTATIONS, "n_permutations_with_findings": found}


if __name__ == "__main__":
    main()
