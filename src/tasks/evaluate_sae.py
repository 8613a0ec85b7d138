"""Measures a trained SAE on a part of the fold: reconstruction, sparsity, firing rates and redundancy of atoms."""

import math
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from src.analysis.sae_figures import plot_firing_rates, plot_l0, plot_pre_latents, plot_redundancy
from src.data.fold import open_fold
from src.metrics.inference import InferenceMetrics, pre_latent_histograms
from src.metrics.redundancy import NearestAtoms, nearest_atoms
from src.models.saes.base import SAE
from src.ops.sparse_latents import SparseLatents
from src.report.doubts import warn_of_doubts
from src.report.page import Page
from src.runs.rundir import RunDir
from src.tasks.upstream_sae import open_inference, open_upstream_sae
from src.wording import Words, words_of

_SHOWN_NUMBERS = (
    *("explained_variance", "raw_explained_variance", "nmse", "cosine", "relative_reconstruction_bias", "l2_ratio"),
    *("l0", "l1", "dead_fraction", "almost_dead_fraction", "dense_fraction", "n_tokens"),
)


def run(cfg: Any, rundir: RunDir) -> dict[str, float]:
    """Streams the rows of `evaluation.split` through the SAE's inference, and compares its atoms.

    Rows it was fitted on may be evaluated by asking for train slides; the page and `<split>/n_fitted_slides` say so.

    Returns:
        `<split>/<name>` for every number of `InferenceMetrics`, `<split>/n_items`, `<split>/n_fitted_items` (NaN
        when it is not known), `redundancy/mean_nearest_cosine` (of absolute values) and
        `redundancy/redundant_fraction`.

    Raises:
        ValueError: when the SAE was fitted on validation or test cases that are asked for, or takes activations of
            another width, or there are no rows.
    """
    evaluation = cfg.evaluation
    fold = open_fold(cfg)
    parts = evaluation.split
    rundir.record(*fold.inputs(f"split {parts}", f"cases {parts}", f"activations {parts}"))
    item_ids = fold.split.item_ids(parts)
    rows = _choose(fold.store.row_ids(item_ids), evaluation.n_rows, cfg.seed)
    if not len(rows):
        raise ValueError(f"Expected patches in evaluation.split={evaluation.split} of fold {cfg.fold}, got none.")
    held_out = "+".join(part for part in evaluation.split.split("+") if part != "train")
    sae = open_upstream_sae(rundir, fold, held_out)
    trained = rundir.upstream("train_sae")
    n_fitted = math.nan  # an imported SAE may not say
    if not trained.fitted_on_unknown_path.is_file():
        n_fitted = len({slide.item_id for slide in trained.read_fitted_on()}.intersection(item_ids))
    inference = open_inference(cfg, sae)

    metrics = InferenceMetrics(sae, evaluation.almost_dead_below, evaluation.dense_above).to(sae.W_enc.device)
    pieces = np.split(rows, range(evaluation.batch_size, len(rows), evaluation.batch_size))
    reads = (lambda piece=piece: torch.from_numpy(fold.store.gather(piece)) for piece in pieces)
    for batch in inference.run(partial(_infer, sae), reads, "Evaluating the SAE", len(pieces)):
        metrics.update(sae, *batch)
    nearest = nearest_atoms(sae.atoms.detach())

    magnitudes = nearest.cosine.abs()
    numbers = metrics.results() | {"n_items": len(item_ids), "n_fitted_items": n_fitted}
    results = {f"{parts}/{name}": value for name, value in numbers.items()}
    results |= {
        "redundancy/mean_nearest_cosine": float(magnitudes.double().mean()),
        "redundancy/redundant_fraction": float((magnitudes > evaluation.redundant_above).double().mean()),
    }
    words = words_of(cfg.dataset)
    _write_neurons(rundir, metrics, nearest, evaluation, words)
    _write_l0(rundir, metrics, words)
    sample = fold.store.gather(_choose(rows, evaluation.n_pre_latent_rows, cfg.seed))
    _write_pre_latents(rundir, sae, torch.from_numpy(sample).to(sae.W_enc.device), words)
    figure = plot_redundancy(nearest.cosine.cpu().numpy(), evaluation.redundant_above, fold.d_in)
    rundir.add_figure("redundancy", figure, "Each atom's nearest other one, by absolute cosine.")
    _write_page(rundir, results, evaluation, warn_of_doubts(cfg, results), words)
    return results


def _choose(rows: np.ndarray, n_rows: int | None, seed: int) -> np.ndarray:
    """Returns all rows, or `n_rows` of them drawn without replacement and in their order."""
    if n_rows is None or n_rows >= len(rows):
        return rows
    return rows[np.sort(np.random.default_rng(seed).choice(len(rows), n_rows, replace=False))]


def _infer(sae: SAE, activations: Tensor) -> tuple[Tensor, SparseLatents, Tensor]:
    latents = sae.encode(activations)
    return activations, latents, sae.decode(latents, sae.normalize(activations)[1])


def _write_neurons(
    rundir: RunDir, metrics: InferenceMetrics, nearest: NearestAtoms, evaluation: Any, words: Words
) -> None:
    firing = metrics.firing
    table = pd.DataFrame(
        {
            "neuron_id": np.arange(len(firing.n_fired)),
            "n_fired": firing.n_fired.cpu(),
            "density": firing.density.cpu(),
            "mean_when_active": firing.mean_when_active.cpu(),  # empty where silent
            "max": firing.maxima.cpu(),
            "nearest_neuron_id": nearest.neuron_id.cpu(),
            "nearest_cosine": nearest.cosine.cpu(),
        }
    )
    caption = "Neurons: how often and how strongly they fire, and their nearest atom."
    rundir.add_table("neuron_densities", table, caption, max_rows=0)
    limits = (evaluation.almost_dead_below, evaluation.dense_above)
    figure = plot_firing_rates(table["density"].to_numpy(), int(firing.n_rows), *limits, words=words)
    rundir.add_figure("firing_rates", figure, "How often neurons fire. Dotted: the limits of almost dead and dense.")


def _write_l0(rundir: RunDir, metrics: InferenceMetrics, words: Words) -> None:
    n_rows = np.trim_zeros(metrics.l0_histogram.compute().cpu().numpy(), "b")
    table = pd.DataFrame({"l0": np.arange(len(n_rows)), "n_rows": n_rows})
    rundir.add_table("l0_histogram", table, f"{words.rows.capitalize()} by number of active latents.", max_rows=0)
    rundir.add_figure("l0", plot_l0(n_rows, words), f"Active latents by {words.row}.")


def _write_pre_latents(rundir: RunDir, sae: SAE, activations: Tensor, words: Words) -> None:
    counts, active = pre_latent_histograms(sae, activations)
    edges, n, n_active = counts.edges.numpy(), counts.counts.cpu().numpy(), active.counts.cpu().numpy()
    table = pd.DataFrame({"low": edges[:-1], "high": edges[1:], "n_pre_latents": n, "n_active": n_active})
    rundir.add_table("pre_latent_histogram", table, "Pre-latents by size.", max_rows=0)
    # SAELens's word for SAEs in which a threshold, and not a rank or a gate, decides at inference.
    has_threshold = sae.saelens_architecture == "jumprelu"
    threshold = sae.inference_threshold.detach().cpu().reshape(-1).numpy() if has_threshold else None
    caption = f"Pre-latents of {len(activations):,} of the {words.rows}; the end bins hold what lies beyond."
    rundir.add_figure("pre_latents", plot_pre_latents(edges, n, n_active, threshold), caption)


def _write_page(rundir: RunDir, results: dict[str, float], evaluation: Any, doubts: list[str], words: Words) -> None:
    split = evaluation.split
    n_tokens, n_fitted = int(results[f"{split}/n_tokens"]), results[f"{split}/n_fitted_items"]
    paragraphs = [
        *doubts,
        f"{n_tokens:,} {words.rows} of {results[f'{split}/n_items']} {split} {words.items}. Errors are of activations "
        "as the SAE's input statistics standardise them; raw_explained_variance is of those on disk. A neuron is dead "
        f"when it fired on none of these {words.rows}, almost dead below {evaluation.almost_dead_below:g} of them (the "
        f"dead included), dense above {evaluation.dense_above:g}.",
    ]
    if math.isnan(n_fitted):
        paragraphs.insert(0, f"The SAE was imported: it is not known whether it was fitted on these {words.items}.")
    elif n_fitted:
        text = (
            f"The SAE was fitted on {n_fitted} of these {results[f'{split}/n_items']} {words.items}: the numbers say "
        )
        paragraphs.insert(0, text + f"how well it fits, not how well it does on new {words.items}.")
    if n_tokens * evaluation.almost_dead_below < 1:
        paragraphs.append(
            f"On so few {words.rows} a neuron that fires once is above that share: almost dead means dead."
        )
    numbers = {f"{split}/{name}": results[f"{split}/{name}"] for name in _SHOWN_NUMBERS}
    numbers |= {name: value for name, value in results.items() if name.startswith("redundancy/")}
    rundir.write_page(Page("How well the SAE does", paragraphs, numbers))
