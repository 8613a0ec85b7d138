import json

import h5py
import numpy as np
import pandas as pd
import pytest
import yaml

from experiments.mil_benchmarks.table import choose, collect, ridge, summarize


def finish(runs, data_set, weight_decay, fold, repeat, **metrics):
    folder = runs / data_set / f"wd{weight_decay}" / f"fold_{fold}_repeat_{repeat}" / "train_mil"
    folder.mkdir(parents=True)
    mil = {"name": "meanmil", "weight_decay": weight_decay, "batch_size": 8, "lr": 5e-4}
    cfg = {"dataset": {"dir": f"/data/{data_set}", "standardize": False}, "mil": mil, "fold": fold, "repeat": repeat}
    (folder / "config.yaml").write_text(yaml.safe_dump(cfg))
    (folder / "results.json").write_text(json.dumps({key.replace("__", "/"): value for key, value in metrics.items()}))


def test_settings_are_chosen_by_validation_and_tests_are_averaged(tmp_path):
    name = "crc_colon_resnet50"
    for fold, (val, test) in enumerate([(0.9, 0.5), (0.7, 0.7)]):
        finish(tmp_path, name, 0.1, fold, 0, val__mean_auroc=val, test__mean_auroc=test, test__mean_balanced_accuracy=0)
    finish(tmp_path, name, 0.1, 0, 1, val__mean_auroc=0.0, test__mean_auroc=0.9)
    finish(tmp_path, name, 0.5, 0, 0, val__mean_auroc=0.79, test__mean_auroc=1.0)
    results = collect(tmp_path)
    setting = "dataset.standardize=false mil.weight_decay=0.1 mil.batch_size=8 mil.lr=0.0005"
    assert choose(results, "meanmil") == setting
    summary = summarize(results).set_index("setting").loc[setting]
    assert summary["n_folds"] == 3
    assert summary["mean"] == pytest.approx(0.7)
    assert summary["sd_folds"] == pytest.approx(0.2)
    assert summary["sd_repeats"] == pytest.approx(np.std([0.6, 0.9], ddof=1))


def test_ridge_separates_what_means_separate(tmp_path):
    rng = np.random.default_rng(0)
    (tmp_path / "h5_files").mkdir()
    (tmp_path / "splits").mkdir()
    labels = ["positive" if index % 2 else "negative" for index in range(30)]
    names = [f"{index:03d}" for index in range(30)]
    for name, label in zip(names, labels, strict=True):
        with h5py.File(tmp_path / "h5_files" / f"{name}.h5", "w") as file:
            file["features"] = rng.normal(size=(5, 4)) + 3 * (label == "positive")
    pd.DataFrame({"slide_id": names, "label": labels}).to_csv(tmp_path / "dataset.csv", index=False)
    split = pd.DataFrame({"train": pd.Series(names[:20]), "test": pd.Series(names[20:])})
    split.to_csv(tmp_path / "splits" / "rep0_fold0.csv", index=False)
    assert ridge(tmp_path, standardize=True).to_dict("records") == [{"accuracy": 1.0, "auroc": 1.0}]
