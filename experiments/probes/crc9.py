"""Writes the arrays of histolearn_uni_crc9.npz as the tensors that `exp=tensors` takes.

Validation tiles are those of its third set that are in neither train nor test: six of 180 are.

Run: python -m experiments.probes.crc9 <histolearn_uni_crc9.npz> <folder>
"""

import sys
from pathlib import Path

import numpy as np


def write_tensors(source: Path, folder: Path) -> dict[str, int]:
    """Writes `<part>.npy` and `<part>_labels.npy` of train, val and test; returns the number of tiles of each."""
    with np.load(source, allow_pickle=False) as arrays:
        parts = {name: (arrays[f"{name}_X"], arrays[f"{name}_y"]) for name in ("train", "test")}
        others, labels = arrays["csv_X"], arrays["csv_y"]
    known = {row.tobytes() for rows, _ in parts.values() for row in rows}
    is_new = np.array([row.tobytes() not in known for row in others])
    parts["val"] = others[is_new], labels[is_new]
    folder.mkdir(parents=True, exist_ok=True)
    for name, (rows, classes) in parts.items():
        np.save(folder / f"{name}.npy", rows)
        np.save(folder / f"{name}_labels.npy", classes)
    return {name: len(rows) for name, (rows, _) in parts.items()}


if __name__ == "__main__":
    print(write_tensors(Path(sys.argv[1]), Path(sys.argv[2])))
