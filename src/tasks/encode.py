"""Encodes every item of the dataset with the fold's SAE into the sparse latents store."""

import logging
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from src.analysis.sae_figures import plot_firing_rates
from src.data.fold import FoldData, open_fold
from src.files import digest_text
from src.metrics.latent_counts import L0
from src.metrics.variance_unexplained import FractionOfVarianceUnexplained
from src.models.saes.base import SAE
from src.ops.sparse_latents import SparseLatents
from src.records import PARTS
from src.report.doubts import warn_of_doubts
from src.report.page import Page
from src.runs.rundir import RunDir
from src.stores.latents.clam_export import export_clam
from src.stores.latents.encoded import EncodedLatents
from src.stores.latents.index import LatentItem
from src.stores.latents.writer import LatentWriter
from src.stores.sae import digest_export
from src.tasks.upstream_sae import open_inference, open_upstream_sae
from src.wording import Words, words_of

_LOGGER = logging.getLogger(__name__)
# Of the dense pre-latents of a batch, or of its activations, as read, standardised, centred and reconstructed.
_BATCH_BYTES = 40 << 20
_FEWEST_ROWS, _MOST_ROWS = 64, 8192


def run(cfg: Any, rundir: RunDir) -> dict[str, float]:
    """Writes the latents of every item, and measures L0 and explained variance per part of the split.

    Rows are read, encoded and written in batches that hold many small items or a piece of a large one. A start after a
    kill keeps the shards that were written before and ends with the same files and numbers.

    Returns:
        `<split>/l0`, `<split>/explained_variance`, `<split>/fvu`, `n_items` and `n_rows`.

    Raises:
        ValueError: when the SAE was fitted on held-out cases, or takes activations of another width.
    """
    fold = open_fold(cfg)
    inputs = fold.inputs("split train+val+test", "cases all", "activations all", "coords all")
    rundir.record(*inputs)
    sae = open_upstream_sae(rundir, fold, "val+test")
    rundir.pass_on_fitted(rundir.upstream("train_sae"))
    inference = open_inference(cfg, sae)
    parts = {part: list(fold.split.item_ids(part)) for part in PARTS}
    in_parts = {item_id for item_ids in parts.values() for item_id in item_ids}
    parts[""] = [item_id for item_id in fold.items if item_id not in in_parts]
    items = [latent_item(cfg, fold, item_id) for item_ids in parts.values() for item_id in item_ids]
    source = EncodedLatents(sae, items, fold.store.gather, fold.store.coords, inference, fold.spec)
    sae_digest = digest_export(rundir.upstream("train_sae").export_dir)
    shaping = [sae_digest, *(one.digest for one in inputs), *inference.shaping, sae.screening, batch_rows(sae)]
    made_by = digest_text(repr(shaping))
    writer = LatentWriter(rundir.latents_dir(), sae.n_latents, items, made_by, sae_digest, fold.spec)
    if writer.n_kept_rows:
        _LOGGER.info("%d of %d rows had been encoded before; they were kept.", writer.n_kept_rows, writer.n_rows)
    measures = _Measures(sae, [(part, sum(source.items[one].n_rows for one in parts[part])) for part in parts])
    source.write(writer, batch_rows(sae), measures.update)
    store = writer.finish(cfg.encode.by_neuron)
    if cfg.encode.dense_formats:
        export_clam(store, rundir.path / "latents" / "dense", list(cfg.encode.dense_formats))
    results = measures.results() | {"n_items": len(fold.items), "n_rows": writer.n_rows}
    _write_page(rundir, measures.n_active, results, warn_of_doubts(cfg, results), words_of(cfg.dataset))
    return results


def batch_rows(sae: SAE) -> int:
    """Returns how many rows are encoded at once: as many as memory is to hold."""
    width = 4 * sae.d_in if sae.screens else max(sae.n_latents, 4 * sae.d_in)  # screening holds no pre-latents
    return min(max(_BATCH_BYTES // (4 * width), _FEWEST_ROWS), _MOST_ROWS)


def latent_item(cfg: Any, fold: FoldData, item_id: str) -> LatentItem:
    """Returns what a source of latents says of an item: its rows, their digest and patch size."""
    store = fold.store
    ((start, stop),) = store.row_ranges([item_id])
    stated = store.patch_size_level0(item_id) or fold.folder.patch_size_of_patch_file(item_id)
    return LatentItem(item_id, start, stop - start, store.digest(item_id), stated or cfg.dataset.patch_size_level0)


class _Measures:
    """Sums of the metrics over the rows of each part of the split.

    Args:
        sae: what encodes.
        parts: the number of rows of each part, in the order in which they come; "" of no part.
    """

    def __init__(self, sae: SAE, parts: Sequence[tuple[str, int]]) -> None:
        device = sae.W_enc.device
        self._sae, self._parts = sae, parts
        self._fvu = defaultdict(lambda: FractionOfVarianceUnexplained(sae.d_in).to(device))
        self._l0 = defaultdict(lambda: L0().to(device))
        self.n_active = torch.zeros(sae.n_latents, dtype=torch.int64)

    @torch.no_grad()
    def update(self, start: int, activations: Tensor, latents: SparseLatents) -> None:
        """Adds the rows after the first `start`."""
        self.n_active += torch.bincount(latents.neuron_ids, minlength=self._sae.n_latents).cpu()
        first = 0
        for part, n_rows in self._parts:
            rows = slice(max(first - start, 0), min(first + n_rows - start, latents.n_rows))
            if part and rows.start < rows.stop:
                self._update(part, activations[rows], latents.rows(rows.start, rows.stop))
            first += n_rows

    def _update(self, part: str, activations: Tensor, latents: SparseLatents) -> None:
        self._l0[part].update(latents)
        if part != "train":  # train rows are not decoded, that tells nothing new
            reconstruction = self._sae.decode(latents, self._sae.normalize(activations)[1])
            self._fvu[part].update(self._sae.standardize(activations), self._sae.standardize(reconstruction))

    def results(self) -> dict[str, float]:
        """Returns the metrics, by part."""
        fvu = {part: float(metric.compute()) for part, metric in self._fvu.items()}
        return (
            {f"{part}/l0": float(metric.compute()) for part, metric in self._l0.items()}
            | {f"{part}/fvu": value for part, value in fvu.items()}
            | {f"{part}/explained_variance": 1 - value for part, value in fvu.items()}
        )


def _write_page(rundir: RunDir, n_active: Tensor, results: dict[str, float], doubts: list[str], words: Words) -> None:
    density = n_active.numpy() / results["n_rows"]
    table = pd.DataFrame({"neuron_id": np.arange(len(density)), "density": density, "n_active": n_active})
    rundir.add_table("density", table, "Density by neuron.", max_rows=0)
    rundir.add_figure(
        "density",
        plot_firing_rates(density, int(results["n_rows"]), words=words),
        f"Share of {words.rows} on which each neuron fires.",
    )
    text = (
        f"{results['n_rows']:,} {words.rows} of {results['n_items']} {words.items} have {int(n_active.sum()):,} "
        f"latents that are not zero. {int((density == 0).sum())} of {len(density)} neurons are silent on all of them."
    )
    numbers = {key: value for key, value in results.items() if key.startswith("test/")}
    rundir.write_page(Page("Latents", [text, *doubts], numbers))
