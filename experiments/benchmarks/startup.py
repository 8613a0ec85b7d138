"""CPU seconds until a command that has nothing to compute answers, beside importing Hydra alone.

Run: python -m experiments.benchmarks.startup
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import h5py
import numpy as np

N_ROUNDS = 5


def write_features(path: Path) -> None:
    """Writes forty small slides of two classes with activations in CLAM's layout, and their csv."""
    generator = np.random.default_rng(0)
    (path / "h5_files").mkdir(parents=True)
    rows = ["case_id,slide_id,label"]
    for index in range(40):
        with h5py.File(path / "h5_files" / f"s{index:02d}.h5", "w") as file:
            file["features"] = generator.standard_normal((50, 16), dtype=np.float32)
            file["coords"] = generator.integers(0, 10**4, (50, 2))
        rows.append(f"c{index:02d},s{index:02d},{('normal', 'tumor')[index % 2]}")
    (path / "dataset.csv").write_text("\n".join(rows) + "\n")


def cpu_seconds(command: list[str]) -> float:
    """Returns user and system time of a command, which may fail."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, _, used = os.wait4(process.pid, 0)
    process.returncode = 0
    return used.ru_utime + used.ru_stime


def main() -> None:
    """Prints one table; each number is the median of some runs, taken in turns."""
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "features"
        write_features(data)
        run = [sys.executable, "-m", "src.run"]
        here = [f"paths.data={folder}/data", f"paths.runs={folder}/runs", "trainer=cpu"]
        train = [*run, "exp=features", f"dataset.dir={data}", "dataset.positive_class=tumor", *here, "train.epochs=1"]
        for task in ("splits", "train_sae"):
            subprocess.run([*train, f"task={task}"], check=True, capture_output=True)
        commands = {
            "import hydra, omegaconf": [sys.executable, "-c", "import hydra, omegaconf"],
            "--help": [*run, "--help"],
            "a finished run": [*train, "task=train_sae"],
            "missing data": [*run, "exp=quickstart", *here, "task=train_sae"],
        }
        times = {name: [] for name in commands}
        for _ in range(N_ROUNDS):
            for name, command in commands.items():
                times[name].append(cpu_seconds(command))
    medians = {name: float(np.median(values)) for name, values in times.items()}
    alone = medians["import hydra, omegaconf"]
    print(f"{'command':<26}{'CPU s':>8}{'x Hydra alone':>16}")
    for name, median in medians.items():
        print(f"{name:<26}{median:>8.2f}{median / alone:>16.1f}")


if __name__ == "__main__":
    main()
