"""Splits images into 60 % train, 10 % validation and 30 % test, each class alike; every image is a case of its own.

Run: python -m experiments.steering.split <dataset.csv> <splits folder>
"""

import sys
from pathlib import Path
from typing import Any

import pandas as pd
from sklearn.model_selection import train_test_split

from src.data.splits import write_folds
from src.records import read_items
from src.split_files import FoldSplit


def _divide(table: Any, share: float) -> list[Any]:
    return train_test_split(table, test_size=share, stratify=table["label"], random_state=0)


def main(metadata_csv: str, splits_dir: str) -> None:
    """Writes fold 0."""
    items = read_items(metadata_csv)
    table = pd.DataFrame({"item_id": [item.item_id for item in items], "label": [item.label for item in items]})
    rest, test = _divide(table, 0.3)
    train, val = _divide(rest, 1 / 7)
    split = FoldSplit(0, *(tuple(sorted(part["item_id"])) for part in (train, val, test)))
    Path(splits_dir).mkdir(parents=True, exist_ok=True)
    write_folds([split], items, splits_dir)


if __name__ == "__main__":
    main(*sys.argv[1:])
