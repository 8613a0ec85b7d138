"""Which neuron is selected when one of two centres has most of the tumour slides, with and without adjusting for it.

Run: python -m experiments.quickstart.two_centers [--seeds 20] [--output experiments/quickstart/two_centers.csv]

A bank of small synthetic slides is drawn once with the stain of either centre, and its patches embedded. Each seed
draws its cases and their centres from the bank, trains an SAE on their patches, and ranks its neurons by slide labels,
once as they are and once within centres, pooled over slides by maximum and by mean. The SAE reads what a random
backbone makes of a contrast-normalised patch, which shows tumour, and beside it the mean colour of the patch, which
shows the stain; both weigh the same.

A chosen neuron counts as one of the stain when it tells the centres of tumour-free patches (AUROC above 0.75), and
better than it tells tumour from other patches of one stain; as one of tumour when it is the other way round. Both are
measured on slides of the bank that were not drawn.
"""

import argparse
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from sklearn.metrics import roc_auc_score

from src.analysis.selection import rank_neurons
from src.data.slides.annotations import Polygon
from src.data.slides.regions import PolygonRegions
from src.data.synthetic.drawing import STAINS, draw_slide
from src.models.backbones.timm_backbone import TimmBackbone
from src.models.saes.batch_topk import BatchTopK
from src.models.saes.step import TrainingProgress
from src.ops.selection import calibrate_threshold
from src.progress import track

_SIZE, _PATCH = 672, 96
_PER_CLASS = 80  # slides of each class in the bank
_DRAWN = 70  # of them in each seed's study
_SKEW = 0.93  # of the tumour cases this share is of the second centre, of the others of the first
_N_LATENTS, _K, _BATCH, _STEPS = 256, 16, 256, 200
_WHITE = 225
_TELLS = 0.75  # the AUROC from which a neuron can be one of the stain, or of tumour


class Slide(NamedTuple):
    """Patches of a slide: activations under each centre's stain [2, n, d], and which lie in tumour [n]."""

    activations: np.ndarray
    is_tumor: np.ndarray


def main() -> None:
    """Prints and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--output", type=Path, default=Path("experiments/quickstart/two_centers.csv"))
    arguments = parser.parse_args()
    bank = draw_bank()
    rows = [row for seed in track(range(arguments.seeds), "Studies") for row in study(bank, seed)]
    table = pd.DataFrame(rows)
    table.to_csv(arguments.output, index=False, float_format="%.4g")
    print(table.to_string(index=False, float_format="{:.3f}".format))
    print(summarize(table).to_string(index=False, float_format="{:.3f}".format))


def summarize(table: pd.DataFrame) -> pd.DataFrame:
    """Returns, by pool and way of ranking, in how many seeds a neuron of stain, or of tumour, was selected.

    Selected is what is first and has q below 0.05; `n_first_is_stain` counts it whatever its q.
    """
    selected = {f"selects_{what}": table[f"is_{what}"] & table["is_found"] for what in ("stain", "tumor")}
    summary = table.assign(**selected).groupby(["pool", "ranking"], sort=False)
    summary = summary.agg(
        n_seeds=("seed", "size"),
        n_found=("is_found", "sum"),
        n_selects_stain=("selects_stain", "sum"),
        n_selects_tumor=("selects_tumor", "sum"),
        n_first_is_stain=("is_stain", "sum"),
        tumor_auroc=("tumor_auroc", "median"),
        least_tumor_auroc=("tumor_auroc", "min"),
        center_auroc=("center_auroc", "median"),
    )
    return summary.reset_index()


def draw_bank() -> dict[int, list[Slide]]:
    """Returns the slides of each class: 0 without tumour, 1 with."""
    options: Any = {"pretrained": False, "layer": 2, "tokens": "mean", "image_size": _PATCH}
    backbone = TimmBackbone("random_resnet10t", "resnet10t", normalize_each=True, **options).eval()
    numbers = np.random.SeedSequence(0).generate_state(2 * _PER_CLASS).tolist()
    drawn = [_draw(backbone, number, place % 2 == 1) for place, number in enumerate(track(numbers, "Slides"))]
    return {label: drawn[label::2] for label in (0, 1)}


@torch.no_grad()
def _draw(backbone: TimmBackbone, seed: int, positive: bool) -> Slide:
    activations, labels = [], np.empty(0)
    kept = None
    for stain in STAINS:
        image, outlines = draw_slide(seed, positive, _SIZE, stain)
        rows, columns = image.shape[0] // _PATCH, image.shape[1] // _PATCH
        patches = image[: rows * _PATCH, : columns * _PATCH].reshape(rows, _PATCH, columns, _PATCH, 3)
        patches = patches.swapaxes(1, 2).reshape(-1, _PATCH, _PATCH, 3)
        if kept is None:  # the same patches with both stains
            kept = np.flatnonzero((patches.mean(axis=3) < _WHITE).mean(axis=(1, 2)) > 0.5)
            y, x = np.divmod(kept, columns)
            centres = (np.stack([x, y], axis=1) + 0.5) * _PATCH
            labels = PolygonRegions([Polygon(outline) for outline in outlines]).contains(centres)
        pixels = torch.from_numpy(patches[kept]).permute(0, 3, 1, 2)
        (seen,) = backbone.activations(backbone.normalize(pixels)).values()
        color = patches[kept].mean(axis=(1, 2))
        n_repeats = seen.shape[2] // color.shape[1]  # every column is standardised, so its copies are its weight
        activations.append(np.concatenate([seen[:, 0].numpy(), np.tile(color, n_repeats)], axis=1, dtype=np.float32))
    return Slide(np.stack(activations), labels)


def study(bank: dict[int, list[Slide]], seed: int) -> list[dict[str, Any]]:
    """Returns rows of the table: what each way of ranking chose, and what the chosen neuron tells."""
    rng = np.random.default_rng(seed)
    train: list[tuple[Slide, int, int]] = []
    rest: list[Slide] = []
    for label, slides in bank.items():
        order = rng.permutation(len(slides)).tolist()
        centers = [label if place < round(_SKEW * _DRAWN) else 1 - label for place in range(_DRAWN)]
        train += [(slides[number], label, center) for number, center in zip(order, centers, strict=False)]
        rest += [slides[number] for number in order[_DRAWN:]]
    rows = np.concatenate([slide.activations[center] for slide, _, center in train])
    mean, scale = rows.mean(axis=0), np.maximum(rows.std(axis=0), 1e-6)  # random channels may be silent
    sae = train_sae((rows - mean) / scale, seed)

    def encode(activations: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return sae.encode(torch.from_numpy((activations - mean) / scale).float()).to_dense().numpy()

    of_slides = [encode(slide.activations[center]) for slide, _, center in train]
    labels = np.array([label for _, label, _ in train])
    strata = [f"center {center + 1}" for _, _, center in train]
    case_ids = [str(number) for number in range(len(train))]
    held_out = np.concatenate([np.stack([encode(one) for one in slide.activations]) for slide in rest], axis=1)
    is_tumor = np.concatenate([slide.is_tumor for slide in rest])
    found = []
    for pool in ("max", "mean"):
        values = np.stack([getattr(rows, pool)(axis=0) for rows in of_slides])
        for ranking, given in (("unadjusted", None), ("adjusted", strata)):
            best = rank_neurons(values, labels, case_ids, ("normal", "tumor"), strata=given).iloc[0]
            neuron = held_out[:, :, int(best["neuron_id"])]
            tumor = float(np.mean([roc_auc_score(is_tumor, of_stain) for of_stain in neuron]))
            free = neuron[:, ~is_tumor]
            center = float(roc_auc_score(np.repeat([0, 1], free.shape[1]), free.ravel()))
            center = max(center, 1 - center)
            told = {"tumor_auroc": tumor, "center_auroc": center}
            told |= {"is_stain": center > max(tumor, _TELLS), "is_tumor": tumor > max(center, _TELLS)}
            known = {"seed": seed, "pool": pool, "ranking": ranking, "neuron_id": int(best["neuron_id"])}
            known |= {"q_value": float(best["q_value"]), "is_found": bool(best["q_value"] < 0.05)}
            found.append(known | told)
    return found


def train_sae(rows: np.ndarray, seed: int) -> BatchTopK:
    """Trains a BatchTopK SAE in a plain loop; so small a one needs no trainer."""
    torch.manual_seed(seed)
    data = torch.from_numpy(rows).float()
    sae = BatchTopK(data.shape[1], _N_LATENTS, k=_K, aux_coefficient=1 / 32, dead_after=20).train()
    sae.initialize_from_(data[torch.randperm(len(data))[:_BATCH]])
    optimizer = torch.optim.Adam(sae.parameters(), lr=1e-3, betas=(0.9, 0.99))
    for number in range(_STEPS):
        progress = TrainingProgress(number, _STEPS)
        batch = data[torch.randint(len(data), (min(_BATCH, len(data)),))]
        sae.constrain_before_forward_()
        sae.step(batch, progress).loss.backward()
        sae.constrain_gradient_()
        sae.constrain_before_step_()
        optimizer.step()
        optimizer.zero_grad()
        sae.constrain_after_step_()
        sae.finish_step_(batch, progress, optimizer)
    sae.eval()
    with torch.no_grad():
        sae.threshold.copy_(calibrate_threshold([sae.pre_latents(data)], _K, len(data)))
    return sae


if __name__ == "__main__":
    main()
