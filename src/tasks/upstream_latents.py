"""The latents that a task builds on, stored or computed, checked against the fold they are used on."""

from collections.abc import Iterable
from typing import Any

from src.activation_spec import require_same_spec
from src.csv_tables import some
from src.data.fold import FoldData
from src.runs.rundir import RunDir
from src.stores.latents.encoded import EncodedLatents
from src.stores.latents.source import LatentSource
from src.stores.latents.store import LatentStore
from src.tasks.encode import batch_rows, latent_item
from src.tasks.upstream_sae import open_inference, open_upstream_sae

SOURCES = ("auto", "stored", "computed")


def open_upstream_latents(
    cfg: Any, rundir: RunDir, fold: FoldData, held_out: str, source: str = "auto"
) -> LatentSource:
    """Opens the latents of the fold's items.

    Args:
        cfg: the configuration.
        rundir: of the task.
        fold: the fold.
        held_out: the part or union of parts that the SAE must not have been fitted on; "" for none.
        source: `stored`, those of task=encode; `computed`, the SAE over the fold's activations, for latents that are
            not sparse or are needed once; `auto`, stored ones where they are there, else computed ones.

    Raises:
        FileNotFoundError: when there are no latents, or no SAE to compute them with.
        ValueError: when the source is unknown, the SAE was fitted on held-out cases, or the latents are those of other
            activations than the fold's.
    """
    if source not in SOURCES:
        raise ValueError(f"Expected a source of latents among {', '.join(SOURCES)}, got {source!r}.")
    encoded = rundir.upstream("encode") if source == "stored" else None
    if source == "auto":
        encoded = rundir.optional_upstream("encode")
    if encoded is None:
        return _compute(cfg, rundir, fold, held_out)
    if held_out:
        rundir.refuse_leakage(encoded, fold.fitted(held_out))
    latents = LatentStore(encoded.latents_dir())
    remedy = "Run task=encode again with overwrite=true."
    require_same_spec(latents.spec, f"the latents in {encoded.path}", fold.spec, str(fold.folder.path), remedy)
    return latents


def require_items(latents: LatentSource, item_ids: Iterable[str], parts: str) -> list[str]:
    """Returns items after checking that there are some, and that they have latents.

    Raises:
        ValueError: when there are none, or some have no latents.
    """
    wanted = list(item_ids)
    if not wanted:
        raise ValueError(f"Expected items in {parts}, got none: name another part of the split.")
    if missing := [item_id for item_id in wanted if item_id not in latents.items]:
        raise ValueError(
            f"Expected latents of all {len(wanted)} items of {parts}, got none of {some(missing)}: run task=encode "
            "again with overwrite=true."
        )
    return wanted


def _compute(cfg: Any, rundir: RunDir, fold: FoldData, held_out: str) -> EncodedLatents:
    sae = open_upstream_sae(rundir, fold, held_out)
    inference = open_inference(cfg, sae)
    items = [latent_item(cfg, fold, item_id) for item_id in fold.items]
    return EncodedLatents(sae, items, fold.store.gather, fold.store.coords, inference, fold.spec, batch_rows(sae))
