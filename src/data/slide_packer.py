"""Packs slides into their places in one pass over their files: read, check, digest, write, in several threads."""

from collections.abc import Generator, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import numpy as np

from src.data.packed_index import digest_coords
from src.data.packing_plan import Packed, Place
from src.data.readers.feature_files import count_rows_not_finite, not_finite
from src.data.readers.feature_source import PIECE_BYTES, FeatureSource
from src.data.readers.features import FeatureFolder
from src.data.readers.h5_files import FeatureFileError
from src.data.shard_writer import ShardWriter
from src.files import start_array_digest
from src.progress import track

_BATCH_BYTES = 4 << 20


def pack_slides(
    folder: FeatureFolder,
    sources: Mapping[str, FeatureSource],
    places: Mapping[str, Place],
    shards: ShardWriter,
    coords: ShardWriter,
    n_threads: int,
) -> Generator[list[Packed], None, None]:
    """Packs slides, a batch of them at a time, and yields each batch when its rows are written.

    With `folder.on_bad_file=skip` slides with bad values are skipped in `folder` and not yielded.

    Raises:
        FeatureFileError: when a value is not finite, unless bad files are skipped.
        ValueError: when a file changed since its header was read, or a value does not fit the shards' type.
        OSError: when the disk is full.
    """
    with ThreadPoolExecutor(n_threads, thread_name_prefix="pack") as pool:
        futures = [
            pool.submit(_pack_batch, folder, {item_id: sources[item_id] for item_id in batch}, places, shards, coords)
            for batch in _batches(sources)
        ]
        try:
            for future in track(as_completed(futures), "Packing activations", total=len(futures)):
                packed, bad = future.result()
                yield packed
                for item_id, error in bad.items():
                    folder.skip(item_id, str(error))
        finally:
            # Work that was not begun is dropped when something failed; else there is none.
            pool.shutdown(cancel_futures=True)


def _batches(sources: Mapping[str, FeatureSource]) -> Iterator[list[str]]:
    """Yields slides by the batch: one, or as many small ones as make a thread's work worth handing out."""
    batch, n_bytes = [], 0
    for item_id, source in sources.items():
        batch.append(item_id)
        n_bytes += source.n_patches * source.d_in * source.dtype.itemsize
        if n_bytes >= _BATCH_BYTES:
            yield batch
            batch, n_bytes = [], 0
    if batch:
        yield batch


def _pack_batch(
    folder: FeatureFolder,
    sources: Mapping[str, FeatureSource],
    places: Mapping[str, Place],
    shards: ShardWriter,
    coords: ShardWriter,
) -> tuple[list[Packed], dict[str, FeatureFileError]]:
    packed: list[Packed] = []
    bad: dict[str, FeatureFileError] = {}
    widest = max(source.d_in * source.dtype.itemsize for source in sources.values())
    buffer = np.empty(max(PIECE_BYTES, widest), dtype=np.uint8)
    for item_id, source in sources.items():
        try:
            digests = _pack_values(folder, item_id, source, places[item_id], shards, buffer)
            packed.append(_pack_placement(item_id, source, places[item_id], coords, digests))
        except FeatureFileError as error:
            if folder.on_bad_file == "error":
                raise
            bad[item_id] = error
    return packed, bad


def _pack_values(
    folder: FeatureFolder, item_id: str, source: FeatureSource, place: Place, shards: ShardWriter, buffer: np.ndarray
) -> tuple[str, str]:
    """Returns the digests of the values and of what is stored of them."""
    file = folder.file(item_id)
    hasher = start_array_digest((source.n_patches, source.d_in))
    is_rounded = source.dtype.itemsize > shards.dtype.itemsize
    stored_hasher = start_array_digest((source.n_patches, source.d_in)) if is_rounded else hasher
    row, n_bad = place.start, 0
    for piece in source.pieces(buffer):
        if row + len(piece) > place.stop:
            raise _changed(item_id, file)
        n_bad += count_rows_not_finite(piece)
        hasher.update(np.ascontiguousarray(piece, dtype=np.float32).data)
        with np.errstate(over="ignore"):  # told below, with the file's name
            stored = np.ascontiguousarray(piece, dtype=shards.dtype)
        if is_rounded:
            if not n_bad and (n_large := count_rows_not_finite(stored)):
                raise ValueError(
                    f"Expected values that fit float16 (up to 65504) in {file}, got larger ones in {n_large} rows. "
                    "Pack as float32."
                )
            stored_hasher.update(stored.astype(np.float32).data)
        shards.write(row, stored)
        row += len(piece)
    if row != place.stop or folder.identity(item_id) != place.identity:
        raise _changed(item_id, file)
    if n_bad:
        raise not_finite(file, n_bad)
    return hasher.hexdigest(), stored_hasher.hexdigest()


def _pack_placement(
    item_id: str, source: FeatureSource, place: Place, coords: ShardWriter, digests: tuple[str, str]
) -> Packed:
    placement, digest = source.placement, ""
    if placement.coords is not None:
        coords.write(place.start, placement.coords)
        digest = digest_coords(placement.coords)
    missing = placement.coords_missing or ""
    return Packed(item_id, place.start, *digests, digest, missing, placement.patch_size_level0 or 0)


def _changed(item_id: str, file: Path) -> ValueError:
    return ValueError(
        f"Expected {file} (slide {item_id}) to stay as it is while it is packed, got another file: something "
        "writes it now. Let that end and start again; what was packed is kept."
    )
