"""The packed stores that the activations of images go into, one a layer."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import numpy as np

from src.activation_spec import ActivationSpec
from src.data.embedding.embedder import Embedder
from src.data.embedding.pictures import ImageReader, Images
from src.data.slides.feature_writer import other_spec
from src.stores.activations.index import Identity, add_skipped, read_index, read_skipped, read_specs
from src.stores.activations.writer import ItemRows, StoreWriter

_NO_COORDS = "image tokens have no coords: their number is their place"


def is_of(folder: Path, spec: ActivationSpec) -> bool:
    """Whether a store holds activations of this spec only, or none."""
    return all(found == spec for found in read_specs(folder).values())


def check_specs(folder: Path, spec: ActivationSpec) -> None:
    """Refuses a store that holds activations of another spec.

    Raises:
        ValueError: printing both.
    """
    for found in read_specs(folder).values():
        if found != spec:
            raise other_spec(folder, spec, found)


def lacking_images(folders: Sequence[Path], identities: Mapping[str, Identity]) -> list[str]:
    """Returns the images whose activations are in none of some stores of one layer as their files are now, in order.

    Images that were bad when the stores were made, and whose files are the same, are not looked at again.
    """
    done: dict[str, list[Identity]] = {}
    for folder in folders:
        for item_id, row in read_index(folder).items():
            done.setdefault(item_id, []).append(row.identity)
        for item_id, (identity, _) in read_skipped(folder).items():
            done.setdefault(item_id, []).append(identity)
    return [item_id for item_id, identity in identities.items() if identity not in done.get(item_id, ())]


def embed_images(
    embedder: Embedder,
    source: ImageReader,
    identities: Mapping[str, Identity],
    folders: Mapping[str, tuple[Path, ActivationSpec, Sequence[str]]],
    skips: bool,
    dtype: str = "float32",
) -> Iterator[dict[str, str]]:
    """Embeds images batch by batch into a store for each layer; what was done stays when it is stopped or fails.

    Args:
        embedder: runs the backbone.
        source: reads images.
        identities: of the images' files, by id.
        folders: of each layer: its store, what its activations are of, and the images that it lacks.
        skips: whether bad images are left out and noted in the stores; else the first is an error.
        dtype: of the stored values, float32 or float16.

    Yields:
        After each batch, why images were left out, by id.

    Raises:
        FileNotFoundError, ValueError: when an image is missing or bad, unless such are left out.
        OSError: when the disk is full.
    """
    lacking = {layer: set(item_ids) for layer, (_, _, item_ids) in folders.items()}
    wanted = set[str]().union(*lacking.values())
    item_ids = [item_id for item_id in identities if item_id in wanted]
    batches = (
        Images(item_ids[start : start + embedder.batch_size], source, skips)
        for start in range(0, len(item_ids), embedder.batch_size)
    )
    with ExitStack() as stack:
        writers = {
            layer: stack.enter_context(StoreWriter(folder, keeps=True)) for layer, (folder, _, _) in folders.items()
        }
        for images, found in embedder.embed(batches):
            for layer, values in found.items():
                spec = folders[layer][1]
                for item_id, rows in zip(images.item_ids, values.astype(dtype, copy=False), strict=True):
                    if item_id in lacking[layer] and item_id not in images.bad:
                        writers[layer].add(_item_rows(item_id, rows, spec, identities[item_id]), identities[item_id])
            if images.bad:
                bad = {item_id: (identities[item_id], reason) for item_id, reason in images.bad.items()}
                for folder, _, _ in folders.values():
                    add_skipped(folder, bad)
            yield images.bad


def _item_rows(item_id: str, rows: np.ndarray, spec: ActivationSpec, identity: Identity) -> ItemRows:
    if not np.isfinite(rows).all():
        raise ValueError(
            f"Expected finite activations of {item_id!r} ({identity[0]}), got others: the model overflows"
            f"{' in float16: give embed.dtype=float32' if rows.dtype == np.float16 else ' on this image'}."
        )
    (n_rows, d_in), pieces = rows.shape, partial(iter, [rows])
    path = Path(identity[0])
    return ItemRows(item_id, path, n_rows, d_in, rows.dtype, pieces, coords_missing=_NO_COORDS, spec=spec)
