"""The command itself on a small folder of features: the whole chain, the finished rule, kill -9, and bad input."""

import json
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest

from tests.command import run_command
from tests.synthetic import make_feature_folder

pytestmark = pytest.mark.slow
SMALL = ("sae.k=6", "train.batch_size=256", "train.epochs=60", "mil.max_epochs=3")


@pytest.fixture
def workplace(tmp_path):
    return make_feature_folder(tmp_path / "features").parent


def typed(workplace: Path, *overrides: str, multirun: bool = False) -> list[str]:
    return [
        "exp=features",
        f"dataset.dir={workplace / 'features'}",
        "dataset.positive_class=tumor",
        "name=small",
        f"paths.data={workplace / 'data'}",
        f"paths.runs={workplace / 'runs'}",
        *SMALL,
        *overrides,
        *(["--multirun"] if multirun else []),
    ]


def run(workplace: Path, *overrides: str, code: int = 0, multirun: bool = False) -> str:
    return run_command(*typed(workplace, *overrides, multirun=multirun), code=code)


def task_dir(workplace: Path, task: str) -> Path:
    (path,) = (workplace / "runs" / "small").glob(f"**/{task}")
    return path


def snapshot(folder: Path) -> dict[Path, tuple[bytes, int]]:
    return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.rglob("*") if path.is_file()}


def test_pipeline_finds_the_planted_neuron_and_runs_once(workplace):
    run(workplace, "task=pipeline")
    skipped = json.loads((task_dir(workplace, "pipeline") / "skipped.json").read_text())
    assert set(skipped) == {"tile", "embed", "metadata", "localize", "predict", "train_probe", "visualize", "steer"}
    neurons = pd.read_csv(task_dir(workplace, "select_neurons") / "analysis" / "neurons.csv")
    assert neurons.loc[0, "q_value"] < 0.05
    assert neurons.loc[0, "auroc"] > 0.9
    assert (task_dir(workplace, "report") / "report.html").stat().st_size > 10_000
    before = snapshot(workplace)
    assert "is finished" in run(workplace, "task=pipeline")
    assert snapshot(workplace) == before


def test_sweep_over_folds_shares_the_directories_of_single_runs(workplace):
    few = ("train.epochs=2", "mil.max_epochs=1", "mil.methods=[max_activations,neuron]", "dataset.standardize=true")
    run(workplace, *few, "fold=1", "task=pipeline")
    said = run(workplace, *few, "fold=range(2)", "task=pipeline", multirun=True)
    assert "fold_1/pipeline. overwrite=true" in said
    said = run(workplace, *few, "task=summarize_cv")
    assert "is finished" in said
    summary = pd.read_csv(task_dir(workplace, "summarize_cv") / "analysis" / "summary.csv")
    assert set(summary["n_folds"]) == {2}
    assert set(summary["metric"]) >= {"accuracy", "auroc"}


def truncate(workplace):
    path = workplace / "features" / "h5_files" / "003.h5"
    path.write_bytes(path.read_bytes()[:1500])


def without_features(workplace):
    with h5py.File(workplace / "features" / "h5_files" / "003.h5", "a") as file:
        del file["features"]


def other_width(workplace):
    without_features(workplace)
    with h5py.File(workplace / "features" / "h5_files" / "003.h5", "a") as file:
        file["features"] = np.zeros((63, 17), dtype=np.float32)


def empty_slide(workplace):
    without_features(workplace)
    with h5py.File(workplace / "features" / "h5_files" / "003.h5", "a") as file:
        del file["coords"]
        file["features"] = np.zeros((0, 16), dtype=np.float32)


def not_in_csv(workplace):
    path = workplace / "features" / "dataset.csv"
    path.write_text("".join(line for line in path.read_text().splitlines(keepends=True) if ",003," not in line))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (truncate, r"003\.h5"),
        (without_features, "003.h5"),
        (other_width, "003.h5"),
        (empty_slide, "003.h5"),
        (not_in_csv, "task=splits overwrite=true"),
    ],
)
def test_bad_input_is_named_and_nothing_is_lost(workplace, spoil, message):
    run(workplace, "task=splits")
    spoil(workplace)
    said = run(workplace, code=1)
    assert message.replace("\\", "") in said
    assert "Expected" in said
    assert "Traceback" not in said
    assert not list(workplace.glob("data/cache/**/activations.npy"))


def test_misspelt_override_is_refused_before_any_work(workplace):
    assert "sae.kk" in run(workplace, "sae.kk=3", code=1)


@pytest.mark.parametrize(
    ("logger", "trace"),
    [(("logger=wandb", "logger.wandb.offline=true"), "*.wandb"), (("logger=tensorboard",), "*tfevents*")],
)
def test_loggers_that_were_asked_for_write_without_a_network(workplace, logger, trace):
    run(workplace, "task=splits")
    run(workplace, "train.epochs=2", *logger)
    path = task_dir(workplace, "train_sae")
    assert list((workplace / "runs").rglob(trace))
    assert "train/loss" in (path / "metrics.csv").read_text()
