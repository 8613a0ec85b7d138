"""The files in which Mammo-SAE and HAM10000-SAE publish concepts of images and of classes."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from src.files import write_atomically
from src.safe_pickle import load_checkpoint

_KEYS = ("sae_concepts", "labels", "img_paths")


@dataclass(frozen=True)
class ImageConcepts:
    """How strong each neuron is in each image.

    Attributes:
        strengths: [n_images, n_latents] float32, means over the positions of the image.
        labels: [n_images] int64, -1 of images without a label.
        paths: of the images, or their ids.
    """

    strengths: np.ndarray
    labels: np.ndarray
    paths: tuple[str, ...]


def concepts_path(root: str | Path, dataset: str, split: str) -> Path:
    """Returns the published name of the strengths of a split: `<root>/sae_concepts_<dataset>_<split>_global.pth`."""
    return Path(root) / f"sae_concepts_{dataset}_{split}_global.pth"


def ranking_path(root: str | Path, split: str, label: int | str) -> Path:
    """Returns the published name of a ranking, of a class by its number or of `all` images."""
    return Path(root) / "class_wise_concepts" / split / f"top_k_concepts_class={label}.json"


def write_concepts(path: str | Path, concepts: ImageConcepts) -> None:
    """Writes strengths as torch.save does, as a dict of `sae_concepts`, `labels` and `img_paths`."""
    values = (torch.from_numpy(concepts.strengths), torch.from_numpy(concepts.labels), list(concepts.paths))
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with write_atomically(path) as temporary:
        torch.save(dict(zip(_KEYS, values, strict=True)), temporary)


def read_concepts(path: str | Path, n_classes: int | None = None) -> ImageConcepts:
    """Reads strengths.

    Args:
        path: the file.
        n_classes: the number of labels that there may be; None: any.

    Raises:
        FileNotFoundError: when there is no such file.
        ValueError: when it holds something else, or an unknown label.
    """
    found = load_checkpoint(path)
    if not isinstance(found, dict) or not set(_KEYS) <= found.keys():
        keys = list(found) if isinstance(found, dict) else type(found).__name__
        raise ValueError(f"Expected {', '.join(_KEYS)} in {path}, got {keys}: is it a file of concept strengths?")
    strengths, labels, paths = (found[key] for key in _KEYS)
    if not isinstance(strengths, Tensor) or not len(strengths) == len(labels) == len(paths):
        raise ValueError(f"Expected a label and a path for each image in {path}, got {len(labels)} and {len(paths)}.")
    labels = np.asarray(labels, dtype=np.int64)
    if n_classes is not None and len(labels) and labels.max() >= n_classes:
        raise ValueError(f"Expected labels below {n_classes} in {path}, got {int(labels.max())}: of other classes.")
    return ImageConcepts(strengths.float().numpy(), labels, tuple(map(str, paths)))


def write_concept_ranking(
    path: str | Path, neuron_ids: Sequence[int] | np.ndarray, importance: Sequence[float] | np.ndarray
) -> None:
    """Writes a ranking, best first, as a list of `rank` (from 0), `index` (the neuron) and `importance`."""
    rows = zip(neuron_ids, importance, strict=True)
    entries = [{"rank": rank, "index": int(one), "importance": float(by)} for rank, (one, by) in enumerate(rows)]
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with write_atomically(path) as temporary:
        temporary.write_text(json.dumps(entries, indent=4) + "\n")


def write_concept_files(
    root: str | Path,
    dataset: str,
    split: str,
    concepts: ImageConcepts,
    rankings: Mapping[int | str, tuple[np.ndarray, np.ndarray]],
) -> None:
    """Writes the strengths of a split and its rankings (neuron ids and importance, by class number and for `all`)."""
    write_concepts(concepts_path(root, dataset, split), concepts)
    for label, ranking in rankings.items():
        write_concept_ranking(ranking_path(root, split, label), *ranking)


def read_concept_ranking(path: str | Path) -> tuple[np.ndarray, np.ndarray]:
    """Reads a ranking, best first: neuron ids [n] int64 and importance [n] float64.

    Raises:
        FileNotFoundError: when there is no such file.
        ValueError: when it holds something else, or a neuron twice.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"Expected a ranking of concepts at {path}, found none.")
    try:
        entries = sorted(json.loads(path.read_text()), key=lambda entry: entry["rank"])
        ids = np.array([entry["index"] for entry in entries], np.int64)
        importance = np.array([entry["importance"] for entry in entries], np.float64)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"Expected a list of rank, index and importance in {path}, got {type(error).__name__}: {error}."
        ) from error
    if len(np.unique(ids)) < len(ids):
        raise ValueError(f"Expected each neuron once in {path}, got {len(ids) - len(np.unique(ids))} of them again.")
    return ids, importance
