"""Seconds until 50 finished runs are found finished by `-m`, and until `task=status` shows 500 runs.

Run: python -m experiments.benchmarks.launching
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from experiments.benchmarks.startup import write_features

N_FINISHED, N_SHOWN = 50, 500


def timed(command: list[str], expected: str) -> tuple[float, float]:
    """Returns wall and CPU seconds of a command that has to say something.

    Raises:
        RuntimeError: when it fails, or says something else.
    """
    started, before = time.perf_counter(), os.times()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wall, after = time.perf_counter() - started, os.times()
    said = done.stdout + done.stderr
    if done.returncode or expected not in said:
        raise RuntimeError(f"Expected {expected!r}, got exit code {done.returncode} and: {said[-2000:]}")
    used = after.children_user + after.children_system - before.children_user - before.children_system
    return wall, used


def main() -> None:
    """Trains fifty small SAEs, then prints one table."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_features(folder / "features")
        run = [sys.executable, "-m", "src.run"]
        typed = ["exp=features", "name=many", f"dataset.dir={folder / 'features'}", "dataset.positive_class=tumor"]
        typed += [f"paths.data={folder / 'data'}", f"paths.runs={folder / 'runs'}", "trainer=cpu", "train.epochs=1"]
        typed += ["splits.scheme=monte_carlo", f"splits.n_folds={N_FINISHED}"]
        subprocess.run([*run, *typed, "task=splits"], check=True, capture_output=True)
        folds = ["-m", *typed, f"fold=range({N_FINISHED})", "task=train_sae"]
        subprocess.run([*run, *folds], check=True, capture_output=True)

        rows = {}
        finished = f"Of {N_FINISHED} runs {N_FINISHED} are finished"
        for kind in ("local", "workers"):
            rows[f"-m, {N_FINISHED} finished runs, cluster={kind}"] = timed([*run, *folds, f"cluster={kind}"], finished)
        (variant,) = (path for path in (folder / "runs" / "many").iterdir() if path.is_dir())
        for number in range(1, N_SHOWN // N_FINISHED):
            shutil.copytree(variant, variant.with_name(f"{variant.name}_{number}"))
        status = [*run, f"paths.runs={folder / 'runs'}", "task=status", "name=many", "status.finished=true"]
        rows[f"task=status, {N_SHOWN} runs"] = timed(status, f"{N_SHOWN} runs")
    print(f"{'command':<44}{'s':>8}{'CPU s':>8}")
    for command, (wall, used) in rows.items():
        print(f"{command:<44}{wall:>8.1f}{used:>8.1f}")


if __name__ == "__main__":
    main()
