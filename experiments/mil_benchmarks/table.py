"""Puts the results of run.sh beside the published ones, and chooses among settings by validation.

Run: python -m experiments.mil_benchmarks.table show <data folder> [--runs runs]
     python -m experiments.mil_benchmarks.table choose mil=meanmil [--runs runs]     # prints overrides
"""

import argparse
import json
import re
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
from sklearn.linear_model import RidgeClassifierCV
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from src.files import read_yaml

_COLON = "crc_colon_resnet50"
# Ilse, Tomczak and Welling, ICML 2018, table 1: accuracy of attention MIL, 10-fold five times. Of colon the images'
# authors publish end-to-end training on denser patches, no figure on these features.
_PUBLISHED = {"musk1": "0.892 ± 0.040", "elephant": "0.868 ± 0.022"}
_SETTING = ("dataset.standardize", "mil.weight_decay", "mil.batch_size", "mil.lr")
_RIDGE_PENALTIES = np.logspace(-2, 4, 13)


def collect(runs: Path) -> pd.DataFrame:
    """Returns a row a finished fold, method and split: data set, mil, setting, repeat, fold, accuracy, auroc."""
    rows = []
    for path in sorted(runs.glob("*/*/fold_*/train_mil/results.json")):
        cfg: Any = read_yaml(path.parent / "config.yaml")
        data_set = Path(cfg["dataset"]["dir"]).name if cfg["dataset"].get("dir") else ""
        setting = " ".join(f"{key}={_value(cfg, key)}" for key in _SETTING)
        known = {"data_set": data_set, "mil": cfg["mil"]["name"], "setting": setting}
        known |= {"repeat": cfg["repeat"], "fold": cfg["fold"]}
        for key, value in json.loads(path.read_text()).items():
            if match := re.fullmatch(r"(val|test)/(.+)_(accuracy|auroc)", key):
                split, method, metric = match.groups()
                if not method.endswith("balanced"):
                    rows.append(known | {"split": split, "method": method, "metric": metric, "value": value})
    return pd.DataFrame(rows)


def choose(results: pd.DataFrame, mil: str) -> str:
    """Returns the overrides of the setting with the highest mean validation AUROC on colon's repeat 0."""
    is_tried = (results["data_set"] == _COLON) & (results["mil"] == mil) & (results["repeat"] == 0)
    is_tried &= (results["split"] == "val") & (results["metric"] == "auroc")
    tried = results[is_tried & results["setting"].str.contains("mil.batch_size=8 ")]
    means: Any = tried.groupby("setting")["value"].mean()
    return str(means.idxmax())


def summarize(results: pd.DataFrame) -> pd.DataFrame:
    """Returns a row a data set, method and setting: test mean, sd over folds, sd over the repeats' means."""
    test = results[results["split"] == "test"]
    rows = []
    groups: Any = test.groupby(["data_set", "mil", "method", "setting", "metric"])
    for key, part in groups:
        by_repeat: Any = part.groupby("repeat")["value"].mean()
        numbers = {"n_folds": len(part), "mean": part["value"].mean(), "sd_folds": part["value"].std()}
        names = ("data_set", "mil", "method", "setting", "metric")
        rows.append(dict(zip(names, key, strict=True)) | numbers | {"sd_repeats": by_repeat.std()})
    return pd.DataFrame(rows)


def ridge(folder: Path, standardize: bool) -> pd.DataFrame:
    """Returns accuracy and AUROC of ridge on the mean of a bag's features, on every given fold of a data set.

    The penalty is chosen within the train part by leave-one-out (scikit-learn's RidgeClassifierCV).

    Args:
        folder: of the data set.
        standardize: whether each mean feature is standardised on the train part. Musk1 needs it; colon's label lies in
            directions of small variance, which it would not help.
    """
    table = pd.read_csv(folder / "dataset.csv", dtype=str)
    labels: Any = table.set_index("slide_id")["label"]
    classes = sorted(set(labels))
    positive = next(one for one in classes if one in ("positive", "cancer"))
    means = {one: _mean_features(folder / "h5_files" / f"{one}.h5") for one in labels.index}
    rows = []
    for path in sorted((folder / "splits").glob("rep*_fold*.csv")):
        split = pd.read_csv(path, dtype=str)
        train, test = (split[part].dropna().tolist() for part in ("train", "test"))
        x_train, x_test = (np.stack([means[one] for one in part]) for part in (train, test))
        y_train, y_test = (np.array([labels[one] == positive for one in part]) for part in (train, test))
        scaler = StandardScaler(with_std=standardize)
        model = make_pipeline(scaler, RidgeClassifierCV(_RIDGE_PENALTIES)).fit(x_train, y_train)
        rows.append((model.score(x_test, y_test), roc_auc_score(y_test, model.decision_function(x_test))))
    return pd.DataFrame(rows, columns=["accuracy", "auroc"])


def _mean_features(path: Path) -> np.ndarray:
    with h5py.File(path) as opened:
        file: Any = opened
        return file["features"][:].mean(0)


def _value(cfg: Any, key: str) -> str:
    group, name = key.split(".")
    return str(cfg[group][name]).lower()


def _show(results: pd.DataFrame, data: Path) -> None:
    summary = summarize(results)
    for data_set, part in summary.groupby("data_set"):
        print(f"\n{data_set}; published attention MIL: {_PUBLISHED.get(str(data_set), 'none on these features')}")
        for row in part.sort_values(["metric", "mil"]).to_dict("records"):
            print(
                f"  {row['metric']:<9}{row['method']:<28}{row['mean']:.3f} ± {row['sd_folds']:.3f} over "
                f"{row['n_folds']} folds, ± {row['sd_repeats']:.3f} over repeats   {row['mil']}: {row['setting']}"
            )
        found = ridge(data / str(data_set), standardize=data_set != _COLON)
        for metric in found:
            print(f"  {metric:<9}{'ridge on mean features':<28}{found[metric].mean():.3f} ± {found[metric].std():.3f}")


def main() -> None:
    """Prints a table, or the overrides of a chosen setting."""
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=("show", "choose"))
    parser.add_argument("of", help="the data folder, or mil=<choice>")
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    arguments = parser.parse_args()
    results = collect(arguments.runs)
    if results.empty:
        raise SystemExit(f"Expected finished train_mil runs below {arguments.runs}, found none: run run.sh first.")
    if arguments.what == "choose":
        print(choose(results, arguments.of.removeprefix("mil=")))
    else:
        _show(results, Path(arguments.of))


if __name__ == "__main__":
    main()
