"""Encodes every slide of the dataset with the fold's SAE into the sparse latents store."""

import logging
from collections import defaultdict
from typing import Any

import numpy as np
import pandas as pd
import torch

from src.analysis.figures import plot_density, save_figure
from src.data.fold import FoldData, open_fold
from src.metrics.latent_counts import L0
from src.metrics.variance_unexplained import FractionOfVarianceUnexplained
from src.models.saes.base import SAE
from src.progress import track
from src.report.doubts import describe_doubts, expected_l0
from src.report.page import Page, PageFigure, PageTable
from src.runs.rundir import RunDir
from src.stores.dense_latents import export_dense
from src.stores.latent_file import SlideFacts
from src.stores.latents import LatentStore, LatentWriter
from src.stores.sae import digest_export
from src.tasks.upstream_sae import open_upstream_sae

_LOGGER = logging.getLogger(__name__)
_PAGE_ORDER = 50
# Of the dense pre-latents of a piece, or its float64 copies for the variance; several of that size are alive at once.
_PIECE_BYTES = 16 << 20
_FEWEST_ROWS = 64


def run(cfg: Any, rundir: RunDir) -> dict[str, float]:
    """Writes the latents of every slide, and measures L0 and explained variance per part of the split.

    Slides are read, encoded and written in pieces, so that memory does not grow with them. A start after a kill keeps
    the slides that were encoded before and ends with the same files and numbers.

    Returns:
        `<split>/l0`, `<split>/explained_variance`, `<split>/fvu`, `n_slides` and `n_patches`.

    Raises:
        ValueError: when the SAE was fitted on held-out cases, or takes activations of another width.
    """
    fold = open_fold(cfg.dataset, cfg.fold, cfg.paths.cache)
    rundir.record(*fold.inputs("split train+val+test", "cases all", "activations all", "coords all"))
    sae = open_upstream_sae(rundir, fold, "val+test")
    rundir.pass_on_fitted(rundir.upstream("train_sae"))
    parts = _Parts(fold, sae)
    # A start after a kill keeps the slides that this very SAE has encoded.
    made_by = digest_export(rundir.upstream("train_sae").export_dir)
    writer = LatentWriter(rundir.latents_dir(), sae.n_latents, made_by)
    n_kept = 0
    for item_id in track(list(fold.items), "Encoding slides"):
        stated = fold.store.patch_size_level0(item_id) or fold.folder.patch_size_of_patch_file(item_id)
        size = stated or cfg.dataset.patch_size_level0
        facts = SlideFacts(fold.store.coords(item_id), size, fold.store.digest(item_id))
        n_kept += _encode_slide(item_id, facts, fold, sae, writer, parts)
    if n_kept:
        _LOGGER.info("%d of %d slides had been encoded before; their latents were kept.", n_kept, len(fold.items))
    store = writer.finish()
    if cfg.encode.dense_formats:
        export_dense(store, rundir.path / "latents" / "dense", list(cfg.encode.dense_formats))
    results = parts.results() | {
        "n_slides": len(fold.items),
        "n_patches": int(store.index["n_patches"].to_numpy().sum()),
    }
    doubts = describe_doubts([(None, results)], expected_l0(cfg))
    for doubt in doubts:
        _LOGGER.warning("%s", doubt)
    _write_page(rundir, store, parts, results, doubts)
    return results


@torch.no_grad()
def _encode_slide(
    item_id: str, facts: SlideFacts, fold: FoldData, sae: SAE, writer: LatentWriter, parts: "_Parts"
) -> bool:
    """Encodes a slide in pieces of bounded memory; returns whether its latents were there and are kept."""
    ((first, stop),) = fold.store.row_ranges([item_id])
    step = max(_FEWEST_ROWS, _PIECE_BYTES // (4 * max(sae.n_latents, 4 * sae.d_in)))
    # Copies: what is mapped cannot be written, as torch wants to be able to.
    activations = (
        torch.from_numpy(np.array(fold.store.read(start, min(start + step, stop)), dtype=np.float32))
        for start in range(first, stop, step)
    )
    if writer.keeps(item_id, stop - first, facts):
        # What is measured is measured again, from what is stored: the same numbers as without the kill.
        for rows, latents in zip(activations, writer.kept(item_id, step), strict=True):
            parts.update(item_id, rows, latents)
        return True
    with writer.slide(item_id, facts) as pieces:
        for rows in activations:
            latents = sae.encode(rows)
            parts.update(item_id, rows, latents)
            pieces.append(latents)
    return False


class _Parts:
    """Sums of the metrics over the slides of each part of the split."""

    def __init__(self, fold: FoldData, sae: SAE) -> None:
        self._part_of = {item_id: part for part in ("train", "val", "test") for item_id in fold.split.item_ids(part)}
        self._sae = sae
        self._fvu = defaultdict(lambda: FractionOfVarianceUnexplained(sae.d_in))
        self._l0 = defaultdict(L0)
        self.n_active = torch.zeros(sae.n_latents, dtype=torch.int64)

    @torch.no_grad()
    def update(self, item_id: str, activations: torch.Tensor, latents: Any) -> None:
        """Adds rows of a slide; the numbers of train slides are left out, decoding them tells nothing new."""
        self.n_active += torch.bincount(latents.neuron_ids, minlength=self._sae.n_latents)
        part = self._part_of.get(item_id)
        if part is None:
            return
        self._l0[part].update(latents)
        if part != "train":
            row_statistics = self._sae.normalize(activations)[1]
            reconstruction = self._sae.decode(latents, row_statistics)
            self._fvu[part].update(self._sae.standardize(activations), self._sae.standardize(reconstruction))

    def results(self) -> dict[str, float]:
        """Returns the metrics, by part."""
        fvu = {part: float(metric.compute()) for part, metric in self._fvu.items()}
        return (
            {f"{part}/l0": float(metric.compute()) for part, metric in self._l0.items()}
            | {f"{part}/fvu": value for part, value in fvu.items()}
            | {f"{part}/explained_variance": 1 - value for part, value in fvu.items()}
        )


def _write_page(
    rundir: RunDir, store: LatentStore, parts: _Parts, results: dict[str, float], doubts: list[str]
) -> None:
    density = parts.n_active.numpy() / results["n_patches"]
    table = pd.DataFrame({"neuron_id": np.arange(store.n_latents), "density": density, "n_active": parts.n_active})
    table.to_csv(rundir.table("density"), index=False)
    save_figure(plot_density(density), rundir.plot("density"))
    silent = int((density == 0).sum())
    n_entries = int(parts.n_active.sum())
    rundir.write_page(
        Page(
            title="Latents",
            order=_PAGE_ORDER,
            paragraphs=[
                f"{results['n_patches']:,} patches of {results['n_slides']} slides have {n_entries:,} latents that are "
                f"not zero. {silent} of {store.n_latents} neurons are silent on all of them.",
                *doubts,
            ],
            numbers={key: value for key, value in results.items() if key.startswith("test/")},
            figures=[PageFigure(rundir.plot("density"), "Share of patches on which each neuron fires.")],
            tables=[PageTable(rundir.table("density"), "Density by neuron.", max_rows=0)],
        )
    )
