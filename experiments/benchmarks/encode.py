"""Time and disk of encoding a dataset into sparse latents, from feature files to the finished store.

Run: python -m experiments.benchmarks.encode
"""

import statistics
import tempfile
import time
from pathlib import Path

import h5py
import numpy as np
import torch

from src.data.readers.features import FeatureFolder
from src.models.saes.batch_topk import BatchTopK
from src.ops.selection import calibrate_threshold
from src.stores.latents import LatentWriter

N_SLIDES, N_PATCHES, D_IN, N_LATENTS, K = 20, 10_000, 512, 2048, 16
N_ROUNDS = 3


def write_features(path: Path) -> None:
    """Writes random activations in CLAM's layout: `features` in chunks of 32 rows, `coords`."""
    generator = np.random.default_rng(0)
    (path / "h5_files").mkdir(parents=True)
    for index in range(N_SLIDES):
        with h5py.File(path / "h5_files" / f"slide_{index:02d}.h5", "w") as file:
            features = generator.standard_normal((N_PATCHES, D_IN), dtype=np.float32)
            file.create_dataset("features", data=features, chunks=(32, D_IN))
            file.create_dataset("coords", data=generator.integers(0, 10**5, (N_PATCHES, 2)), chunks=(32, 2))


def first_rows(folder: FeatureFolder) -> torch.Tensor:
    """Returns the activations of the first slide."""
    with folder.open(folder.item_ids[0]) as item:
        return torch.from_numpy(item.read())


def make_sae(folder: FeatureFolder) -> BatchTopK:
    """Returns an untrained SAE that keeps K latents a row; what it learned would not change the speed."""
    torch.manual_seed(0)
    sae = BatchTopK(D_IN, N_LATENTS, k=K).eval()
    rows = first_rows(folder)
    with torch.no_grad():
        sae.threshold.copy_(calibrate_threshold([sae.pre_latents(rows)], K, len(rows)))
    return sae


def encode_all(folder: FeatureFolder, sae: BatchTopK, path: Path) -> tuple[float, float, float]:
    """Returns seconds, megabytes on disk and latents kept a row."""
    started = time.perf_counter()
    writer = LatentWriter(path, sae.n_latents)
    n_entries = 0
    for item_id in folder.item_ids:
        with folder.open(item_id) as item:
            latents = sae.encode(torch.from_numpy(item.read()))
        writer.write(item_id, latents, item.coords, 256)
        n_entries += latents.n_entries
    writer.finish()
    seconds = time.perf_counter() - started
    megabytes = sum(file.stat().st_size for file in path.rglob("*") if file.is_file()) / 1e6
    return seconds, megabytes, n_entries / (N_SLIDES * N_PATCHES)


def main() -> None:
    """Prints the table."""
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        write_features(root / "features")
        folder = FeatureFolder(root / "features")
        sae = make_sae(folder)
        rounds = [encode_all(folder, sae, root / f"latents_{index}") for index in range(N_ROUNDS)]
        activations = first_rows(folder)
        started = time.perf_counter()
        for _ in range(N_SLIDES):
            torch.nn.functional.linear(activations, sae.W_enc)
        product = time.perf_counter() - started
    seconds = [seconds for seconds, _, _ in rounds]
    _, megabytes, l0 = rounds[0]
    dense = N_SLIDES * N_PATCHES * N_LATENTS * 4 / 1e6
    print(f"{N_SLIDES * N_PATCHES:,} x {D_IN} activations, {N_LATENTS} latents, {torch.get_num_threads()} threads")
    print(f"{'files to finished store':28}{statistics.median(seconds):8.2f} s  (fastest {min(seconds):.2f})")
    print(f"{'bare encoder product':28}{product:8.2f} s")
    print(f"{'on disk':28}{megabytes:8.1f} MB (dense float32: {dense:,.0f} MB), {l0:.1f} latents a row")


if __name__ == "__main__":
    main()
