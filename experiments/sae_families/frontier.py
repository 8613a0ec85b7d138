"""Draws the L0 against explained-variance frontier of all SAE families, and compares dictionaries across seeds.

python -m experiments.sae_families.frontier <runs folder> <output folder>
"""

import argparse
import itertools
import json
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import pandas as pd
import torch
from omegaconf import OmegaConf

from src.stores.sae import load_sae

_DATA = {
    "quickstart": "Built-in slides, random ResNet",
    "bccd_mobilenetv2": "Blood smears, ImageNet MobileNetV2",
}
# Okabe and Ito's palette, told apart without colour vision.
_COLOURS = {
    "BatchTopK": "#000000",
    "TopK": "#E69F00",
    "MatryoshkaBatchTopK": "#56B4E9",
    "Archetypal": "#009E73",
    "JumpReLU": "#D55E00",
    "Gated": "#0072B2",
    "PAnneal": "#CC79A7",
    "ReLUL1": "#999999",
}
_SPARSITY_KEYS = ("k", "target_l0", "l1_coefficient")


def main() -> None:
    """Writes `frontier.csv`, `stability.csv` and `frontier.png`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path)
    parser.add_argument("output", type=Path)
    arguments = parser.parse_args()
    table: Any = pd.DataFrame([row for name in _DATA for row in _rows(arguments.runs / name)])
    table = table.sort_values(["data", "family", "sparsity", "seed"]).reset_index(drop=True)
    columns = [name for name in table.columns if name != "export"]
    table[columns].to_csv(arguments.output / "frontier.csv", index=False, float_format="%.4g")
    stability = _stability(table)
    stability.to_csv(arguments.output / "stability.csv", index=False, float_format="%.4g")
    _draw(table).savefig(arguments.output / "frontier.png", dpi=160)


def _rows(runs: Path) -> list[dict[str, Any]]:
    """Returns a row for every finished evaluation under a run name."""
    rows = []
    for path in sorted(runs.glob("*/fold_0/evaluate_sae/results.json")):
        config: Any = OmegaConf.load(path.parent / "config.yaml")
        results = json.loads(path.read_text())
        family = config.sae._target_.rpartition(".")[2]
        sparsity = next(config.sae[key] for key in _SPARSITY_KEYS if config.sae.get(key) is not None)
        numbers = {name.removeprefix("test/"): value for name, value in results.items() if name.startswith("test/")}
        rows.append(
            {
                "data": runs.name,
                "family": family,
                "sparsity": float(sparsity),
                "seed": int(config.seed),
                **{name: numbers[name] for name in ("l0", "explained_variance", "dead_fraction")},
                "export": path.parent.parent / "train_sae" / "export",
            }
        )
    return rows


def _stability(table: Any) -> pd.DataFrame:
    """For each family with several seeds: the mean over atoms of the largest cosine with an atom of another seed."""
    rows = []
    for (data, family, sparsity), group in table.groupby(["data", "family", "sparsity"]):
        if len(group) < 2:
            continue
        atoms = [torch.nn.functional.normalize(load_sae(path).atoms.detach(), dim=1) for path in group["export"]]
        cosines = [float((one @ other.T).amax(1).mean()) for one, other in itertools.permutations(atoms, 2)]
        rows.append(
            {
                "data": data,
                "family": family,
                "sparsity": sparsity,
                "n_seeds": len(group),
                "mean_max_cosine": sum(cosines) / len(cosines),
                "l0_sd": group["l0"].std(),
                "explained_variance_mean": group["explained_variance"].mean(),
                "explained_variance_sd": group["explained_variance"].std(),
            }
        )
    return pd.DataFrame(rows)


def _draw(table: Any) -> Any:
    figure, axes = plt.subplots(1, len(_DATA), figsize=(10, 4.2), layout="constrained")
    for axis, (data, title) in zip(axes, _DATA.items(), strict=True):
        for family, colour in _COLOURS.items():
            rows = table[(table["data"] == data) & (table["family"] == family)]
            points = rows.groupby("sparsity")[["l0", "explained_variance"]].mean().sort_values("l0")
            axis.plot(points["l0"], points["explained_variance"], "o-", color=colour, label=family, ms=4, lw=1.2)
            seeds = rows.groupby("sparsity").filter(lambda group: len(group) > 1)
            axis.plot(seeds["l0"], seeds["explained_variance"], "_", color=colour, ms=9, mew=1.2)
        axis.set(title=title, xlabel="L0, test (log scale)", ylabel="Explained variance, test", xscale="log")
        axis.set_xticks([4, 8, 16, 32, 64, 128, 256, 512], [4, 8, 16, 32, 64, 128, 256, 512])
        axis.minorticks_off()
        _name_what_lies_below(axis, table[(table["data"] == data) & (table["explained_variance"] < 0)])
        axis.grid(alpha=0.25, lw=0.5)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].legend(frameon=False, fontsize=8)
    return figure


def _name_what_lies_below(axis: Any, rows: Any) -> None:
    """Cuts the axis at 0 and writes out what it hides."""
    if not len(rows):
        return
    axis.set_ylim(bottom=0)
    lines = [f"{row.family}: {row.explained_variance:.2f} at L0 {row.l0:.0f}" for row in rows.itertuples()]
    axis.text(0.98, 0.02, "below the axis:\n" + "\n".join(lines), transform=axis.transAxes, ha="right", fontsize=8)


if __name__ == "__main__":
    main()
