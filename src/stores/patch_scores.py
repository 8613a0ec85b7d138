"""What a slide classifier says of each patch: one h5 file a method, `analysis/patch_scores/<method>.h5` of train_mil.

Layout: `item_ids` [n_items] (text), `offsets` [n_items + 1] int64 (the rows of item i are offsets[i] to
offsets[i + 1]), `attention` [n_rows, n_branches] float32 and `instance_logits` [n_rows, n_classes] float32, either
missing where the model has none; attribute `classes` (JSON). Rows are in the order of the item's activations.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from src.files import write_atomically

_KINDS = ("attention", "instance_logits")


@dataclass(frozen=True)
class PatchScores:
    """The scores of one item's patches.

    Attributes:
        classes: names, by the index of their logit; of two the positive is last.
        attention: [n_rows, n_branches], one branch for all classes or one a class, each sums to 1; None: the model has
            no attention.
        instance_logits: [n_rows, n_classes], what each patch alone speaks for; None: the model has none.
    """

    classes: tuple[str, ...]
    attention: np.ndarray | None
    instance_logits: np.ndarray | None

    def attention_of(self, label: str) -> np.ndarray | None:
        """Returns the attention [n_rows] of a class's branch, or of the only one; None where there is none."""
        if self.attention is None:
            return None
        return self.attention[:, self.classes.index(label) if self.attention.shape[1] > 1 else 0]

    def instance_scores_of(self, label: str) -> np.ndarray | None:
        """Returns each patch's log-odds of a class against all others [n_rows]; None where there are none."""
        if self.instance_logits is None:
            return None
        of_class = self.classes.index(label)
        others = np.delete(self.instance_logits.astype(np.float64), of_class, axis=1)
        return self.instance_logits[:, of_class] - np.logaddexp.reduce(others, axis=1)


def write_patch_scores(path: Path, scores: Mapping[str, PatchScores], classes: Sequence[str]) -> None:
    """Writes the scores of a method, whole or not at all.

    Args:
        path: the file.
        scores: of each item, by id; all of one model.
        classes: names, by the index of their logit.
    """
    with write_atomically(path) as temporary, h5py.File(temporary, "w") as file:
        file.attrs["classes"] = json.dumps(list(classes))
        file.create_dataset("item_ids", data=list(scores), dtype=h5py.string_dtype())
        lengths = [0]
        for kind in _KINDS:
            parts = [part for one in scores.values() if (part := getattr(one, kind)) is not None]
            if parts:
                file.create_dataset(kind, data=np.concatenate(parts).astype(np.float32))
                lengths = [0, *(len(part) for part in parts)]
        file.create_dataset("offsets", data=np.cumsum(lengths, dtype=np.int64))


def read_patch_scores(path: Path) -> dict[str, PatchScores]:
    """Returns the scores of every item, by id.

    Raises:
        FileNotFoundError: when the file is missing.
    """
    if not path.is_file():
        raise FileNotFoundError(f"Expected the scores of patches at {path}, found none: run task=train_mil again.")
    with h5py.File(path) as opened:
        file: Any = opened
        classes = tuple(json.loads(file.attrs["classes"]))
        item_ids = file["item_ids"].asstr()[:]
        offsets = file["offsets"][:]
        values = [file[kind][:] if kind in file else None for kind in _KINDS]
    found = {}
    for item_id, start, stop in zip(item_ids, offsets[:-1], offsets[1:], strict=True):
        attention, instance_logits = (None if one is None else one[start:stop] for one in values)
        found[str(item_id)] = PatchScores(classes, attention, instance_logits)
    return found
