"""Labels of a data set: one half of its classes, and other names for them."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from src.csv_tables import read_text, some


def class_half(labels: Sequence[str], half: Literal["base", "novel"]) -> list[bool]:
    """Returns which items are of the base classes, or of the novel ones, as benchmarks of CLIP split any data set.

    Base classes are the first half of the sorted labels, rounded up, and novel ones the rest: `subsample_classes` in
    CoOp (K. Zhou et al., "Conditional Prompt Learning", CVPR 2022). PatchSAE rounds down (`steer.classes`).

    Args:
        labels: of the items, as the source spells them; an unlabelled item is in neither half.
        half: which.

    Raises:
        ValueError: when there are fewer than two classes.
    """
    classes = sorted(set(labels) - {""})
    if len(classes) < 2:
        raise ValueError(
            f"Expected at least two classes to take the {half} half of, got {classes}. Give dataset.class_half=null."
        )
    middle = (len(classes) + 1) // 2
    chosen = set(classes[:middle] if half == "base" else classes[middle:])
    return [label in chosen for label in labels]


def name_labels(labels: Sequence[str], names: Mapping[str, str] | str | Path) -> list[str]:
    """Returns the labels by other names; a name that two labels share is followed by the label in brackets.

    Args:
        labels: as the source spells them; an empty one stays.
        names: by label, or a text file with a line a class, the label, a space and its name: `n01440764 tench`, as
            CLIP's benchmarks (`classnames.txt`) and Kaggle's ImageNet (`LOC_synset_mapping.txt`) have it.

    Raises:
        FileNotFoundError: when there is no such file.
        ValueError: when a label has no name.
    """
    by_label = dict(names) if isinstance(names, Mapping) else _read_names(names)
    if unnamed := sorted(set(labels) - set(by_label) - {""}):
        raise ValueError(
            f"Expected a name for each label in dataset.label_names, got none for {some(unnamed)}. Add them, or give "
            "dataset.label_names=null."
        )
    twice = {name for name, count in Counter(by_label.values()).items() if count > 1}
    told = {label: f"{name} ({label})" if name in twice else name for label, name in by_label.items()}
    return [told[label] if label else "" for label in labels]


def _read_names(path: str | Path) -> dict[str, str]:
    if not Path(path).is_file():
        raise FileNotFoundError(f"Expected a file of class names at {path}, found none. Give dataset.label_names.")
    lines = [line.partition(" ") for line in read_text(path).splitlines() if line.strip()]
    if wrong := [label for label, _, name in lines if not name.strip()]:
        raise ValueError(f"Expected a label, a space and a name in each line of {path}, got {some(wrong)}.")
    return {label: name.strip() for label, _, name in lines}
