"""Eight SAEs on one stream against each alone: seconds per SAE, and how often the activations are read.

python -m experiments.benchmarks.sweep
"""

import logging
import re
import statistics
import sys
import tempfile
import time
import warnings
from pathlib import Path

import h5py
import numpy as np

from src import config
from src.runs.execution import execute

N_SLIDES, N_PATCHES, D_IN = 50, 2000, 512
KS = (4, 8, 12, 16, 20, 24, 28, 32)


def main() -> None:
    """Trains one SAE alone, eight in a sweep, and one alone again; prints one table."""
    config.register_resolvers()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _write_features(folder / "features")
        base = ["exp=features", f"dataset.dir={folder / 'features'}", "dataset.positive_class=b", "name=sweep"]
        base += [f"paths.data={folder / 'data'}", "sae.n_latents=2048", "train.epochs=6", "train.n_validations=1"]
        base += ["trainer=cpu", "train.calibrate_threshold=false"]
        _seconds(base, folder / "first", "task=splits")
        _seconds(base, folder / "warm", "task=train_sae", "train.epochs=1")  # packs, and loads what is loaded once
        before = {k: _seconds(base, folder / "before", "task=train_sae", f"sae.k={k}") for k in KS[1::4]}
        grid = f"sweep.grid=['sae.k={_csv(KS)}']"
        overrides = [*base, f"paths.runs={folder / 'sweep'}", "task=train_sae_sweep", grid]
        config.hydra_overrides = lambda: overrides
        together = _seconds(base, folder / "sweep", "task=train_sae_sweep", grid)
        after = {k: _seconds(base, folder / "after", "task=train_sae", f"sae.k={k}") for k in KS[1::4]}
        (log,) = (folder / "sweep").glob("**/train_sae_sweep/run.log")
        blocks = int(re.findall(r"Read (\d+) blocks", log.read_text())[0])
    alone = statistics.mean([*before.values(), *after.values()])
    sys.stdout.write(
        f"{len(KS)} SAEs {D_IN} -> 2048, k {_csv(KS)}; {N_SLIDES * N_PATCHES:,} rows of all parts, 6 epochs\n"
        f"{'':<28}{'s per SAE':>12}{'blocks read per SAE':>22}\n"
        f"{'alone (mean of 4, k 8, 24)':<28}{alone:>12.2f}{blocks:>22.0f}\n"
        f"{'in a sweep of 8':<28}{together / len(KS):>12.2f}{blocks / len(KS):>22.2f}\n"
        f"{'ratio':<28}{together / len(KS) / alone:>12.2f}\n"
    )


def _seconds(base: list[str], runs: Path, *overrides: str) -> float:
    typed = [*base, f"paths.runs={runs}", *overrides]
    composed = config.compose(typed)
    started = time.perf_counter()
    execute(composed, typed)
    return time.perf_counter() - started


def _csv(values: tuple[int, ...]) -> str:
    return ",".join(map(str, values))


def _write_features(path: Path) -> None:
    (path / "h5_files").mkdir(parents=True)
    generator = np.random.default_rng(0)
    directions = generator.standard_normal((1024, D_IN)).astype(np.float32) / D_IN**0.5
    rows = ["case_id,slide_id,label"]
    for index in range(N_SLIDES):
        weights = generator.gamma(2.0, size=(N_PATCHES, 1024)) * (generator.random((N_PATCHES, 1024)) < 0.02)
        with h5py.File(path / "h5_files" / f"{index:03d}.h5", "w") as file:
            file["features"] = (weights @ directions).astype(np.float32)
        rows.append(f"c{index:03d},{index:03d},{'ab'[index % 2]}")
    (path / "dataset.csv").write_text("\n".join(rows) + "\n")


if __name__ == "__main__":
    main()
