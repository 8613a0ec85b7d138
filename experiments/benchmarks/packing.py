"""Speed of packing CLAM's feature files against reading them and no more.

Run: python -m experiments.benchmarks.packing
"""

import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import xxhash

from src.data.packing import pack_activations
from src.data.readers.feature_files import count_rows_not_finite
from src.data.readers.features import FeatureFolder

N_SLIDES, N_PATCHES, D_IN = 100, 2000, 512
N_ROUNDS = 9
_CLAM_ROWS = 32
_PIECE_BYTES = 1 << 20


def write_features(path: Path) -> None:
    """Writes random activations as CLAM does: batch by batch to resizable datasets in chunks of 32 rows."""
    generator = np.random.default_rng(0)
    (path / "h5_files").mkdir(parents=True)
    for index in range(N_SLIDES):
        with h5py.File(path / "h5_files" / f"slide_{index:03d}.h5", "w") as file:
            features = file.create_dataset(
                "features", (0, D_IN), np.float32, maxshape=(None, D_IN), chunks=(_CLAM_ROWS, D_IN)
            )
            coords = file.create_dataset("coords", (0, 2), np.int64, maxshape=(None, 2), chunks=(_CLAM_ROWS, 2))
            for start in range(0, N_PATCHES, 256):
                stop = min(start + 256, N_PATCHES)
                for dataset in (features, coords):
                    dataset.resize(stop, axis=0)
                features[start:stop] = generator.standard_normal((stop - start, D_IN), dtype=np.float32)
                coords[start:stop] = generator.integers(0, 10**5, (stop - start, 2))


def read_files(path: Path) -> None:
    """Reads features and coords of every file with h5py, as anyone would."""
    for file_path in sorted((path / "h5_files").iterdir()):
        with h5py.File(file_path, "r") as file:
            for dataset in ("features", "coords"):
                file[dataset][:]  # pyright: ignore[reportIndexIssue]


def read_headers(path: Path) -> None:
    """Opens every file: its header and its coords."""
    folder = FeatureFolder(path)
    for item_id in folder.item_ids:
        folder.open(item_id)


def read_pieces(path: Path) -> None:
    """Opens every file and reads it in pieces."""
    folder = FeatureFolder(path)
    for item_id in folder.item_ids:
        for _ in folder.open(item_id).pieces():
            pass


def on_pieces(task: Callable[[np.ndarray], object]) -> None:
    """Does a task on as many bytes, a piece at a time."""
    piece = np.random.default_rng(0).standard_normal((_PIECE_BYTES // D_IN // 4, D_IN), dtype=np.float32)
    for _ in range(N_SLIDES * N_PATCHES // len(piece)):
        task(piece)


def write_rows(path: Path) -> None:
    """Writes as many bytes to a file."""
    with open(path, "wb") as file:
        on_pieces(lambda piece: file.write(piece.data))


def pack(path: Path, cache: Path) -> None:
    """Packs every file."""
    folder = FeatureFolder(path)
    pack_activations(folder, folder.item_ids, cache)


def seconds_of(task: Callable[[], object]) -> float:
    """Returns how long a task takes."""
    started = time.perf_counter()
    task()
    return time.perf_counter() - started


def measure(tasks: dict[str, Callable[[], object]], made: tuple[Path, ...]) -> dict[str, list[float]]:
    """Returns the seconds of each task in interleaved rounds, each begun without the folders that tasks make."""
    seconds: dict[str, list[float]] = {label: [] for label in tasks}
    for _ in range(N_ROUNDS):
        for path in made:
            shutil.rmtree(path, ignore_errors=True)
        for label, task in tasks.items():
            seconds[label].append(seconds_of(task))
    return seconds


def main() -> None:
    """Prints the table."""
    hasher = xxhash.xxh3_128()
    with tempfile.TemporaryDirectory() as name:
        files, cache, shards = Path(name) / "features", Path(name) / "cache", Path(name) / "shards"
        write_features(files)
        compared: dict[str, Callable[[], object]] = {
            "read the files (h5py)": lambda: read_files(files),
            "pack": lambda: pack(files, cache),
            "open the packed store": lambda: pack(files, cache),
        }
        # Apart from those, because what they leave to be written to the disk would disturb them.
        profile: dict[str, Callable[[], object]] = {
            "- headers alone": lambda: read_headers(files),
            "- headers, values, finite": lambda: read_pieces(files),
            "- finite check alone": lambda: on_pieces(count_rows_not_finite),
            "- digest alone (xxh3_128)": lambda: on_pieces(lambda piece: hasher.update(piece.data)),
            "- write alone (page cache)": lambda: write_rows(shards),
        }
        seconds = measure(compared, (cache,)) | measure(profile, (shards,))
    n_bytes = N_SLIDES * N_PATCHES * D_IN * 4
    bare = statistics.median(seconds["read the files (h5py)"])
    print(f"{N_SLIDES * N_PATCHES:,} x {D_IN} float32 in {N_SLIDES} files, {N_ROUNDS} interleaved rounds")
    print(f"{'':32}{'median s':>10}{'fastest s':>11}{'GB/s':>8}{'x reading':>11}")
    for label, times in seconds.items():
        median = statistics.median(times)
        print(f"{label:32}{median:10.3f}{min(times):11.3f}{n_bytes / median / 1e9:8.1f}{bare / median:11.2f}")


if __name__ == "__main__":
    main()
