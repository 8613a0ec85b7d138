"""Encodes every item of the dataset with the fold's SAE into the sparse latents store."""

import logging
from collections import defaultdict
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from src.activation_spec import ActivationSpec
from src.analysis.figures import plot_density, save_figure
from src.data.fold import FoldData, open_fold
from src.files import digest_text
from src.inference import Inference
from src.metrics.latent_counts import L0
from src.metrics.variance_unexplained import FractionOfVarianceUnexplained
from src.models.saes.base import SAE
from src.ops.sparse_latents import SparseLatents
from src.progress import track
from src.records import PARTS
from src.report.doubts import describe_doubts, expected_l0
from src.report.page import Page, PageFigure, PageTable
from src.runs.rundir import RunDir
from src.stores.latents.clam_export import export_clam
from src.stores.latents.index import LatentItem
from src.stores.latents.item_rows import ItemRows
from src.stores.latents.store import LatentStore
from src.stores.latents.writer import LatentWriter
from src.stores.sae import digest_export
from src.tasks.upstream_sae import open_inference, open_upstream_sae

_LOGGER = logging.getLogger(__name__)
_PAGE_ORDER = 50
# Of the dense pre-latents of a batch, or of its activations and their float64 copies for the variance.
_BATCH_BYTES = 64 << 20
_FEWEST_ROWS, _MOST_ROWS = 64, 8192


def run(cfg: Any, rundir: RunDir) -> dict[str, float]:
    """Writes the latents of every item, and measures L0 and explained variance per part of the split.

    Rows are read, encoded and written in batches that hold many small items or a piece of a large one. A start after a
    kill keeps the shards that were written before and ends with the same files and numbers.

    Returns:
        `<split>/l0`, `<split>/explained_variance`, `<split>/fvu`, `n_slides` and `n_patches`.

    Raises:
        ValueError: when the SAE was fitted on held-out cases, or takes activations of another width.
    """
    fold = open_fold(cfg.dataset, cfg.fold, cfg.paths.cache)
    inputs = fold.inputs("split train+val+test", "cases all", "activations all", "coords all")
    rundir.record(*inputs)
    sae = open_upstream_sae(rundir, fold, "val+test")
    rundir.pass_on_fitted(rundir.upstream("train_sae"))
    inference = open_inference(cfg, sae)
    encoder = _Encoder(fold, sae, inference, cfg.dataset.patch_size_level0)
    sae_digest = digest_export(rundir.upstream("train_sae").export_dir)
    shaping = [sae_digest, *(one.digest for one in inputs), *inference.shaping, encoder.batch_rows]
    writer = LatentWriter(
        rundir.latents_dir(),
        sae.n_latents,
        encoder.items,
        digest_text(repr(shaping)),
        sae_digest,
        getattr(fold.store, "spec", None) or ActivationSpec(),
    )
    if writer.n_kept_rows:
        _LOGGER.info("%d of %d rows had been encoded before; they were kept.", writer.n_kept_rows, writer.n_rows)
    measures = encoder.encode(writer)
    store = writer.finish(cfg.encode.by_neuron)
    if cfg.encode.dense_formats:
        export_clam(store, rundir.path / "latents" / "dense", list(cfg.encode.dense_formats))
    results = measures.results() | {"n_slides": len(fold.items), "n_patches": writer.n_rows}
    doubts = describe_doubts([(None, results)], expected_l0(cfg))
    for doubt in doubts:
        _LOGGER.warning("%s", doubt)
    _write_page(rundir, store, measures, results, doubts)
    return results


class _Encoder:
    """Encodes the items of a fold part by part, so that a batch belongs to one part."""

    def __init__(self, fold: FoldData, sae: SAE, inference: Inference, patch_size_level0: int | None) -> None:
        self._fold, self._sae, self._inference = fold, sae, inference
        parts = {part: list(fold.split.item_ids(part)) for part in PARTS}
        listed = {item_id for item_ids in parts.values() for item_id in item_ids}
        parts[""] = [item_id for item_id in fold.items if item_id not in listed]
        self._patch_size_level0 = patch_size_level0
        self._parts = {part: [self._item(item_id) for item_id in item_ids] for part, item_ids in parts.items()}
        self._has_coords = any(fold.store.coords(item.item_id) is not None for item in self.items)
        fit = _BATCH_BYTES // (4 * max(sae.n_latents, 4 * sae.d_in))
        self.batch_rows = min(max(fit, _FEWEST_ROWS), _MOST_ROWS)

    @property
    def items(self) -> list[LatentItem]:
        """All items, in the order in which they are encoded."""
        return [item for items in self._parts.values() for item in items]

    def encode(self, writer: LatentWriter) -> "_Measures":
        """Encodes what the writer does not hold, and measures everything."""
        measures = _Measures(self._sae)
        first = 0
        for part, items in self._parts.items():
            self._encode_part(part, items, first, writer, measures)
            first += sum(item.n_rows for item in items)
        return measures

    def _encode_part(
        self, part: str, items: Sequence[LatentItem], first: int, writer: LatentWriter, measures: "_Measures"
    ) -> None:
        rows = ItemRows(items)
        spans = list(rows.spans(self.batch_rows))
        kept = [span for span in spans if first + span[1] <= writer.n_kept_rows]
        for start, stop in kept:
            # What is measured is measured again, from what is stored: the same numbers as without the kill.
            latents = writer.kept(first + start, first + stop).to(self._inference.device)
            measures.update(part, self._read(rows, start, stop).to(self._inference.device), latents)
        reads = (partial(self._read, rows, *span) for span in spans[len(kept) :])
        start = kept[-1][1] if kept else 0
        batches = self._inference.run(self._encode_rows, reads)
        description = f"Encoding {part} rows".replace("  ", " ")
        for activations, latents in track(batches, description, len(spans) - len(kept)):
            stop = start + latents.n_rows
            measures.update(part, activations, latents)
            writer.append(latents, self._coords(items, *rows.between(start, stop)), first + start)
            start = stop

    def _encode_rows(self, activations: Tensor) -> tuple[Tensor, SparseLatents]:
        return activations, self._sae.encode(activations)

    def _item(self, item_id: str) -> LatentItem:
        store = self._fold.store
        ((start, stop),) = store.row_ranges([item_id])
        stated = store.patch_size_level0(item_id) or self._fold.folder.patch_size_of_patch_file(item_id)
        return LatentItem(item_id, start, stop - start, store.digest(item_id), stated or self._patch_size_level0)

    def _read(self, rows: ItemRows, start: int, stop: int) -> Tensor:
        return torch.from_numpy(self._fold.store.gather(rows.between(start, stop)[1]))

    def _coords(self, items: Sequence[LatentItem], positions: np.ndarray, numbers: np.ndarray) -> np.ndarray | None:
        """Returns the coords of rows [n, 2], -1 where an item has none; None where no item has any."""
        if not self._has_coords:
            return None
        coords = np.full((len(numbers), 2), -1, np.int32)
        starts = np.unique(positions, return_index=True)[1].tolist()
        for start, stop in zip(starts, [*starts[1:], len(numbers)], strict=True):
            item = items[int(positions[start])]
            of_item = self._fold.store.coords(item.item_id)
            if of_item is not None:
                coords[start:stop] = of_item[numbers[start:stop] - item.start]
        return coords


class _Measures:
    """Sums of the metrics over the rows of each part of the split."""

    def __init__(self, sae: SAE) -> None:
        device = sae.W_enc.device
        self._sae = sae
        self._fvu = defaultdict(lambda: FractionOfVarianceUnexplained(sae.d_in).to(device))
        self._l0 = defaultdict(lambda: L0().to(device))
        self.n_active = torch.zeros(sae.n_latents, dtype=torch.int64)

    @torch.no_grad()
    def update(self, part: str, activations: Tensor, latents: SparseLatents) -> None:
        """Adds rows of a part, "" for none; train rows are not decoded, that tells nothing new."""
        self.n_active += torch.bincount(latents.neuron_ids, minlength=self._sae.n_latents).cpu()
        if not part:
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
    rundir: RunDir, store: LatentStore, measures: _Measures, results: dict[str, float], doubts: list[str]
) -> None:
    density = measures.n_active.numpy() / results["n_patches"]
    table = pd.DataFrame({"neuron_id": np.arange(store.n_latents), "density": density, "n_active": measures.n_active})
    table.to_csv(rundir.table("density"), index=False)
    save_figure(plot_density(density), rundir.plot("density"))
    silent = int((density == 0).sum())
    n_entries = int(measures.n_active.sum())
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
